"""The harness's own overhead: what is measured is what a user would run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import overhead
from bench.lines import stored
from bench.record import read
from bench.suite import load_suite


def test_the_table_is_of_as_many_records_as_said_all_planned(tmp_path: Path) -> None:
    suite, runs = overhead.store(tmp_path)
    records, remarks = stored(runs, load_suite(suite), "paper", any_seed=False)
    assert len(records) == overhead.RECORDS and remarks == []
    assert read(next(runs.rglob("seed*.json"))) in records


def test_everything_is_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "RECORDS", 20)
    found = overhead.measure(1)
    assert list(found) == ["list", "table", "record"]
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found.values())


def test_a_command_that_fails_is_not_timed() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        overhead._python("bench.run", "--suite", "absent")
