"""Trials -> subprocesses -> devices. The dispatcher waits, shows progress and keeps count; it never computes.

joblib's threads each start `python -m bench.trial` on a free device, so a trial that is killed costs nobody else anything.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from bench import record
from bench.errors import UserError
from bench.progress import Board
from bench.suite import Trial
from bench.trial import BUSY, UNFINISHED, USER_ERROR, Job

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Plan:
    """How trials are run.

    Attributes:
        devices: one name for each worker, such as ("cpu", "cpu") or ("cuda:0",).
        threads: CPU threads of each trial.
        out: root of the records.
        data_root: folder of downloaded datasets, or None for the default.
        checkpoint_every: seconds between checkpoints.
        seconds: time for everything, or None.
    """

    devices: tuple[str, ...]
    threads: int
    out: Path
    data_root: Path | None = None
    checkpoint_every: float = 60.0
    seconds: float | None = None


class Dispatcher:
    """Runs trials by a plan; `run` returns how many ended how."""

    def __init__(self, plan: Plan, board: Board) -> None:
        self.plan, self.board = plan, board
        self.until = None if plan.seconds is None else time.monotonic() + plan.seconds
        self.free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in plan.devices:
            self.free.put(device)
        self.children: set[subprocess.Popen[str]] = set()
        self.lock = threading.Lock()
        self.signal = 0  # the first one received
        self.stopped = ""  # why no further trial is started

    def run(self, trials: Sequence[Trial]) -> Counter[str]:
        """Runs every trial without a final record, at most one on a device at a time; statuses by count.

        Raises UserError if a trial found that its input cannot be used.
        """
        with self._signals():
            parallel = Parallel(n_jobs=len(self.plan.devices), backend="threading", batch_size=1, pre_dispatch="all")
            outcomes = parallel(delayed(self._one)(trial) for trial in trials)
        self.board.close()
        if self.stopped.startswith("error: "):
            raise UserError(self.stopped.removeprefix("error: "))
        return Counter(outcomes)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM are passed on to the trials, which checkpoint and leave; a second one ends them at once."""
        before = {number: signal.signal(number, self._forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: object) -> None:
        self.signal, self.stopped = self.signal or number, self.stopped or "interrupted"
        for child in list(self.children):
            child.send_signal(signal.SIGTERM)

    def _one(self, trial: Trial) -> str:
        """Runs one trial to its record; returns a status. It never raises: one trial must not stop the others."""
        path = record.record_path(self.plan.out, trial)
        if record.stored_status(path, trial) in record.FINAL:
            return "skipped"
        seconds = None if self.until is None else self.until - time.monotonic()
        if self.stopped or (seconds is not None and seconds <= 0):
            return "pending"
        device = self.free.get()
        try:
            return self._start(trial, path, Job(
                trial, device, str(self.plan.out), self.plan.threads,
                str(self.plan.data_root) if self.plan.data_root else None, self.plan.checkpoint_every, seconds,
            ))  # fmt: skip
        except OSError as error:
            self.stopped = (
                self.stopped or f"error: {path.parent}: {error.strerror}; free some space or use another --out"
            )
            return "failed"
        finally:
            self.free.put(device)

    def _start(self, trial: Trial, path: Path, job: Job) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{trial.suite}/{trial.row} seed {trial.seed}"
        said: dict[str, Any] = {}
        with path.with_suffix(".log").open("a") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "bench.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(job),
                start_new_session=True,  # a terminal's Ctrl-C reaches the dispatcher alone, which passes it on
            )
            with self.lock:
                self.children.add(child)
            if self.signal:  # it came while the child was being started
                child.send_signal(signal.SIGTERM)
            assert child.stdin and child.stdout
            try:
                child.stdin.write(json.dumps({**asdict(job), "trial": job.trial.to_json()}) + "\n")
                child.stdin.flush()
            except BrokenPipeError:
                pass  # it died at once; its exit code says how
            for line in child.stdout:
                said = _parsed(line) or said
                self.board.update(name, said)
            code = child.wait()
            child.stdin.close()
            with self.lock:
                self.children.discard(child)
        return self._conclude(trial, path, name, code, said)

    def _conclude(self, trial: Trial, path: Path, name: str, code: int, said: dict[str, Any]) -> str:
        """The status of a trial whose process has ended, with a record also where it could not write one itself."""
        if path.with_suffix(".log").stat().st_size == 0:
            path.with_suffix(".log").unlink()
        if code == USER_ERROR:
            self.stopped = f"error: {said.get('error', 'bad input')}"
            return "failed"
        if code == BUSY:
            self.board.done(name, "skipped: another runner has it")
            return "busy"
        status = record.stored_status(path, trial)
        if code < 0 or (code not in (0, UNFINISHED) and status not in record.FINAL):
            status = "interrupted" if self.signal and code < 0 else "killed" if code < 0 else "failed"
            reason = f"ended by signal {-code}" if code < 0 else str(said.get("failed", f"exit code {code}"))
            record.write(path, record.new_record(trial, status, reason))
        self.board.done(name, _outcome(path, status))
        return status


def _environment(job: Job) -> dict[str, str]:
    """The child's environment: where the package lies, its threads, deterministic matrix products, memory kept.

    glibc returns large buffers to the system at once and pays a page fault for every page of the next one; keeping them
    makes elementwise work on a CPU two to three times as fast.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    threads = str(job.threads)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        "MALLOC_TOP_PAD_": str(2**28),
    }


def _parsed(line: str) -> dict[str, Any]:
    """A JSON object from a line of the child, or nothing: a method's own print must not hurt."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _outcome(path: Path, status: str) -> str:
    """The end of a trial in one line: status, headline error, time."""
    found = record.read(path)
    if status != "done":
        return f"{status}: {found['reason']}"
    scores = found["result"]["last"]["test"]
    name, value = next(iter(scores.items()))
    return f"done, test {name} error {value:.2f} %, {found['run']['seconds']:.0f} s"
