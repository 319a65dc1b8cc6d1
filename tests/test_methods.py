"""What a method declares is the same read from its file as from its import; what cannot be read is left to the import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from bench import methods, run
from bench.errors import UserError
from bench.methods import Declared, declared, method_class
from bench.provenance import ROOT
from bench.suite import SUITES, load_suite, names

PATHS = sorted({row.method for name in names() for row in load_suite(name).rows})
MINE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from models.method import Method
from models.prior import Kind as Prior

WIDTHS = (3, 4)

@dataclass(frozen=True)
class MineConfig:
    components: int = len(WIDTHS)
    widths: tuple[int, ...] = WIDTHS
    prior: Prior = "learned"
    mode: Literal["one", "two"] = "one"

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError("components must be at least 1")

class Mine(Method):
    Config = MineConfig
    needs_labels = True
"""


@pytest.fixture(autouse=True)
def _forget() -> Any:
    """Nothing read of a test's own files outlives it."""
    yield
    for function in (methods._read, methods._value, methods._top):
        function.cache_clear()
    sys.modules.pop("baselines.mine", None)


def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Declared | None:
    """What is read of the class Mine in baselines/mine.py below a root of the test's own, beside the true models."""
    methods._read.cache_clear()
    methods._value.cache_clear()
    methods._top.cache_clear()
    (tmp_path / "baselines").mkdir(exist_ok=True)
    if not (tmp_path / "models").exists():
        (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "baselines/mine.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    return methods._read("baselines.mine", "Mine")


@pytest.mark.parametrize("path", PATHS)
def test_what_is_read_of_a_method_is_what_its_import_gives(path: str) -> None:
    read, cls = methods._read(*path.split(":")), method_class(path)
    if read is None:
        pytest.skip("its file does more than define things, and is imported")
    assert (read.name, read.iterative, read.needs_labels) == (cls.__name__, cls.iterative, cls.needs_labels)
    assert read.Config is not cls.Config and read.Config() == read.Config()
    told = [
        [(item.name, item.default, item.default_factory is MISSING, hints[item.name]) for item in fields(config)]
        for config in (read.Config, cls.Config)
        for hints in (get_type_hints(config),)
    ]
    assert told[0] == told[1]
    assert (read.Config.__module__, read.Config.__name__) == (cls.Config.__module__, cls.Config.__name__)


def test_a_class_is_read_with_what_its_statements_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _written(tmp_path, monkeypatch, MINE)
    assert found is not None and (found.name, found.iterative, found.needs_labels) == ("Mine", True, True)
    assert (found.Config().components, found.Config().widths, found.Config().prior) == (2, (3, 4), "learned")
    with pytest.raises(ValueError, match="components must be at least 1"):
        found.Config(components=0)
    heir = MINE + "\nclass Heir(Mine):\n    iterative = False\n"
    _written(tmp_path, monkeypatch, heir)
    read = methods._read("baselines.mine", "Heir")
    assert read is not None and (read.name, read.iterative, read.needs_labels) == ("Heir", False, True)


def test_what_statements_read_besides_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINE.replace(
        "WIDTHS = (3, 4)",
        """
from itertools import count
from pathlib import Path

numbers = count(3)
WIDTHS = (next(numbers), 4)
DEEP = next(numbers)

def here():
    return Path(__file__).name
""",
    ).replace(
        "    prior: Prior",
        "    depth: int = DEEP\n    name: str = here()\n    prior: Prior",
    )
    found = _written(tmp_path, monkeypatch, text)
    assert found is not None
    config = found.Config()
    assert (config.widths, config.depth, config.name) == ((3, 4), 4, "mine.py")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\nWIDTHS", "\nimport torch\nWIDTHS = torch.Size([3, 4])\nOTHER"),  # needs another library
        ("len(WIDTHS)", "len(UNKNOWN)"),
        ("from typing import", "from .typing import"),  # a module of ours by the name of the standard library's
        ("WIDTHS = (3, 4)", "from math import *\nWIDTHS = (3, 4)"),  # names that cannot be told
        ("WIDTHS = (3, 4)", "WIDTHS = (3, 4)\nWIDTHS = (5,)"),  # two definitions
        ("WIDTHS = (3, 4)", "if True:\n    WIDTHS = (3, 4)"),
        ("class Mine(Method)", "MineConfig.components = 7\n\nclass Mine(Method)"),  # something happens
        ("class Mine(Method)", "print()\n\nclass Mine(Method)"),
        ("class Mine(Method)", "@dataclass\nclass Mine(Method)"),
        ("class Mine(Method)", "class Mine(Method, metaclass=type)"),
        ("class Mine(Method)", "class Mine(Method, object)"),
        ("class Mine(Method)", "class Mine(object)"),
        ("class Mine(Method)", "class Mine"),
        ("class Mine(Method)", "class Yours(Method)"),
        ("class Mine(Method)", "class Mine(Method"),
        ("    Config = MineConfig\n", ""),
        ("    Config = MineConfig\n", "    class Config:\n        components = 1\n"),
        ("    Config = MineConfig\n", "    Config = MineConfig\n    Config = MineConfig\n"),
        ("    Config = MineConfig\n", "    if True:\n        Config = MineConfig\n"),
        ("    Config = MineConfig\n", "    Config = WIDTHS\n"),
        ("needs_labels = True", "needs_labels = bool(1)"),
        ("needs_labels = True", "supervised = True\n    needs_labels = supervised"),  # a name of the class's own
        ("needs_labels = True", "def __init_subclass__(cls):\n        cls.needs_labels = False"),
        ("WIDTHS = (3, 4)", "def enter(f): return f\n\n@enter\ndef small(): ...\n\nWIDTHS = (3, 4)"),  # a register
        ("widths: tuple[int, ...]", "widths: tuple['int', ...]"),  # a type that is a text
        ("components: int = len(WIDTHS)", "components: int = 1 / 0"),
        ("components: int = len(WIDTHS)", "components: int = exit()"),
        ("components: int = len(WIDTHS)", "components: int = Mine.iterative"),  # in a circle
    ],
)
def test_what_cannot_be_read_for_sure_is_left_to_the_import(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _written(tmp_path, monkeypatch, MINE) is not None
    assert MINE.count(old) == 1
    assert _written(tmp_path, monkeypatch, MINE.replace(old, new)) is None


def test_a_method_that_can_be_read_and_not_imported_stops_a_run_before_its_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import baselines

    assert _written(tmp_path, monkeypatch, MINE + "\nGONE = undefined\n") is not None
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path / "baselines")])
    monkeypatch.setattr("bench.dispatch.Dispatcher.run", lambda *_: pytest.fail("no trial may be started"))
    suite = tmp_path / "mine.yaml"
    text = (SUITES / "digits_semi.yaml").read_text(encoding="utf-8").partition("rows:")[0]
    rows = "rows:\n  - {row: mine, label: Mine, method: 'baselines.mine:Mine', config: {components: 10}}\n"
    suite.write_text(text.replace("digits_semi", "mine") + rows, encoding="utf-8")
    command = ["--suite", str(suite), "--seeds", "0", "--device", "cpu", "--out", str(tmp_path / "runs")]
    assert run.main(["status", *command]) == 0
    for more in ([], ["--dry-run"]):
        assert run.main([*command, *more]) == 2
    line = "error: mine/mine: baselines.mine cannot be imported: NameError: name 'undefined' is not defined (mine.py:"
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 2 and all(each.startswith(line) for each in found)


