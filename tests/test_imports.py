"""Imports point one way: models.method <- models.* <- baselines.*; the bench reaches a method by name alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for package in ("models", "baselines", "bench") for path in (ROOT / package).rglob("*.py"))
# no method, so baselines may import them; what each may import itself
SHARED: dict[str, set[str]] = {
    "baselines.losses": set(),
    "baselines.blocks": set(),
    "baselines.nets": {"baselines.blocks"},
    "baselines.perturbation": set(),
    "baselines.adam": set(),
    "baselines.pretraining": {"baselines.losses"},
    "baselines.gar": set(),
    "baselines.pca": set(),
    "baselines.codes": set(),
    "baselines.feature_matching": {"baselines.blocks", "baselines.losses", "baselines.nets"},
    "baselines.pairs": {"baselines.losses", "baselines.nets"},
    "baselines.pair_nets": {"baselines.blocks", "baselines.nets"},
}
HEAVY = {"pandas", "matplotlib", "tabulate"}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _package(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).parent.parts)


def _targets(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Modules that one statement may import; `from a import b` may mean a.b, so both are named."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)


def _imports(path: Path, source: str | None = None) -> set[str]:
    """Everything that a file imports anywhere, functions included."""
    tree = ast.parse(source if source is not None else path.read_text(encoding="utf-8"))
    return {target for node in ast.walk(tree) for target in _targets(node, _package(path))}


def _at_import(statements: list[ast.stmt], package: list[str]) -> Iterator[str]:
    """What runs when the module is imported: not the bodies of functions, nor what only a type checker reads."""
    for node in statements:
        yield from _targets(node, package)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for field in ("orelse", "finalbody") if checked else ("body", "orelse", "finalbody"):
            yield from _at_import(getattr(node, field, []), package)
        for handler in getattr(node, "handlers", []):
            yield from _at_import(handler.body, package)


def _module_level(path: Path, source: str | None = None) -> set[str]:
    tree = ast.parse(source if source is not None else path.read_text(encoding="utf-8"))
    return set(_at_import(tree.body, _package(path)))


def _below(target: str, *packages: str) -> bool:
    return any(target == package or target.startswith(package + ".") for package in packages)


def _wrong(path: Path, imported: set[str]) -> set[str]:
    """The imports that the layering forbids to this file."""
    name = _name(path)
    if _below(name, "models"):
        return {t for t in imported if _below(t, "baselines", "bench")}
    if _below(name, "baselines"):
        allowed = (name, *SHARED.get(name, set(SHARED)))
        other = {t for t in imported if t.startswith("baselines.") and not _below(t, *allowed)}
        return {t for t in imported if _below(t, "bench")} | other
    if name == "bench.gains":  # takes measures for speed out of the models, one after another, so it must know them
        return {t for t in imported if _below(t, "baselines")}
    allowed = ("models.method", "models.noise")
    named = {t for t in imported if t.startswith("models.")}  # the bare package is empty
    return {t for t in imported if _below(t, "baselines")} | {t for t in named if not _below(t, *allowed)}


def test_there_are_files_to_walk() -> None:
    names = {_name(path) for path in FILES}
    assert {"models.amm", "models.layers", "models.method", "models.noise", "bench"} <= names


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    assert _wrong(path, _imports(path)) == set()


def test_models_method_stands_at_the_bottom() -> None:
    allowed = {"models.noise"}
    imported = {t for t in _imports(ROOT / "models" / "method.py") if _below(t, "models", "baselines", "bench")}
    assert {t for t in imported if not _below(t, *allowed)} == set()
    assert not {t for t in _imports(ROOT / "models" / "noise.py") if _below(t, "models", "baselines", "bench")}


def _training_files() -> list[Path]:
    """models, baselines, and the trainer with whatever of the bench it imports, directly or not."""
    by_name = {_name(path): path for path in FILES}
    found = {name for name in by_name if _below(name, "models", "baselines")}
    waiting = [name for name in ("bench.trainer",) if name in by_name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [target for target in _module_level(by_name[name]) if target in by_name]
    return [by_name[name] for name in sorted(found)]


@pytest.mark.parametrize("path", _training_files(), ids=_name)
def test_training_does_not_load_what_tables_and_figures_need(path: Path) -> None:
    assert {t for t in _module_level(path) if t.split(".")[0] in HEAVY} == set()


@pytest.mark.parametrize(
    ("where", "source", "bad"),
    [
        ("models/a.py", "def f():\n    from bench.errors import UserError", True),
        ("models/a.py", "from models import layers", False),
        ("models/a.py", "import benchmark", False),
        ("models/a.py", "from baselines import vae", True),
        ("baselines/a.py", "from baselines import b", True),
        ("baselines/a.py", "from . import b", True),
        ("baselines/a.py", "from .b import c", True),
        ("baselines/a.py", "from baselines.losses import real_logit", False),
        ("baselines/a.py", "from baselines.feature_matching import feature_matching", False),
        ("baselines/a.py", "import bench", True),
        ("baselines/a.py", "from baselines.nets import conv_small", False),
        ("baselines/a.py", "from baselines import nets", False),
        ("baselines/a.py", "from baselines import nets, b", True),
        ("baselines/nets.py", "from baselines.b import c", True),
        ("baselines/nets.py", "from baselines.pairs import real", True),
        ("baselines/pair_nets.py", "from baselines.nets import Chain", False),
        ("baselines/a.py", "from models.layers import Net", False),
        ("bench/a.py", "from models.method import Spec", False),
        ("bench/a.py", "from models import noise", False),
        ("bench/a.py", "from models.noise import Noise\nfrom models import amm", True),
        ("bench/a.py", "import models.amm", True),
        ("bench/a.py", "from models.amm import AMM", True),
        ("bench/a.py", "if True:\n    import baselines.vade", True),
    ],
)
def test_a_wrong_import_is_seen(where: str, source: str, bad: bool) -> None:
    path = ROOT / where
    assert bool(_wrong(path, _imports(path, source))) is bad


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pandas as pd", {"pandas"}),
        ("try:\n    import pandas\nexcept ImportError:\n    import tabulate", {"pandas", "tabulate"}),
        ("class A:\n    import matplotlib.pyplot", {"matplotlib.pyplot"}),
        ("def f():\n    import pandas", set()),
        ("if TYPE_CHECKING:\n    import pandas\nelse:\n    import tabulate", {"tabulate"}),
    ],
)
def test_module_level_means_what_runs_at_import(source: str, found: set[str]) -> None:
    assert _module_level(ROOT / "models" / "a.py", source) == found
