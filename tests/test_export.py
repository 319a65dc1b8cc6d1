"""What other programs get: a CSV of all records, weights as safetensors, and a schema that every record fits."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from bench import checkpoint, export, record
from bench.suite import Trial
from bench.trainer import Run

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "docs/record.schema.json").read_text())


@pytest.fixture
def stored(tmp_path: Path, make_trial) -> Path:  # type: ignore[no-untyped-def]
    """The record of a k-means trial and its weights."""
    trial: Trial = replace(make_trial(), method="baselines.kmeans:KMeans", config={"components": 3, "n_init": 1})
    run = Run(trial, torch.device("cpu"))
    run.advance(lambda: False, lambda step, steps: None, lambda run: None)
    path = record.record_path(tmp_path / "runs", trial)
    about = {"seconds": 1.5, "resumed": 0}
    record.write(path, record.new_record(trial, "done", result=run.result(), data={"name": "synthetic"}, run=about))
    checkpoint.save(path.with_suffix(".weights"), {"digest": trial.digest, "module": run.method.state_dict()})
    return path


def test_records_become_lines(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.csv"
    (tmp_path / "none").mkdir()
    arguments = ["records", str(out), "--runs", str(tmp_path / "runs"), "--reference", str(tmp_path / "none")]
    assert export.main(arguments) == 0
    frame = pandas.read_csv(out)
    told = record.read(stored)
    assert len(frame) == 1 and frame["trial.config.components"][0] == 3 and frame["run.seconds"][0] == 1.5
    assert frame["result.last.test.majority"][0] == pytest.approx(told["result"]["last"]["test"]["majority"])
    assert not [name for name in frame.columns if "curve" in name or "confusion" in name]


def test_weights_come_back(stored: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    out = tmp_path / "model.safetensors"
    assert export.main(["model", str(stored), str(out)]) == 0
    with safetensors.safe_open(out, "pt") as file:
        state = checkpoint.read(stored.with_suffix(".weights"))
        assert state is not None and torch.equal(file.get_tensor("centres"), state["module"]["centres"])
        assert json.loads(file.metadata()["trial"])["config"]["components"] == 3


def test_bad_input_is_one_line(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    empty = ["--runs", str(tmp_path / "x"), "--reference", str(tmp_path / "x")]
    assert export.main(["records", str(tmp_path / "out.csv"), *empty]) == 2
    assert "no record below" in capsys.readouterr().err
    assert export.main(["model", str(tmp_path / "seed00.json"), str(tmp_path / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert export.main(["model", str(stored), str(tmp_path / "out")]) == 2
    assert "pip install safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.csv").exists()


def test_a_record_counts_once_and_in_its_place_alone(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.with_name("seed00 (copy).json").write_bytes(stored.read_bytes())
    text = export.records([tmp_path / "runs", tmp_path])  # the first lies below the second
    assert list(pandas.read_csv(io.StringIO(text))["path"]) == [stored.as_posix()]
    said = capsys.readouterr().err
    assert "seed00 (copy).json: holds the trial of " in said and said.count("\n") == 1


def test_a_damaged_record_is_left_out_and_said(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.with_name("seed01.json").write_text("{")
    text = export.records([tmp_path / "runs"])
    assert len(pandas.read_csv(io.StringIO(text))) == 1 and "seed01.json: is not JSON" in capsys.readouterr().err


def test_every_record_fits_the_schema(stored: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    committed = sorted((ROOT / "results/reference").rglob("seed*.json"))
    assert len(committed) > 100
    for path in (stored, *committed):
        assert not [error.message for error in check.iter_errors(_thinned(json.loads(path.read_text())))], path


def _thinned(value: Any) -> Any:
    """Of every list one item of each kind: a curve's hundreds are alike to the schema, and take five times as long."""
    if isinstance(value, dict):
        return {key: _thinned(item) for key, item in value.items()}
    return (
        [_thinned(item) for item in {_kind(item): item for item in value}.values()]
        if isinstance(value, list)
        else value
    )


def _kind(value: Any) -> Any:
    """What the schema can tell of a value: names, types and signs; texts as they are."""
    if isinstance(value, dict):
        return tuple((key, _kind(item)) for key, item in value.items())
    if isinstance(value, list):
        return frozenset(map(_kind, value))
    return (type(value), value < 0) if isinstance(value, int | float) else value


def test_one_odd_item_among_many_is_kept_for_the_schema() -> None:
    curve = [{"step": step, "losses": {"d": 0.5}} for step in range(99)]
    odd: list[Any] = [{"step": -1, "losses": {"d": 0.5}}, {"step": 1}, {"step": 1.5, "losses": {"d": 0.5}}]
    for item in odd:
        thinned = _thinned([*curve[:50], item, *curve[50:]])
        assert len(thinned) == 2 and item in thinned


@pytest.mark.parametrize(
    "change", [{"status": "fine"}, {"schema": 2}, {"more": 1}, {"digest": "x"}, {"result": {"last": {}}}]
)
def test_the_schema_refuses_what_is_no_record(stored: Path, change: dict[str, object]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    broken = json.loads(stored.read_text()) | change
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(broken)
