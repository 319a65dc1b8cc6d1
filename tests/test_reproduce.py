"""The one command for a table: it asks before a long run, writes what there is, and says what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from bench import reproduce, run
from bench.cli import closed
from bench.plan import trials
from bench.record import new_record, record_path, write
from bench.suite import load_suite

SUITE = """
suite: tiny_unsup
title: Tiny
artefact: ours
data: synthetic
task: clustering
metric: test.majority
validation: 100
seeds: 0-2
margin: 1.0
batch: 50
budgets:
  paper: {steps: 4, validate: 2, comparable: true}
rows:
  - row: kmeans
    label: k-means
    method: baselines.kmeans:KMeans
    config: {components: 3}
  - row: aae
    label: AAE
    method: baselines.aae:AAE
    config: {components: 3, hidden: 8, z_dim: 2}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table of one tiny suite, and the options that keep everything below tmp_path."""
    path = tmp_path / "tiny_unsup.yaml"
    path.write_text(SUITE)
    monkeypatch.setitem(reproduce.TABLES, "table1", (str(path),))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    (tmp_path / "reference").mkdir()
    where = ["--out", str(tmp_path / "runs"), "--reference", str(tmp_path / "reference")]
    return ["table1", "--device", "cpu", *where, "--results", str(tmp_path / "results")]


def test_it_asks_first_on_a_cpu(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(tiny) == 2
    said = capsys.readouterr().err
    assert re.search(r"6 trials on the CPU: about \d+ s, and \d trials that learn at once, not timed\.", said)
    assert "tiny_unsup/kmeans: learns at once" in said
    assert re.search(r"tiny_unsup/aae: [\d.e-]+ s a step x 4 steps", said)  # each row's cost, before the sum
    assert "add --yes" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2), ("no", 2)])
def test_a_person_decides(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    monkeypatch.setattr("bench.run.main", lambda arguments: 0)
    assert reproduce.main(tiny) == code
    assert (tmp_path / "results" / "table1.md").exists() == (code == 0)


def _press(key: type[BaseException]) -> Callable[..., NoReturn]:
    def press(*_: object) -> NoReturn:
        raise key

    return press


@pytest.mark.parametrize(
    ("where", "key", "code"),
    [
        ("builtins.input", EOFError, 2),
        ("builtins.input", KeyboardInterrupt, 130),
        ("bench.reproduce.total", KeyboardInterrupt, 130),
        ("bench.run.require", KeyboardInterrupt, 130),
    ],
)
def test_ctrl_d_is_no_and_ctrl_c_leaves(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    key: type[BaseException],
    code: int,
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("bench.reproduce.total", lambda *_: (1.0, 0))
    monkeypatch.setattr(where, _press(key))
    assert closed(lambda: reproduce.main(tiny)) == code
    assert ("error: not started" in capsys.readouterr().err) == (code == 2)
    assert not (tmp_path / "results").exists() and not (tmp_path / "runs").exists()


def test_tables_that_could_not_be_written_are_known_before_anything_runs(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert reproduce.main([*tiny, "--yes", "--results", str(tmp_path / "file/x")]) == 2
    said = capsys.readouterr().err
    assert (
        said == f"error: --results {tmp_path / 'file/x'}: cannot write there (Not a directory); choose another folder\n"
    )
    assert not (tmp_path / "runs").exists()


def test_it_runs_and_writes_the_tables(tiny: list[str], tmp_path: Path) -> None:
    assert reproduce.main([*tiny, "--yes", "--workers", "1"]) == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert sorted(written) == ["table1.csv", "table1.md", "table1.tex"]
    assert b"(3)" in written["table1.md"]  # three trials in a cell
    assert reproduce.main(tiny) == 0  # nothing left to run, so nothing to ask
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()} == written


def test_the_reference_is_read_where_it_lies_and_not_where_the_tables_go(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.run.main", lambda arguments: 0)
    for trial in trials(load_suite(tmp_path / "tiny_unsup.yaml"), "paper", ["kmeans"]):
        result = {"last": {"step": 0, "test": {"majority": 3.0 + trial.seed}}}
        write(record_path(tmp_path / "reference", trial), new_record(trial, "done", None, result))
    assert reproduce.main([*tiny, "--yes"]) == 0
    assert "4.00 ± 1.00 (3)" in (tmp_path / "results/table1.md").read_text()


def test_the_references_own_place_is_the_default(
    two: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[Path] = []
    monkeypatch.setattr(reproduce, "texts", lambda names, budget, *rest: roots.extend(rest[:2]) or ["", "", ""])
    assert reproduce.main(["table1", "--yes", "--out", str(tmp_path), "--results", str(tmp_path / "x")]) == 0
    assert roots == [tmp_path, Path("results/reference")]


@pytest.mark.parametrize("option", ["--dry-run", "--print-commands", "status"])
def test_what_only_asks_asks_nothing_and_writes_nothing(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert reproduce.main([*tiny, option, "--time-budget", "9m"]) == 0
    said = capsys.readouterr()
    assert not (tmp_path / "results").exists() and "No GPU" not in said.err
    if option == "--print-commands":
        lines = said.out.splitlines()
        assert len(lines) == 6 and all(line.startswith("cd ") and " -m bench.run " in line for line in lines)
        assert said.err == "" and all("--time-budget 9m" in line for line in lines)


def test_an_absurd_number_is_refused_before_anything_is_timed(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main([*tiny, "--checkpoint-every", "inf"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_option_is_an_error(tiny: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        reproduce.main([*tiny, "--no-such-option"])
    assert error.value.code == 2


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Table 1 of two shipped suites whose runs do nothing; the arguments of each run."""
    calls: list[list[str]] = []
    monkeypatch.setitem(reproduce.TABLES, "table1", ("plane_unsup", "digits_unsup"))
    _pretend(monkeypatch, calls, [0, 0])
    return calls


