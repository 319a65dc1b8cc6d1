"""Strict YAML: text -> mappings that remember their lines -> typed dataclasses; each mistake is one `UserError`.

YAML 1.1 reads `1e-4` as text, `no` as false, `010` as 8 and `10:30` as 630, and keeps the last of two equal keys. Here a
number is a number, only `true` and `false` are booleans, and whatever is ambiguous is refused with its file and line.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.composer import ComposerError

from bench.errors import UserError, unread

MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 1_000_000, 20, 18
T = TypeVar("T")


class Section(dict[str, Any]):
    """A mapping of a file that knows the file, its own first line, and the line of each key; no file: made by code."""

    def __init__(self, items: Any = (), file: str = "", line: int = 0, lines: Mapping[str, int] | None = None) -> None:
        super().__init__(items)
        self.file = file
        self.line = line
        self.lines = dict(lines or {})

    def where(self, key: str = "") -> str:
        """ "file:line" of `key`; of the mapping itself without a key or with one that it lacks."""
        return f"{self.file}:{self.lines.get(key, self.line)}"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser without tags, anchors, aliases, deep nesting, and the implicit types of YAML 1.1."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ComposerError(None, None, "anchors and aliases are not allowed; write the value out", mark)
        if event.tag is not None:
            raise ComposerError(None, None, f"the tag {reprlib.repr(event.tag)} is not allowed; drop it", mark)
        if self.depth >= MAX_DEPTH:
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_Loader.yaml_implicit_resolvers = {}  # its own, empty: not those of the parent
for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("padded", rf"(?=[-+]?0[0-9]){_NUMBER}", list("-+0")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", _NUMBER, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def load(path: str | Path) -> Section:
    """The mapping in the YAML file `path` (UTF-8, at most 1 MB). UserError: unreadable, malformed, ambiguous."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unread(error, path, "check the path") from None
    except ValueError as error:  # a path with a null character
        raise UserError(f"{path}: is no path: {error}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes; is this the right file?")
    try:
        return loads(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None


def loads(text: str, name: str) -> Section:
    """The mapping in the YAML `text`; `name` stands for the file in errors."""
    if "\t" in text:
        line = text.count("\n", 0, text.index("\t")) + 1
        raise UserError(f"{name}:{line}: a tab is not allowed in YAML; use spaces")
    value = _value(_compose(text, name), name)
    if not isinstance(value, Section):
        raise UserError(f"{name}:1: expected keys and values at the top, got {_show(value)}")
    return value


@lru_cache(maxsize=64)  # suites are read again and again, and this is nine tenths of it; nobody changes the nodes
def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join((error.problem or error.context or "not YAML").split())
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}:{line}: the character {chr(error.character)!a} is not allowed") from None
    except (ValueError, OverflowError):
        # PyYAML lets these through for escapes beyond Unicode and for directives with huge numbers.
        raise UserError(f"{name}:1: an escape or directive with an impossible number") from None


def _value(node: yaml.Node | None, name: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _section(node, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, name) for item in node.value]
    return _scalar(node.tag, node.value, f"{name}:{node.start_mark.line + 1}") if node else None


def _section(node: yaml.MappingNode, name: str) -> Section:
    section = Section((), name, node.start_mark.line + 1)
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _value(key_node, name)
        if not isinstance(key, str):
            raise UserError(f"{name}:{line}: a key must be text, got {_show(key)}; put it in quotes")
        if key in section:
            raise UserError(f"{name}:{line}: duplicate key {key!r}, first on line {section.lines[key]}; remove one")
        section[key], section.lines[key] = _value(value_node, name), line
    return section


def _scalar(tag: str, text: str, where: str) -> Any:
    if tag == "padded":
        raise UserError(f"{where}: the number {_show(text)} starts with 0; drop the zero, or quote it if it is text")
    if tag in ("int", "float"):
        return _number(tag, text, where)
    if tag in ("null", "bool"):
        return {"true": True, "false": False}.get(text)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: {_show(text)} holds half of a surrogate pair, which is no character")
    return text


def _number(tag: str, text: str, where: str) -> int | float:
    if (tag == "int" and len(text) > MAX_DIGITS) or math.isinf(float(text)):
        raise UserError(f"{where}: the number {_show(text)} is too large")
    return int(text) if tag == "int" else float(text)


def unknown(what: str, name: str, choices: Iterable[str], where: str) -> UserError:
    """The error for a `name` that is none of `choices`: it lists them and says which one may be meant."""
    known = list(choices)
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"{where}: unknown {what} {_show(name)}; {hint}choices: {', '.join(known) or 'none'}")


def build(cls: type[T], section: Mapping[str, Any], where: str = "") -> T:
    """The dataclass `cls` from `section`, each value checked against the annotation of its field.

    A field annotated `Section` receives the mapping itself, for the lines of later errors. `where` is the place of a
    mapping that has no file. A ValueError of `__post_init__` becomes a UserError at the key that its first word names.
    """
    origin = section if isinstance(section, Section) and section.file else None
    spot = lambda key="": where if origin is None else origin.where(key)
    hints = _hints(cls)  # type: ignore[arg-type]
    known = {item.name: item for item in fields(cls) if item.init and hints[item.name] is not Section}  # type: ignore[arg-type]
    values = {name: origin for name, hint in hints.items() if hint is Section and origin is not None}
    for key, value in section.items():
        if key not in known:
            raise unknown("key", key, known, spot(key))
        values[key] = convert(hints[key], value, f"{spot(key)}: {key}")
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{spot()}: the key {name!r} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{spot(reason.partition(' ')[0])}: {reason}") from None


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """The annotations of `cls`; looking them up costs more than checking a value against them."""
    return get_type_hints(cls)


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it: lists become tuples, int becomes float, a bool never a number."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _either(args, value, where)
    if origin is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if origin is Literal and any(type(value) is type(arm) and value == arm for arm in args):
        return value
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return _items(origin, args, value, where)
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return _entries(args[1] if args else Any, value, where)
    if origin in (bool, int, str, NoneType) and type(value) is origin:
        return value
    raise UserError(f"{where}: expected {_wanted(hint)}, got {_show(value)}")


def _either(arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in arms:
        return None
    rest = [arm for arm in arms if arm is not NoneType]
    if len(rest) == 1:
        return convert(rest[0], value, where)
    for arm in rest:
        with suppress(UserError):
            return convert(arm, value, where)
    raise UserError(f"{where}: expected {' or '.join(map(_wanted, arms))}, got {_show(value)}")


def _items(origin: Any, args: tuple[Any, ...], value: Iterable[Any], where: str) -> Any:
    items = list(value)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {len(items)}")
        return tuple(convert(arm, item, where) for arm, item in zip(args, items, strict=True))
    return origin(convert(args[0] if args else Any, item, where) for item in items)


def _entries(arm: Any, value: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(value, Section):
        return {key: convert(arm, item, f"{where}: {key!r}") for key, item in value.items()}
    items = {key: convert(arm, item, f"{value.where(key)}: {key!r}") for key, item in value.items()}
    return Section(items, value.file, value.line, value.lines)


def _wanted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
    return names.get(hint) or ("a list" if (get_origin(hint) or hint) in (tuple, list) else "a mapping of keys")


def _show(value: Any) -> str:
    """`value` on one short line, for an error."""
    return "a mapping" if isinstance(value, Mapping) else reprlib.repr(value)