def test_what_a_file_prints_when_imported_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import baselines

    _written(tmp_path, monkeypatch, MINE + "\nprint('hello')\n")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path / "baselines")])
    method_class("baselines.mine:Mine")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_module_that_is_there_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = method_class("baselines.kmeans:KMeans")
    assert declared("baselines.kmeans:KMeans") == Declared("KMeans", cls.Config, False, False)
    monkeypatch.delitem(sys.modules, "baselines.kmeans")
    assert declared("baselines.kmeans:KMeans").Config.__qualname__ == "KMeansConfig"
    assert "baselines.kmeans" not in sys.modules


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("baselines.kmeans", "must look like models.file:Class"),
        ("baselines.kmean:KMeans", "unknown module 'baselines.kmean'; did you mean 'baselines.kmeans'"),
        ("baselines.kmeans:KMean", "unknown class in baselines.kmeans 'KMean'; did you mean 'KMeans'"),
        ("baselines.kmeans:KMeansConfig", "is not a Method with a Config dataclass"),
    ],
)
def test_what_is_wrong_with_a_path_the_import_says(path: str, part: str) -> None:
    with pytest.raises(UserError, match=f"^row one: .*{part}"):
        declared(path, "row one")


def test_a_table_and_a_status_come_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from bench import run, table; table.main(['--suite', 'mnist_unsup']); "
        "run.main(['--suite', 'svhn_semi', 'status', '--out', sys.argv[1]]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "False")
    assert "| AMM, modified settings" in done.stdout and "supervised_all       10 pending" in done.stdout
