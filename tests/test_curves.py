"""Curves for other programs: those of trials under way, those of records, as JSON lines and as TensorBoard's files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import curves, record
from bench.pool import Pool
from bench.suite import Trial
from bench.trial import Job, run

Captured = pytest.CaptureFixture[str]


class Stop:
    """Says no so many times, then yes."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _going(trial: Trial, out: Path, steps: int = 999) -> Any:
    """The trial under way, which yields before every step and is interrupted after so many."""
    job = Job(trial, "cpu", str(out), 1)
    return run(job, Stop(steps), Pool(1, torch.device("cpu"), lambda: False))  # type: ignore[arg-type]


def _steps(root: Path) -> list[int]:
    return [point["step"] for _, points in curves.curves({"yours": root}) for point in points]


def _point(step: int) -> dict[str, Any]:
    scores = {"majority": 10.0 - step}
    return {"step": step, "losses": {"d": 0.5}, "test": scores, "validation": scores}


@pytest.fixture
def trial(make_trial: Callable[..., Trial], toy: object) -> Trial:
    return make_trial(steps=12, validate=4)


def _left(root: Path, trial: Trial, steps: int) -> Path:
    """The curve that a trial under way has left, of `steps` points from 0 on."""
    place = record.record_path(root, trial)
    curves.keep(place, [_point(step) for step in range(steps)])
    return place.with_suffix(curves.LIVE)


def test_a_trial_under_way_shows_its_curve_and_its_record_takes_it_over(trial: Trial, tmp_path: Path) -> None:
    assert [_steps(tmp_path) for _ in _going(trial, tmp_path)] == [[]] * 4 + [[4]] * 4 + [[4, 8]] * 4
    place = record.record_path(tmp_path, trial)
    assert not place.with_suffix(curves.LIVE).exists()
    told = [json.loads(line) for line in curves.lines({"yours": tmp_path}).splitlines()]
    of = {"run": "yours", "suite": "small", "budget": "quick", "row": "toy", "seed": 0}
    assert told == [of | point for point in record.read(place)["result"]["curve"]] and len(told) == 3


def test_an_interrupted_trial_keeps_its_curve_and_a_resumed_one_goes_on_with_it(trial: Trial, tmp_path: Path) -> None:
    for _ in _going(trial, tmp_path, 6):
        pass
    assert record.read(record.record_path(tmp_path, trial))["status"] == "interrupted" and _steps(tmp_path) == [4]
    record.record_path(tmp_path, trial).with_suffix(curves.LIVE).unlink()
    assert [_steps(tmp_path) for _ in _going(trial, tmp_path)] == [[], [4]] + [[4, 8]] * 4


def test_a_record_counts_for_more_than_a_curve_left_behind(trial: Trial, tmp_path: Path) -> None:
    for _ in _going(trial, tmp_path):
        pass
    _left(tmp_path, trial, 9)
    assert _steps(tmp_path) == [4, 8, 12]


@pytest.mark.parametrize("text", [b'{"step": 1}\n{"st', b"\xff\n", b"[1]\n", b'{"losses": {}}\n', b"[" * 100_000])
def test_a_damaged_curve_is_passed_over_and_named(trial: Trial, tmp_path: Path, capsys: Captured, text: bytes) -> None:
    path = _left(tmp_path, trial, 3)
    path.write_bytes(text)
    assert _steps(tmp_path) == []
    assert capsys.readouterr().err == f"warning: {path}: is not a curve; remove it\n"


def test_what_lies_elsewhere_is_passed_over_and_named(tmp_path: Path, capsys: Captured) -> None:
    curves.keep(tmp_path / "seed00.json", [_point(1)])
    curves.keep(tmp_path / "a/b/c/seeds.json", [_point(1)])
    assert _steps(tmp_path) == []
    assert capsys.readouterr().err.count("is not at <suite>/<budget>/<row>/seed00.json") == 2


def _main(root: Path, *arguments: str | Path) -> int:
    where = ["--runs", str(root / "runs"), "--reference", str(root / "reference")]
    return curves.main([*map(str, arguments), *where])


def test_the_command_writes_every_point_of_both_roots(trial: Trial, tmp_path: Path) -> None:
    _left(tmp_path / "runs", trial, 2)
    _left(tmp_path / "reference", trial, 3)
    assert _main(tmp_path, tmp_path / "all.jsonl") == 0
    found = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(each["run"], each["step"]) for each in found] == [
        *(("reference", step) for step in range(3)),
        *(("yours", step) for step in range(2)),
    ]


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("default")  # tensorboard's own
def test_event_files_hold_each_point_once(trial: Trial, tmp_path: Path) -> None:
    _left(tmp_path / "runs", trial, 2)
    events = curves.Events(tmp_path / "board")
    where = {"yours": tmp_path / "runs"}
    assert events.add(where) == 2 and events.add(where) == 0
    _left(tmp_path / "runs", trial, 3)
    assert events.add(where) == 1
    _left(tmp_path / "shipped", trial, 5)  # another of the same name, and further
    assert events.add({"reference": tmp_path / "shipped"} | where) == 5
    _left(tmp_path / "runs", trial, 4)
    assert events.add({"reference": tmp_path / "shipped"} | where) == 1
    found = _scalars(tmp_path / "board/yours/small/quick/toy/seed00")
    assert found["test/majority"] == [(0, 10.0), (1, 9.0), (2, 8.0), (3, 7.0)]
    assert found.keys() == {"losses/d", "test/majority", "validation/majority"}


@pytest.mark.filterwarnings("default")
def test_a_folder_that_cannot_be_written_is_one_line(trial: Trial, tmp_path: Path, capsys: Captured) -> None:
    _left(tmp_path / "runs", trial, 2)
    (tmp_path / "file").write_text("kept")
    assert _main(tmp_path, "--tensorboard", tmp_path / "file/board") == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"error: --tensorboard {tmp_path / 'file/board'}: cannot write there (Not a directory); choose another folder\n"
    )


def test_without_tensorboard_one_line_says_what_to_install(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert _main(tmp_path, "--tensorboard", tmp_path / "board") == 2
    assert "pip install tensorboard" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name either a file for JSON lines or --tensorboard DIR"),
        (["a.jsonl", "--tensorboard", "b"], "name either a file"),
        (["a.jsonl", "--watch", "3"], "--watch: goes with --tensorboard"),
        (["--tensorboard", "new", "--watch", "nan"], "--watch: expected seconds above 0"),
        (["--tensorboard", "new", "--watch", "1e10"], "--watch: expected seconds above 0, at most 31622400, got"),
        (["a.jsonl"], "no curve below"),
        (["--tensorboard", "new"], "no curve below"),
        (["--tensorboard", "full"], "is not an empty folder"),
        (["--tensorboard", "full/file"], "is not an empty folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    assert _main(tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]
