"""Records: whole, checked against their own digest, and never lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from bench.plan import trials
from bench.record import FINAL, STATUSES, is_of, new_record, read, record_path, stored_status, write
from bench.suite import Trial, load_suite

RESULT = {"step": 15, "steps": 15, "last": {"step": 15, "test": {"majority": 3.5}}, "curve": []}


@pytest.fixture
def trial(make_trial: Callable[..., Trial]) -> Trial:
    return make_trial()


@pytest.fixture
def path(tmp_path: Path, trial: Trial) -> Path:
    found = record_path(tmp_path, trial)
    write(found, new_record(trial, "done", None, RESULT, {"name": "synthetic"}, {"seconds": 1.5}))
    return found


def _edited(path: Path, **changes: Any) -> None:
    """Changes a record as if it had been written so, without a seal."""
    value = {**json.loads(path.read_text(encoding="utf-8")), "seal": ..., **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not Ellipsis}), encoding="utf-8")


def _refused(path: Path, *words: str) -> None:
    """Reading `path` is a UserError of one line that names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message


def test_a_record_comes_back_as_it_was_written(path: Path, trial: Trial, tmp_path: Path) -> None:
    assert path == tmp_path / "small" / "quick" / "toy" / "seed00.json"
    record = read(path)
    assert record == new_record(trial, "done", None, RESULT, {"name": "synthetic"}, {"seconds": 1.5})
    assert Trial.from_json(record["trial"]) == trial
    assert set(record) == {"schema", "digest", "trial", "status", "reason", "result", "data", "run", "departures"}
    assert os.listdir(path.parent) == ["seed00.json"]


