"""How a method is found by the path that its suite names: imported where it is to run, elsewhere only read.

To import a method is to import torch, which takes two seconds. A plan or a table needs no more of one than its Config and
two flags, and has them from the statements of its file that make these.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.errors import UserError, told
from bench.provenance import ROOT
from bench.yaml_strict import unknown

if TYPE_CHECKING:
    from models.method import Method

_PATH = re.compile(r"((?:models|baselines)(?:\.\w+)+):(\w+)")


@dataclass(frozen=True)
class Declared:
    """What a plan knows of a method: its class's name, its Config, and two flags of `models.method.Method`."""

    name: str
    Config: type[Any]
    iterative: bool
    needs_labels: bool


_NEEDED = ("Config", "iterative", "needs_labels")


def declared(path: str, where: str = "method") -> Declared:
    """What the class at an import path such as "models.amm:AMM" declares; errors as for `method_class`."""
    match = _PATH.fullmatch(path)
    found = _read(match[1], match[2]) if match and match[1] not in sys.modules else None
    if found is not None:
        return found
    cls = method_class(path, where)
    return Declared(cls.__name__, *(getattr(cls, name) for name in _NEEDED))


def method_class(path: str, where: str = "method") -> type[Method]:
    """The class at an import path such as "models.amm:AMM"; UserError at `where` if there is none below the two roots."""
    match = _PATH.fullmatch(path)
    if not match:
        raise UserError(f"{where}: method {path!r} must look like models.file:Class or baselines.file:Class")
    from models.method import Method  # here, because it imports torch

    found = vars(_module(match[1], where))
    methods = {
        name: value
        for name, value in found.items()
        if isinstance(value, type) and issubclass(value, Method) and is_dataclass(getattr(value, "Config", None))
    }
    if match[2] in found and match[2] not in methods:
        raise UserError(f"{where}: {path} is not a Method with a Config dataclass")
    if match[2] not in methods:
        raise unknown(f"class in {match[1]}", match[2], methods, where)
    return methods[match[2]]


def _module(name: str, where: str) -> ModuleType:
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
    except (Exception, SystemExit) as error:  # whatever the file does
        raise UserError(f"{where}: {name} cannot be imported: {told(error)}") from None
    if not f"{name}.".startswith(f"{missing}."):
        raise UserError(f"{where}: {name} needs the module {missing!r}, which is not installed")
    root = importlib.import_module(name.partition(".")[0])
    raise unknown(
        "module", name, [f"{root.__name__}.{item.name}" for item in pkgutil.iter_modules(root.__path__)], where
    )


@cache
def _read(module: str, name: str) -> Declared | None:
    """What a class declares by its file's text; None where only an import can tell, or say what is wrong."""
    try:
        values: dict[str, Any] = {}
        for place, cls in _lineage(module, name):
            found = _definitions(cls.body)
            if "__init_subclass__" in found and place != "models.method":
                raise LookupError(name)  # it may set what it likes
            values |= {key: _evaluated(place, found, key) for key in _NEEDED if key in found and key not in values}
        described = Declared(name, **values)
        return described if is_dataclass(described.Config) else None
    except (Exception, SystemExit):  # whatever the statements do
        return None


def _lineage(module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The class and those that it inherits from, up to Method, each with its module; LookupError for anything unusual."""
    while True:
        module, _, cls = _statement(module, name)
        if not isinstance(cls, ast.ClassDef) or cls.decorator_list or cls.keywords:
            raise LookupError(name)
        yield module, cls
        if (module, cls.name) == ("models.method", "Method"):
            return
        (base,) = cls.bases
        name = ast.unparse(base)


def _evaluated(module: str, body: Mapping[str, ast.stmt], key: str) -> Any:
    """The value that an assignment of a class's body gives: a literal, or what a name of the module stands for."""
    statement = body[key]
    value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.Name) and value.id not in body:
        return _value(module, value.id)
    return ast.literal_eval(value)  # type: ignore[arg-type]  # None is refused there


