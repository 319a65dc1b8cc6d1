"""Faults of disks: full, read-only, quota reached, half-written files of the dead."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import checkpoint, record, trial
from bench.files import STALE_S, write_atomic
from tests.faults.conftest import ended, forked, same

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # no thread of ours is at work


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB; needs a superuser."""
    disk = tmp_path / "out"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("this user cannot mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def _fill(disk: Path) -> Path:
    """A file that takes all that is left of a disk."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)
    return filler


@pytest.mark.fault(9)
def test_a_full_disk_keeps_what_it_had(small_disk: Path) -> None:
    path = small_disk / "record.json"
    write_atomic(path, b"old")
    filler = _fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new" * 2000)
    assert path.read_bytes() == b"old" and not _parts(small_disk)
    filler.unlink()
    write_atomic(path, b"new" * 2000)
    assert path.read_bytes() == b"new" * 2000


@pytest.mark.fault(9)
def test_a_trial_on_a_full_disk_stops_the_run_and_goes_on_once_there_is_space(
    job: Any, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone, other = job("alone")
    assert ended(alone) == {0: trial.DONE}
    what, path = job()
    filler = _fill(small_disk)
    capfd.readouterr()
    assert ended(what) == {0: trial.USER_ERROR}
    (said,) = [json.loads(line)["error"] for line in capfd.readouterr().out.splitlines() if "error" in line]
    assert said == f"{path.parent}: No space left on device; free some space or use another --out"
    assert not path.exists() and not _parts(small_disk)
    filler.unlink()
    assert ended(what) == {0: trial.DONE}
    assert same(path) == same(other)


@pytest.mark.fault(9)
def test_a_disk_that_becomes_read_only_stops_the_run(
    job: Any, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    what, path = job()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ended(what) == {0: trial.USER_ERROR}
    assert "Read-only file system; free some space or use another --out" in capfd.readouterr().out
    assert not path.exists()


@pytest.mark.fault(9)
def test_a_limit_of_the_size_of_files_is_met_like_a_full_disk(job: Any) -> None:
    """No superuser is needed for that, so it runs everywhere."""
    what, path = job()
    checkpoint.save(path.with_suffix(".checkpoint"), {"digest": "other"})
    before = path.with_suffix(".checkpoint").read_bytes()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        assert ended(what) == {0: trial.USER_ERROR}

    assert os.waitpid(forked(limited), 0)[1] == 0
    assert not path.exists() and not _parts(path.parent)
    assert before in [entry.read_bytes() for entry in path.parent.iterdir()]


@pytest.mark.slow
@pytest.mark.fault(9)
def test_the_command_on_a_full_disk_is_one_line_and_begins_no_other_trial(
    write_suite: Callable[..., Path], small_disk: Path
) -> None:
    suite = write_suite("amm", seeds="0-2")
    command = [sys.executable, "-m", "bench.run", "--suite", str(suite), "--budget", "quick", "--out", str(small_disk)]
    command += ["--device", "cpu", "--workers", "1", "--threads", "1", "--checkpoint-every", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: ") and "No space left on device; free some space" in said
    assert [path.name for path in small_disk.rglob("seed*")] == []  # nothing half-written, no lock, no other trial


@pytest.mark.fault(10)
def test_half_written_files_of_dead_runs_are_cleaned_away_when_the_trial_runs_again(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, path = job()
    old, young, other = (
        path.with_name(f".{name}.1.{'0' * 32}.part") for name in ("seed00.checkpoint", "seed00.json", "seed01.json")
    )
    for part in (old, young, other):
        part.write_bytes(b"half")
    for part in (old, other):
        os.utime(part, (0, time.time() - STALE_S - 1))
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 10 * STALE_S)  # the folder's clock is another
    assert ended(what) == {0: trial.DONE}
    assert record.read(path)["status"] == "done"
    assert set(_parts(path.parent)) == {young, other}  # somebody may be writing the one; the other is of another trial
