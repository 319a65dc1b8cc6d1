"""Memory stays flat: over the steps of a long trial, and over many trials in one process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import record, trial
from bench.plan import trials
from bench.suite import Trial, load_suite
from bench.trainer import Run
from tests.faults.conftest import ended

ALLOWED = 16 * 2**20  # bytes; a leak of one batch or one tape a step would be many times as much
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes that this process has in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.fixture
def amm(monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the log takes standard error over
    return trials(load_suite("plane_unsup"), "paper", ["amm"], [0])[0]


@pytest.mark.slow
def test_two_thousand_steps_take_no_more_memory_than_five_hundred(
    amm: Trial, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(replace(amm, steps=2000, validate=250), torch.device("cpu"))
    seen: list[int] = []
    for _ in run.stages(lambda *_: None, lambda _: None):
        if run.step % 250 == 0:
            seen.append(resident())
    with capfd.disabled():
        print(f"\nMB every 250 steps: {[size // 2**20 for size in seen]}")
    assert seen[-1] - seen[2] < ALLOWED


@pytest.mark.slow
def test_twenty_trials_in_one_process_take_no_more_memory_than_three(
    amm: Trial, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = list(_after_each(replace(amm, steps=100, validate=50), tmp_path))
    with capfd.disabled():
        print(f"\nMB after each trial: {[size // 2**20 for size in seen]}")
    assert seen[-1] - seen[2] < ALLOWED


def _after_each(amm: Trial, out: Path) -> Iterator[int]:
    for seed in range(20):
        what = replace(amm, seed=seed)
        record.record_path(out, what).parent.mkdir(parents=True, exist_ok=True)
        assert ended(trial.Job(what, "cpu", str(out), 1, checkpoint_every=0.5)) == {0: trial.DONE}
        yield resident()