def _pretend(monkeypatch: pytest.MonkeyPatch, calls: list[list[str]], codes: list[int]) -> None:
    """Replaces `bench.run` by one that notes its arguments and returns these codes, over and over."""

    def main(arguments: list[str]) -> int:
        calls.append(arguments)
        return codes[(len(calls) - 1) % len(codes)]

    monkeypatch.setattr("bench.run.main", main)


def _suites(calls: list[list[str]]) -> list[str]:
    return [arguments[arguments.index("--suite") + 1] for arguments in calls]


def test_all_suites_of_a_table_run_and_one_may_be_chosen(two: list[list[str]], tmp_path: Path) -> None:
    common = ["table1", "--yes", "--out", str(tmp_path), "--results", str(tmp_path)]
    assert reproduce.main(common) == 0 and _suites(two) == ["plane_unsup", "digits_unsup"]
    assert "Six Gaussians" in (text := (tmp_path / "table1.md").read_text()) and "Digits" in text
    two.clear()
    assert reproduce.main([*common, "--suite", "digits_unsup"]) == 0 and _suites(two) == ["digits_unsup"]


def test_a_suite_of_another_table_is_refused(two: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["table1", "--yes", "--suite", "digits_unsupp"]) == 2
    assert "digits_unsup" in capsys.readouterr().err and not two


@pytest.mark.parametrize(("first", "called", "code"), [(130, 1, 130), (2, 1, 2), (3, 2, 3), (1, 2, 1)])
def test_a_signal_ends_all_suites_and_a_failure_only_its_own(
    two: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, called: int, code: int
) -> None:
    _pretend(monkeypatch, two, [first, 0])
    options = ["table1", "--yes", "--out", str(tmp_path), "--results", str(tmp_path)]
    assert reproduce.main(options) == code
    assert len(two) == called and (tmp_path / "table1.md").exists() == (code != 2)


def test_what_ends_all_suites_is_the_outcome(
    two: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, two, [3, 2])
    assert reproduce.main(["table1", "--yes", "--out", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert len(two) == 2 and not (tmp_path / "table1.md").exists()


@pytest.mark.parametrize(
    ("given", "left"),
    [("1m", [60, 20]), ("41s", [41, 1]), ("300h", [1_080_000, 1_079_960]), ("999999h", [3599996400, 3599996360])],
)
def test_the_time_budget_is_for_all_suites_together(
    two: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, left: list[int]
) -> None:
    clock = iter([100.0, 100.0, 140.0])
    monkeypatch.setattr("bench.reproduce.time.monotonic", lambda: next(clock))
    where = ["--out", str(tmp_path), "--results", str(tmp_path)]
    assert reproduce.main(["table1", "--yes", *where, "--time-budget", given, "--device", "cpu"]) == 0
    assert [round(run.parse_duration(arguments[-1])) for arguments in two] == left
