"""Faults of processes: kills at chosen instants, signals, stopped clocks, one bad trial among good ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import checkpoint, record, trial
from bench.plan import trials
from bench.suite import load_suite
from tests.faults.conftest import ended, forked, killed, same

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # no thread of ours is at work


def _suicide(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _nth(n: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, and SIGKILL in the place of its n-th call."""
    calls = iter(range(1, 10_000))
    return lambda *args, **more: _suicide() if next(calls) == n else real(*args, **more)


@pytest.mark.fault(1)
@pytest.mark.parametrize("n", [1, 2, 7, 15])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_kill_9_in_the_middle_of_a_checkpoint(job: Any, monkeypatch: pytest.MonkeyPatch, call: str, n: int) -> None:
    what, path = job()
    alone, other = job("alone")
    assert ended(alone) == {0: trial.DONE}
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _nth(n, getattr(os, call)))
        assert killed(lambda: ended(what))
    assert not path.exists()
    assert ended(what) == {0: trial.DONE}
    assert same(path) == same(other)
    first = 2 if call == "fsync" else 1  # the call of the first checkpoint; the lock's beat is written before it
    assert record.read(path)["run"]["resumed"] == (n > first) and record.read(path)["run"]["remarks"] == []


@pytest.mark.fault(3)
@pytest.mark.parametrize("where", ["before the record", "after it"])
def test_kill_9_between_the_last_checkpoint_and_the_end(job: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    what, path = job()
    alone, other = job("alone")
    assert ended(alone) == {0: trial.DONE}
    with monkeypatch.context() as patch:
        patch.setattr(*((record, "write") if where == "before the record" else (checkpoint, "remove")), _suicide)
        assert killed(lambda: ended(what))
    assert path.exists() == (where == "after it") and path.with_suffix(".checkpoint").exists()
    before = path.read_bytes() if path.exists() else None
    assert ended(what) == {0: trial.DONE}
    assert same(path) == same(other) and before in (None, path.read_bytes())
    assert {entry.name for entry in path.parent.glob("seed*")} == {path.name, path.with_suffix(".log").name}


@pytest.mark.fault(13)
@pytest.mark.parametrize("fault", ["loss", "weights", "raise"])
def test_one_bad_trial_of_a_group_spoils_no_other(job: Any, fault: str) -> None:
    for seed in (0, 2):
        assert ended(job("alone", seed=seed, at=6)[0]) == {0: trial.DONE}
    group = [job(number=seed, seed=seed, fault=fault if seed == 1 else "", at=6) for seed in range(3)]
    bad = trial.FAILED if fault == "raise" else trial.DONE
    assert ended(*(what for what, _ in group)) == {0: trial.DONE, 1: bad, 2: trial.DONE}
    for seed in (0, 2):
        assert same(group[seed][1]) == same(job("alone", seed=seed, at=6)[1])
    if fault != "raise":
        assert record.read(group[1][1])["status"] == "diverged"


@pytest.mark.fault(24)
def test_a_clock_that_jumps_changes_nothing(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, other = job("alone", every=3600.0)
    assert ended(alone) == {0: trial.DONE}
    now = iter(range(10_000))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(now))  # thirty years forth and back
    what, path = job(every=3600.0)
    assert ended(what) == {0: trial.DONE}
    assert same(path) == same(other) and 0 <= record.read(path)["run"]["seconds"] < 60


@pytest.mark.fault(24)
def test_a_process_that_is_suspended_goes_on(job: Any) -> None:
    alone, other = job("alone", steps=120)
    assert ended(alone) == {0: trial.DONE}
    what, path = job(steps=120)
    pid = forked(lambda: ended(what))
    until = time.monotonic() + 60
    while not path.with_suffix(".checkpoint").exists() and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    assert not path.exists()
    time.sleep(0.2)
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0
    assert same(path) == same(other) and record.read(path)["run"]["resumed"] == 0


def _slow_fit(write_suite: Callable[..., Path]) -> Path:
    """A suite whose one trial fits for hours and takes no step meanwhile."""
    suite = write_suite("kmeans")
    suite.write_text(suite.read_text(encoding="utf-8").replace("n_init: 1", "n_init: 1000000"), encoding="utf-8")
    return suite


@pytest.mark.slow
@pytest.mark.fault(2)
def test_a_second_signal_to_a_trial_ends_it_at_once(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    (what,) = trials(load_suite(_slow_fit(write_suite)), "quick")
    path = record.record_path(tmp_path / "out", what)
    path.parent.mkdir(parents=True)
    line = json.dumps(asdict(trial.Job(what, "cpu", str(tmp_path / "out"), 1))) + "\n"
    with subprocess.Popen([sys.executable, "-m", "bench.trial"], cwd=ROOT, stdin=subprocess.PIPE, text=True) as child:
        assert child.stdin
        child.stdin.write(line)
        child.stdin.flush()
        until = time.monotonic() + 60
        while not path.with_suffix(".lock").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.0)
        child.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert child.poll() is None  # it finishes what it does
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.fault(2)
def test_ctrl_c_of_a_terminal_reaches_the_whole_group(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    suite = write_suite("amm", quick='{steps: 50000, validate: 4, label: "quick"}')
    where = ("--suite", str(suite), "--budget", "quick", "--out", str(tmp_path / "out"), "--device", "cpu")
    command = [sys.executable, "-m", "bench.run", *where, "--workers", "1", "--threads", "1", "--checkpoint-every", "0"]
    path = tmp_path / "out/small/quick/amm/seed00.json"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as runner:
        until = time.monotonic() + 60
        while not path.with_suffix(".checkpoint").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(runner.pid, signal.SIGINT)
        assert runner.wait(60) == 130
        assert runner.stderr and "Traceback" not in runner.stderr.read()
    found = record.read(path)
    assert found["status"] == "interrupted" and path.with_suffix(".checkpoint").exists()
