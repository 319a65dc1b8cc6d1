"""Trials in this process or in a fork of it, which can be killed for the price of nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import record, trial
from bench.pool import Pool
from bench.suite import Trial


def ended(*jobs: trial.Job) -> dict[int, int]:
    """How trials end that share this process, by the number of their job."""
    pool = Pool(len(jobs), torch.device("cpu"), lambda: False)
    stop: Any = lambda: False
    for job in jobs:
        pool.add(job.number, lambda job=job: trial.attempt(job, stop, pool))  # type: ignore[misc]
    ends: dict[int, int] = {}
    while pool.busy():
        ends |= dict(pool.turn())
    return ends


def same(path: Path) -> dict[str, Any]:
    """A record without what a clock or a machine decides."""
    return {key: value for key, value in record.read(path).items() if key != "run"}


@pytest.fixture
def job(make_trial: Callable[..., Trial], tmp_path: Path, toy: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a job of a Toy trial below tmp_path / `out`, with a checkpoint after every step, and the path of its record."""
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the log takes standard error over

    def make(
        out: str = "out", number: int = 0, seed: int = 0, every: float = 0.0, steps: int = 15, **config: Any
    ) -> Any:
        what = make_trial(config, seed=seed, steps=steps, validate=max(4, steps // 4))
        path = record.record_path(tmp_path / out, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        return trial.Job(what, "cpu", str(tmp_path / out), 1, checkpoint_every=every, number=number, share=3), path

    return make


def forked(act: Callable[[], object]) -> int:
    """The process id of a copy of this process that does `act` and leaves with 0, or 1 if that raises."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def killed(act: Callable[[], object]) -> bool:
    """Whether a copy of this process that does `act` is ended by SIGKILL."""
    _, status = os.waitpid(forked(act), 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
