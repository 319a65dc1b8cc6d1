"""Trials -> subprocesses -> devices. The dispatcher waits, shows progress and keeps count; it never computes.

joblib's threads hand lots of trials to `python -m bench.trial` processes. On a CPU a lot is one trial, so one that is killed
costs nobody else anything, and a process takes one after another, which saves importing torch for each. On a GPU a lot is
trials that share the device, and every lot gets a fresh process, so that all memory comes back.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib import Parallel, delayed

from bench import record
from bench.engine import UNCAPTURED, Mode
from bench.errors import UserError
from bench.pool import BUSY, DONE, UNFINISHED, USER_ERROR
from bench.process import Worker, parsed
from bench.progress import Board
from bench.suite import Trial
from bench.trial import Job

if TYPE_CHECKING:
    from bench.cluster import Remote

LOT = 16  # trials at most that one process takes at once
STOPPING = "stopping: each trial takes its step to the end and writes a checkpoint; a second signal ends them at once"


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
        share: trials that share a device at once; None for one on a CPU and as many as pay on a GPU.
        engine: how steps are taken, see `bench.engine`.
    """

    devices: tuple[str, ...]
    threads: int
    out: Path
    data_root: Path | None = None
    checkpoint_every: float = 60.0
    seconds: float | None = None
    keep_weights: bool = False
    share: int | None = None
    engine: Mode = "auto"

    def lots(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """The trials by process, spread over all devices: where they may share a device, the seeds of a row, which end together.

        A given `share` is filled with other rows too, but of one method: a turn of k-means takes minutes, and steps would wait.
        """
        most = self.share or (1 if self.devices[0] == "cpu" else LOT)
        row = lambda trial: trial.method if self.share else (trial.suite, trial.budget, trial.row)
        lots: list[list[Trial]] = []
        for _, group in groupby(trials, key=row):
            alike = list(group)
            size = min(most, -(-len(alike) // len(self.devices)))
            lots += [alike[start : start + size] for start in range(0, len(alike), size)]
        return lots


class Dispatcher:
    """Runs trials by a plan; `run` returns how many ended how."""

    def __init__(self, plan: Plan, board: Board, workers: Sequence[Worker | Remote] = ()) -> None:
        self.plan, self.board = plan, board
        self.until = None if plan.seconds is None else time.monotonic() + plan.seconds
        self.workers = list(workers) or [Worker(device, plan.threads) for device in plan.devices]
        self.free: queue.SimpleQueue[Worker | Remote] = queue.SimpleQueue()
        for worker in self.workers:
            self.free.put(worker)
        self.signal = 0  # the first one received
        self.stopped = ""  # why no further trial is started

    def run(self, trials: Sequence[Trial]) -> Counter[str]:
        """Runs every trial without a final record, at most one on a device at a time; statuses by count.

        Raises UserError if a trial found that its input cannot be used.
        """
        with self._signals():
            parallel = Parallel(n_jobs=len(self.workers), backend="threading", batch_size=1, pre_dispatch="all")
            try:
                outcomes = parallel(delayed(self._lot)(lot) for lot in self.plan.lots(trials))
            finally:
                for worker in self.workers:
                    worker.close()
                self.board.close()
        if self.stopped.startswith("error: "):
            raise UserError(self.stopped.removeprefix("error: "))
        return Counter(chain.from_iterable(outcomes))

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
        first = not self.signal
        self.signal, self.stopped = self.signal or number, self.stopped or "interrupted"
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        if first:
            self.board.say(STOPPING)

    def _lot(self, lot: Sequence[Trial]) -> list[str]:
        """Runs some trials to their records; returns a status of each. It never raises: one must not stop the others."""
        paths = [record.record_path(self.plan.out, trial) for trial in lot]
        final = [record.stored_status(path, trial) in record.FINAL for path, trial in zip(paths, lot, strict=True)]
        left = [trial for trial, done in zip(lot, final, strict=True) if not done]
        skipped = ["skipped"] * (len(lot) - len(left))
        seconds = None if self.until is None else self.until - time.monotonic()
        if not left or self.stopped or (seconds is not None and seconds <= 0):
            return skipped + ["pending"] * len(left)
        worker = self.free.get()
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            return skipped + self._start(worker, left, seconds)
        except Exception as error:
            worker.close()  # its process may be at work still; the next lot gets another one
            if isinstance(error, OSError):
                where = paths[0].parent
                self.stopped = self.stopped or f"error: {where}: {error.strerror}; free some space or use another --out"
            else:
                self.board.done(_name(left[0]), f"failed: {error!r}")
            return skipped + ["failed"] * len(left)
        finally:
            self.free.put(worker)

    def _start(self, worker: Worker | Remote, lot: Sequence[Trial], seconds: float | None) -> list[str]:
        """Hands trials to a worker and listens until all have ended or its process has died."""
        plan = self.plan
        root = str(plan.data_root) if plan.data_root else None
        share = 1 if worker.device == "cpu" and plan.share is None else plan.share
        how = (plan.threads, root, plan.checkpoint_every, seconds, plan.keep_weights)
        jobs = [Job(trial, worker.device, str(plan.out), *how, n, share, plan.engine) for n, trial in enumerate(lot)]
        lines = worker.hand("".join(json.dumps(asdict(job)) + "\n" for job in jobs))
        if self.signal and not worker.told:  # it came while the child was being started
            worker.signal(signal.SIGTERM)
        said: dict[int, dict[str, Any]] = {number: {} for number in range(len(lot))}
        statuses: dict[int, str] = {}
        for line in lines:
            heard = parsed(line)
            number = heard.get("trial", 0)
            if number not in said or number in statuses:
                continue
            said[number] |= heard
            self.board.update(_name(lot[number]), said[number])
            if "end" in heard:
                statuses[number] = self._conclude(lot[number], said[number])
            if len(statuses) == len(lot):
                if worker.device != "cpu" or heard.get("leaves"):  # one that leaves looks alive, and would take a job
                    worker.close()
                return list(statuses.values())
        died_with = worker.close()
        for number in said.keys() - statuses.keys():
            statuses[number] = self._conclude(lot[number], said[number], died_with)
        return list(statuses.values())

    def _conclude(self, trial: Trial, said: dict[str, Any], died_with: int | None = None) -> str:
        """The status of a trial that has ended, with a record also where its process died before it could write one."""
        path, name, end = record.record_path(self.plan.out, trial), _name(trial), said.get("end")
        if end == BUSY:
            self.board.done(name, "skipped: another runner has it")
            return "busy"
        log = path.with_suffix(".log")
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
        if end == USER_ERROR:
            self.stopped = f"error: {said.get('error', 'bad input')}"
            return "failed"
        os.listdir(path.parent)  # makes an NFS client look anew for what another machine has written
        status = record.stored_status(path, trial)
        if end not in (DONE, UNFINISHED) and status not in record.FINAL:
            status = "failed" if end is not None else "interrupted" if self.signal else "killed"
            reason = said.get("failed", f"its process {_death(died_with if end is None else end)}")
            record.write(path, record.new_record(trial, status, reason))
        if status == "pending":  # it never began
            return status
        self.board.done(name, _outcome(path, status))
        return status


def _name(trial: Trial) -> str:
    return f"{trial.suite}/{trial.row} seed {trial.seed}"


def _death(code: int | None) -> str:
    return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


def _outcome(path: Path, status: str) -> str:
    """The end of a trial in one line: status, headline error, time, and why it was slower than it should be on a GPU."""
    found = record.read(path)
    if status != "done":
        return f"{status}: {found['reason']}"
    scores = found["result"]["last"]["test"]
    name, value = next(iter(scores.items()))
    what = name if name == "error" else f"{name} error"
    remark = str(found["run"].get("engine_remark") or "")
    slow = f", each step call by call ({remark})" if remark.startswith(UNCAPTURED) else ""
    return f"done, test {what} {value:.2f} %, {found['run']['seconds']:.0f} s{slow}"