@cache
def _value(module: str, name: str) -> Any:
    """What a name at the top of a module stands for, by its own statement and by those that this one needs."""
    module, name, statement = _statement(module, name)
    if isinstance(statement, ast.ImportFrom | ast.Import):
        return _imported(statement, name)
    known = _top(module)
    needed = sorted(_names(statement) & known.keys() - {name}, key=lambda each: known[each].lineno)
    space = {"__name__": module, "__file__": str(_file(module)), **{each: _value(module, each) for each in needed}}
    exec(compile(ast.Module([statement], []), module, "exec", dont_inherit=True), space)
    return space[name]


def _names(node: ast.AST, type_: bool = False) -> set[str]:
    """The names that a statement reads; LookupError for a type that is a text, which its module alone can resolve."""
    if isinstance(node, ast.Name):
        return {node.id}
    if type_ and isinstance(node, ast.Constant) and isinstance(node.value, str):
        raise LookupError(node.value)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):  # whose texts are values
        return _names(node.value)
    parts = ((name, part) for name, part in ast.iter_fields(node))
    inner = ((name, part) for name, found in parts for part in (found if isinstance(found, list) else [found]))
    return {
        name
        for field, part in inner
        if isinstance(part, ast.AST)
        for name in _names(part, type_ or field in ("annotation", "returns"))
    }


def _statement(module: str, name: str) -> tuple[str, str, ast.stmt]:
    """Where a name is defined: module, name there, and statement, followed through imports from our own packages."""
    statement = _top(module)[name]
    if isinstance(statement, ast.ImportFrom) and not statement.level and _PATH.fullmatch(f"{statement.module}:{name}"):
        return _statement(str(statement.module), _original(statement, name))
    return module, name, statement


def _original(statement: ast.ImportFrom | ast.Import, name: str) -> str:
    return next(alias.name for alias in statement.names if name in (alias.asname, alias.name))


def _imported(statement: ast.ImportFrom | ast.Import, name: str) -> Any:
    """What an import gives, of the standard library; LookupError for other libraries, which take their time."""
    original = _original(statement, name)
    source = "." * statement.level + str(statement.module) if isinstance(statement, ast.ImportFrom) else original
    if source.partition(".")[0] not in sys.stdlib_module_names:
        raise LookupError(source)
    found = importlib.import_module(source)
    return getattr(found, original) if isinstance(statement, ast.ImportFrom) else found


@cache
def _top(module: str) -> dict[str, ast.stmt]:
    """The statements at the top of a module's file, by the names that they define."""
    found = _definitions(ast.parse(_file(module).read_bytes()).body)
    for statement in found.values():
        made = statement.decorator_list if isinstance(statement, ast.ClassDef | ast.FunctionDef) else []
        if any(_is_ours(found.get(name)) for each in made for name in _names(each)):
            raise LookupError(f"line {statement.lineno}")  # such a decorator may enter things into a register
    return found


def _is_ours(statement: ast.stmt | None) -> bool:
    """Whether a name's statement defines it here, or imports it from our own packages."""
    if isinstance(statement, ast.ImportFrom | ast.Import):
        return "models" in (text := ast.unparse(statement)) or "baselines" in text
    return statement is not None


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Statements by the names that they define; LookupError where a name has two, or something else happens."""
    found: dict[str, ast.stmt] = {}
    for statement in body:
        for name in _defined(statement):
            if name in found:
                raise LookupError(name)
            found[name] = statement
    return found


def _defined(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ClassDef() | ast.FunctionDef():
            return [statement.name]
        case ast.Import(names=names) | ast.ImportFrom(names=names) if names[0].name != "*":
            return [alias.asname or alias.name for alias in names]
        case ast.Assign(targets=targets) if all(isinstance(target, ast.Name) for target in targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Expr(value=ast.Constant()):  # a docstring
            return []
    raise LookupError(f"line {statement.lineno}")
