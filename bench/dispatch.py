"""Trials -> subprocesses -> devices. The dispatcher waits, shows progress and keeps count; it never computes.

joblib's threads hand trials to `python -m bench.trial` processes, one at a time each, so a trial that is killed costs nobody
else anything. On a CPU a process takes one trial after another, which saves importing torch for each; on a GPU every trial
gets a fresh one, so that all memory comes back.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from bench import record
from bench.errors import UserError
from bench.progress import Board
from bench.suite import Trial
from bench.trial import BUSY, DONE, UNFINISHED, USER_ERROR, Job

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
        keep_weights: leave the final weights of each trial beside its record.
    """

    devices: tuple[str, ...]
    threads: int
    out: Path
    data_root: Path | None = None
    checkpoint_every: float = 60.0
    seconds: float | None = None
    keep_weights: bool = False


class Worker:
    """A device and the process that computes on it, started when first needed and again after its death."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.child: subprocess.Popen[str] | None = None
        self.told = False  # whether this process has got a signal; a second one would end it at once

    def start(self) -> subprocess.Popen[str]:
        """The living process; one that died while idle is replaced."""
        if self.child is not None and self.child.poll() is not None:
            self.close()
        if self.child is None:
            self.told = False
            self.child = subprocess.Popen(
                [sys.executable, "-m", "bench.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",  # whatever a method prints must not hurt
                env=environment(self.threads),
                start_new_session=True,  # a terminal's Ctrl-C reaches the dispatcher alone, which passes it on
            )
        return self.child

    def signal(self, number: int) -> None:
        """Passes a signal on to the process, if there is one."""
        child = self.child
        if child is not None and child.poll() is None:
            self.told = True
            child.send_signal(number)

    def close(self) -> int:
        """Lets the process end, which it does when its input ends, and returns its exit code."""
        child, self.child = self.child, None
        if child is None:
            return 0
        assert child.stdin and child.stdout
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        return child.wait()


class Dispatcher:
    """Runs trials by a plan; `run` returns how many ended how."""

    def __init__(self, plan: Plan, board: Board) -> None:
        self.plan, self.board = plan, board
        self.until = None if plan.seconds is None else time.monotonic() + plan.seconds
        self.workers = [Worker(device, plan.threads) for device in plan.devices]
        self.free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            self.free.put(worker)
        self.signal = 0  # the first one received
        self.stopped = ""  # why no further trial is started

    def run(self, trials: Sequence[Trial]) -> Counter[str]:
        """Runs every trial without a final record, at most one on a device at a time; statuses by count.

        Raises UserError if a trial found that its input cannot be used.
        """
        with self._signals():
            parallel = Parallel(n_jobs=len(self.plan.devices), backend="threading", batch_size=1, pre_dispatch="all")
            try:
                outcomes = parallel(delayed(self._one)(trial) for trial in trials)
            finally:
                for worker in self.workers:
                    worker.close()
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
        for worker in self.workers:
            worker.signal(signal.SIGTERM)

    def _one(self, trial: Trial) -> str:
        """Runs one trial to its record; returns a status. It never raises: one trial must not stop the others."""
        path = record.record_path(self.plan.out, trial)
        if record.stored_status(path, trial) in record.FINAL:
            return "skipped"
        seconds = None if self.until is None else self.until - time.monotonic()
        if self.stopped or (seconds is not None and seconds <= 0):
            return "pending"
        worker = self.free.get()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._start(worker, trial, path, seconds)
        except OSError as error:
            self.stopped = (
                self.stopped or f"error: {path.parent}: {error.strerror}; free some space or use another --out"
            )
            return "failed"
        except Exception as error:
            self.board.done(f"{trial.suite}/{trial.row} seed {trial.seed}", f"failed: {error!r}")
            return "failed"
        finally:
            self.free.put(worker)

    def _start(self, worker: Worker, trial: Trial, path: Path, seconds: float | None) -> str:
        """Hands a trial to a worker and listens until it has ended or its process has died."""
        plan, name = self.plan, f"{trial.suite}/{trial.row} seed {trial.seed}"
        root = str(plan.data_root) if plan.data_root else None
        how = (plan.threads, root, plan.checkpoint_every, seconds, plan.keep_weights)
        job = Job(trial, worker.device, str(plan.out), *how)
        child = worker.start()
        assert child.stdin and child.stdout
        with suppress(BrokenPipeError):  # it died at once; its exit code says how
            child.stdin.write(json.dumps(asdict(job)) + "\n")
            child.stdin.flush()
        if self.signal and not worker.told:  # it came while the child was being started
            worker.signal(signal.SIGTERM)
        said: dict[str, Any] = {}
        for line in child.stdout:
            said |= _parsed(line)
            self.board.update(name, said)
            if "end" in said:
                if worker.device != "cpu":
                    worker.close()
                return self._conclude(trial, path, name, said)
        return self._conclude(trial, path, name, said, died_with=worker.close())

    def _conclude(self, trial: Trial, path: Path, name: str, said: dict[str, Any], died_with: int | None = None) -> str:
        """The status of a trial that has ended, with a record also where its process died before it could write one."""
        end = said.get("end")
        if end == BUSY:
            self.board.done(name, "skipped: another runner has it")
            return "busy"
        log = path.with_suffix(".log")
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
        if end == USER_ERROR:
            self.stopped = f"error: {said.get('error', 'bad input')}"
            return "failed"
        status = record.stored_status(path, trial)
        if end not in (DONE, UNFINISHED) and status not in record.FINAL:
            status = "failed" if end is not None else "interrupted" if self.signal else "killed"
            reason = said.get("failed", f"its process {_death(died_with if end is None else end)}")
            record.write(path, record.new_record(trial, status, reason))
        self.board.done(name, _outcome(path, status))
        return status


def _death(code: int | None) -> str:
    return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


def environment(threads: int) -> dict[str, str]:
    """The child's environment: where the package lies, its threads, deterministic matrix products, memory kept.

    glibc returns large buffers to the system at once and pays a page fault for every page of the next one; keeping them
    makes elementwise work on a CPU two to three times as fast.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
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
    what = name if name == "error" else f"{name} error"
    return f"done, test {what} {value:.2f} %, {found['run']['seconds']:.0f} s"