def test_the_same_record_has_the_same_bytes(path: Path) -> None:
    before = path.read_bytes()
    write(path, read(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("status", ["done", "diverged", "killed"])
def test_the_first_result_of_a_trial_stands(path: Path, trial: Trial, status: str) -> None:
    before = path.read_bytes()
    assert not write(path, new_record(trial, status, "later", RESULT))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["seed00.json"]


def test_a_result_that_comes_while_another_is_written_stands(
    path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other runner's result replaces the unfinished record just before ours would."""
    result = path.read_bytes()
    path.unlink()
    write(path, new_record(trial, "interrupted", "at step 3"))
    replace = Path.replace

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        path.write_bytes(result)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    assert not write(path, new_record(trial, "done", "later", RESULT))
    assert path.read_bytes() == result
    assert os.listdir(path.parent) == ["seed00.json"]


def test_a_folder_without_hard_links_holds_records_too(
    path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", none)
    assert not write(path, new_record(trial, "diverged", "later"))
    path.unlink()
    assert write(path, new_record(trial, "killed", "first"))
    assert write(path, new_record(trial, "done", "then", RESULT))
    assert (read(path)["reason"], os.listdir(path.parent)) == ("then", ["seed00.json"])


@pytest.mark.fault(21)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused_and_the_old_record_stays(path: Path, trial: Trial, number: float) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write(path, new_record(trial, "done", None, {"last": number}))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["seed00.json"]


def test_a_refused_record_leaves_that_of_another_trial_in_its_place(
    path: Path, make_trial: Callable[..., Trial]
) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write(path, new_record(make_trial(steps=16), "done", None, {"last": float("nan")}))
    assert path.exists() and path.read_bytes() == before


def test_a_record_that_could_not_be_read_is_not_written(path: Path, trial: Trial) -> None:
    path.unlink()
    with pytest.raises(ValueError, match="has departures that are no text"):
        write(path, new_record(trial, "done", None, RESULT, departures=[1]))  # type: ignore[list-item]
    assert os.listdir(path.parent) == []


def test_a_record_that_may_not_be_read_keeps_its_place(
    path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a result, so neither is its trial run again nor is it put aside as damaged."""
    content, read_bytes = path.read_bytes(), Path.read_bytes

    def closed(self: Path) -> bytes:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", closed)
    for refused in (lambda: stored_status(path, trial), lambda: write(path, new_record(trial, "done", None, RESULT))):
        with pytest.raises(UserError, match="cannot be read \\(Permission denied\\)"):
            refused()
    monkeypatch.undo()
    assert (path.read_bytes(), os.listdir(path.parent)) == (content, [path.name])


def test_a_reason_that_is_no_valid_unicode_can_be_stored(path: Path, trial: Trial) -> None:
    path.unlink()
    write(path, new_record(trial, "failed", "cannot open \udcff.bin"))
    assert read(path)["reason"].startswith("cannot open ")


@pytest.mark.fault(21)
def test_a_truncated_record_is_refused_at_every_length(path: Path, trial: Trial) -> None:
    content = path.read_bytes().rstrip(b"\n")
    sampled = sorted({0, 1, 2, 100, len(content) // 2, len(content) - 1, *range(0, len(content), 37)})
    for length in sampled:
        path.write_bytes(content[:length])
        _refused(path, "is not JSON")
        assert stored_status(path, trial) == "unreadable"


@pytest.mark.fault(21)
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"hello",
        b"[" * 100_000,
        b'{"schema": 1, "schema"',
        b"\x00" * 500,
        b'{"a": NaN}',
        b"[-Infinity]",
    ],
    ids=["not unicode", "text", "deep", "cut", "zeros", "nan", "infinity"],
)
def test_what_is_not_json_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _refused(path)


def test_nan_inside_a_whole_record_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"3.5", b"NaN"))
    _refused(path, "NaN is not a JSON number")


def test_a_number_that_overflows_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"3.5", b"1e999"))
    _refused(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"schema": None}, "has schema None"),
        ({"schema": ...}, "is not a whole record"),
        ({"run": ...}, "is not a whole record"),
        ({"run": None}, "is not a whole record"),
        ({"trial": []}, "is not a whole record"),
        ({"status": "running"}, "unknown status 'running'"),
        ({"status": ["done"]}, "unknown status"),
        ({"result": None}, "is done and has no result"),
        ({"digest": "0" * 64}, "does not match its digest"),
        ({"digest": None}, "does not match its digest"),
        ({"trial": {}}, "holds no valid trial"),
    ],
)
def test_a_record_of_another_shape_is_refused(path: Path, changes: dict[str, Any], words: str) -> None:
    _edited(path, **changes)
    _refused(path, words)


@pytest.mark.parametrize(("key", "value"), [("steps", 16), ("seed", 1), ("config", {}), ("seed", "0"), ("more", 1)])
def test_an_edited_trial_is_seen(path: Path, key: str, value: Any) -> None:
    trial = json.loads(path.read_text(encoding="utf-8"))["trial"]
    _edited(path, trial={**trial, key: value})
    _refused(path)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"done"', b"{}"])
def test_json_that_is_no_record_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _refused(path, "is not a whole record")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "absent.json", "cannot be read")
    _refused(tmp_path, "cannot be read")


def test_a_record_of_another_trial_is_kept_beside_the_new_one(path: Path, make_trial: Callable[..., Trial]) -> None:
    old, new = read(path), make_trial(steps=16)
    write(path, new_record(new, "interrupted", "at step 3"))
    assert read(path)["digest"] == new.digest
    stale = path.with_name(f"seed00.{old['digest'][:8]}.stale")
    assert read(stale) == old
    assert sorted(os.listdir(path.parent)) == sorted([path.name, stale.name])


def test_a_damaged_record_is_kept_beside_the_new_one(path: Path, trial: Trial) -> None:
    path.write_bytes(b"{half")
    write(path, new_record(trial, "done", None, RESULT))
    assert read(path)["status"] == "done"
    kept = [entry for entry in path.parent.iterdir() if entry != path]
    assert [entry.read_bytes() for entry in kept] == [b"{half"]


def test_a_kept_result_is_never_replaced_by_a_later_one(path: Path, make_trial: Callable[..., Trial]) -> None:
    """Going back and forth between two configurations must not lose the finished record of the first."""
    done, other = read(path), make_trial(steps=16)
    write(path, new_record(other, "interrupted", "at step 3"))
    write(path, new_record(make_trial(), "interrupted", "at step 1"))
    write(path, new_record(other, "interrupted", "at step 4"))
    assert done in [read(entry) for entry in path.parent.glob("*.stale")]


@pytest.mark.parametrize("status", STATUSES)
def test_the_stored_status_is_that_of_exactly_this_trial(
    path: Path, trial: Trial, make_trial: Callable[..., Trial], status: str
) -> None:
    path.unlink()
    write(path, new_record(trial, status, "why", RESULT))
    assert stored_status(path, trial) == status
    assert stored_status(path, make_trial(steps=16)) == "pending"
    assert stored_status(path.with_name("seed01.json"), trial) == "pending"


REFERENCE = Path(__file__).parent.parent / "results" / "reference"


def _committed(suite: str) -> dict[Path, dict[str, Any]]:
    """The reference records of a suite, each of which `read` checks against its digest."""
    found = {path: read(path) for path in sorted((REFERENCE / suite).glob("*/*/seed*.json"))}
    assert found
    return found


def test_every_committed_record_has_the_digest_that_it_was_written_with() -> None:
    for suite in REFERENCE.iterdir():
        for path, record in _committed(suite.name).items():
            stored = json.loads(path.read_bytes())
            assert Trial.from_json(stored["trial"]).digest == stored["digest"], path
            assert record_path(REFERENCE, Trial.from_json(record["trial"])) == path


@pytest.mark.parametrize("suite", ["digits_unsup", "plane_unsup"])
def test_every_committed_record_is_of_a_trial_as_planned_today(suite: str) -> None:
    plan = load_suite(suite)
    planned = {record_path(REFERENCE, trial): trial for name in plan.budgets for trial in trials(plan, name)}
    for path, record in _committed(suite).items():
        trial = planned[path]
        assert is_of(record, trial), path
        assert stored_status(path, trial) == record["status"]
        for change in ({"split": "train"}, {"balanced": True}, {"precision": "bf16"}, {"seed": trial.seed + 1}):
            assert not is_of(record, replace(trial, **change)), (path, change)


def test_a_record_without_a_field_that_trials_got_since_is_of_its_trial(path: Path, trial: Trial) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))["trial"]
    later = ("split", "balanced", "precision")
    _edited(path, trial={key: value for key, value in stored.items() if key not in later})
    assert Trial.from_json(read(path)["trial"]) == trial
    assert stored_status(path, trial) == "done"
    assert stored_status(path, replace(trial, precision="bf16")) == "pending"


@pytest.mark.parametrize(("key", "value"), [("split", "train"), ("balanced", True), ("precision", "bf16")])
def test_an_edited_later_field_is_seen(path: Path, key: str, value: Any) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))["trial"]
    _edited(path, trial={**stored, key: value})
    _refused(path, "does not match its digest")


@pytest.mark.fault(21)
def test_any_change_after_writing_is_seen(path: Path) -> None:
    content = path.read_bytes()
    for old, new in ((b"3.5", b"3.4"), (b'"reason": null', b'"reason": ""'), (b"1.5", b"1.25"), (b'"seal"', b'"sea1"')):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        _refused(path)
    path.write_text(json.dumps(json.loads(content)), encoding="utf-8")  # laid out otherwise it says the same
    assert read(path)["result"] == RESULT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"departures": [1]}, "has departures that are no text"),
        ({"departures": "one"}, "has departures 'one', expected list"),
        ({"result": {**RESULT, "weights_sha256": ["a"]}}, "has result.weights_sha256 ['a'], expected str"),
        ({"result": {"last": [3.5]}}, "has result.last [3.5], expected dict"),
        ({"result": {"last": {"step": 1, "test": {"majority": True}}}}, "with the majority True, which is no score"),
        ({"result": {"last": {"step": "1", "test": {}}}}, "with the step '1', which is no score"),
        ({"data": {"note": 3}}, "has data.note 3, expected str"),
        ({"data": {"variant": {"name": "x", "train": {"note": "n"}}}}, "without note and sha256_images_nhwc"),
        ({"run": {"git": "main"}}, "has run.git 'main', expected dict"),
        ({"run": {"seconds": "x"}}, "has run.seconds 'x', expected int or float"),
        ({"run": {"device_name": [1]}}, "has run.device_name [1], expected str"),
        ({"run": {"device": 3}}, "has run.device 3, expected str"),
        ({"run": {"versions": 3}}, "has run.versions 3, expected dict"),
        ({"run": {"versions": {"torch": [1]}}}, "has run.versions.torch [1], expected str"),
        ({"result": {**RESULT, "curve": 3}}, "has result.curve 3, expected list"),
        ({"result": {**RESULT, "curve": [3]}}, "has a result.curve that is no list of scorings"),
        ({"result": {**RESULT, "curve": [{"test": {}}]}}, "has a result.curve that is no list of scorings"),
        ({"result": {**RESULT, "curve": [{"step": 1, "test": 5}]}}, "has a result.curve that is no list of scorings"),
        ({"result": {**RESULT, "curve": [{"step": 1, "test": {"nmi": "1"}}]}}, "that is no list of scorings"),
        ({"result": {**RESULT, "curve": [{"step": 1, "test": {"nmi": 1e200}}]}}, "that is no list of scorings"),
        (
            {"result": {"last": {"step": 1, "test": {"majority": 1e200}}}},
            "with the majority 1e+200, which is no score",
        ),
        ({"result": {"last": {"step": 1, "test": {"majority": 10**400}}}}, "is not a JSON number"),
        (
            {"result": {**RESULT, "selected": {"step": 1, "test": {"majority": "1"}}}},
            "has result.selected with the majority",
        ),
        ({"result": {**RESULT, "best_on_test": {"step": [], "test": {}}}}, "has result.best_on_test with the step []"),
        ({"data": {"variant": [1]}}, "has data.variant [1], expected dict"),
        ({"data": {"variant": {"train": 3}}}, "has a data.variant without a name"),
        ({"run": {"threads": "two"}}, "has run.threads 'two', expected int"),
        ({"run": {"shared_by": "x"}}, "has run.shared_by 'x', expected int"),
        ({"result": {**RESULT, "steps": "many"}}, "has result.steps 'many', expected int"),
        ({"result": {**RESULT, "confusion": "x"}}, "has result.confusion 'x', expected dict"),
        ({"run": {"git": {"sha": 3}}}, "has run.git.sha 3, expected str"),
        ({"more": 1}, "holds the unknown 'more'"),
    ],
)
def test_a_record_that_a_table_would_stumble_over_is_refused(path: Path, changes: dict[str, Any], words: str) -> None:
    _edited(path, **changes)
    _refused(path, words)


def test_losses_and_readings_of_any_size_are_a_result(path: Path) -> None:
    curve = [
        {"step": 1, "losses": {"d": 1e300}, "instruments": {"noise_y": 1e200, "slope": None}, "test": {"nmi": None}}
    ]
    _edited(path, result={**RESULT, "curve": curve})
    assert read(path)["result"]["curve"] == curve


def test_only_results_are_final() -> None:
    assert set(FINAL) == {"done", "diverged"}
