"""A process that runs trials: a job a line on standard input, progress as JSON lines on standard output.

What a method or a library prints is kept apart from these lines: it goes to the trial's log.
Started by `bench.dispatch`; a kill or a crash here costs the trials under way alone. SIGINT, SIGTERM and the end of the
parent make it finish the step, write a checkpoint and leave; a second signal leaves at once. Trials that share the process
take turns, a step each, on a GPU each on a stream of its own (`bench.pool`).
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from bench import checkpoint, curves, provenance, record
from bench.engine import Mode
from bench.errors import Diverged, UserError, told
from bench.files import NO_SPACE, sweep
from bench.lock import Lock, Lost, acquire
from bench.pool import BUSY, DONE, FAILED, UNFINISHED, USER_ERROR, Going, Pool
from bench.process import STARTED
from bench.sources import SOURCES
from bench.suite import Trial
from bench.trainer import Run
from bench.yaml_strict import build

# which decide bits, by their keys in a checkpoint
SURROUNDINGS = {"threads": "number of threads", "device_name": "device", "torch": "version of torch"}
OUT, ERR = 1, 2  # where a C library prints, whatever sys.stdout is
_channel: TextIO | None = None  # to the dispatcher; standard output until `keep_apart`


@dataclass(frozen=True)
class Job:
    """What the dispatcher hands over.

    `seconds` is the time left, `checkpoint_every` the seconds between checkpoints; with `keep_weights` what `Run.weights` returns
    stays beside the record, in a file like a checkpoint with the suffix .weights. `number` is the name of the trial in what the
    process says; `share` how many trials at most take turns in it, None for as many as pay.
    """

    trial: Trial
    device: str
    out: str
    threads: int
    data_root: str | None = None
    checkpoint_every: float = 60.0
    seconds: float | None = None
    keep_weights: bool = False
    number: int = 0
    share: int | None = 1
    engine: Mode = "auto"


class Stop:
    """Whether to leave at the next step: a signal came, the parent went away, or the time is up.

    Its thread is the only reader of standard input: lines are jobs, the end means that the parent is gone.
    """

    def __init__(self) -> None:
        self.asked = False
        self.since = 0.0
        self.until: float | None = None
        self.jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signal)
        threading.Thread(target=self._read, daemon=True).start()

    def __call__(self) -> bool:
        return self.asked or (self.until is not None and time.monotonic() > self.until)

    def _signal(self, number: int, frame: object) -> None:
        # one request may arrive twice, from the system and from the dispatcher; a person's second one comes later
        if self.since and time.monotonic() - self.since > 1.0:
            os._exit(128 + number)
        self.asked, self.since = True, self.since or time.monotonic()  # of signals alone: the parent's end is none
        self.jobs.put("")

    def _read(self) -> None:
        with os.fdopen(os.dup(sys.stdin.fileno())) as lines:
            for line in lines:
                self.jobs.put(line)
        self.asked = True
        self.jobs.put("")


def run(job: Job, stop: Stop, pool: Pool) -> Going:
    """Runs or resumes the job's trial and writes its record; yields before every step, and returns how it ended."""
    path = record.record_path(Path(job.out), job.trial)
    lock = yield from acquire(path.with_suffix(".lock"), stop)
    if lock is None:
        return BUSY
    with lock:
        if record.stored_status(path, job.trial) in record.FINAL:
            _clear(path)  # of one that was killed when its record stood
            return DONE
        try:
            return (yield from _run(job, path, stop, pool, lock))
        except Lost:
            return BUSY


def _run(job: Job, path: Path, stop: Stop, pool: Pool, lock: Lock) -> Going:
    """The locked part of `run`."""
    sweep(path)
    torch.set_num_threads(job.threads)
    facts = _run_facts(job)  # before training: the sources may change on disk meanwhile
    root = Path(job.data_root) if job.data_root else None
    current = Run(job.trial, torch.device(job.device), root, job.engine)
    saved = path.with_suffix(".checkpoint")
    made_by = {"trial": job.trial.to_json(), "sources": facts["git"]["sources"], "threads": job.threads}
    made_by |= {"device_name": facts["device_name"], "torch": facts["versions"]["torch"]}
    remarks, before = _resume(current, saved, made_by)
    made_by["remarks"] = remarks  # for whoever goes on from here
    if before:
        made_by["before"] = facts["git"]["before"] = before
    written, shown = time.monotonic(), 0

    def save(run: Run) -> None:
        lock.require()
        checkpoint.save(saved, run.state() | made_by)

    def keep(run: Run) -> None:
        nonlocal written, shown
        if len(run.curve) > shown:
            curves.keep(path, run.curve)
            shown = len(run.curve)
        if time.monotonic() - written >= job.checkpoint_every:
            save(run)
            written = time.monotonic()

    status, reason = "done", None
    try:
        for _ in current.stages(Reporter(job.number), keep):
            yield
            if lock.lost:
                raise Lost
            if stop() or pool.unwanted(job.number):
                save(current)
                status, reason = "interrupted", f"at step {current.step} of {current.steps}"
                break
    except Diverged as error:
        status, reason = "diverged", str(error)
    engine = current.engine
    about = {**facts, "seconds": round(current.seconds, 3), "resumed": current.resumed, "remarks": remarks}
    about |= {"engine": engine.name, "engine_remark": engine.remark or None, "shared_by": pool.most}
    result = current.result() if status in record.FINAL else None
    departures = current.method.departures()
    lock.require()
    if job.keep_weights and status == "done":  # before the record, beside which nobody would make them any more
        checkpoint.save(path.with_suffix(".weights"), current.weights())
    if not record.write(
        path, record.new_record(job.trial, status, reason, result, _data_facts(current), about, departures)
    ):
        raise Lost
    if status == "interrupted":
        return UNFINISHED
    _clear(path)
    return DONE


def _clear(path: Path) -> None:
    """Deletes what a trial with a final record needs no more."""
    checkpoint.remove(path.with_suffix(".checkpoint"))
    curves.remove(path)


def _resume(run: Run, saved: Path, made_by: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Continues from the last sound checkpoint, if any; returns remarks for the record, and what other code it ran with."""
    state, remarks = checkpoint.load(saved, run.trial.digest)
    if state is not None and not run.fits(state):
        checkpoint.set_aside(saved)
        return [
            *remarks,
            "a checkpoint of other code, other data or another kind of device was set aside; the trial began again",
        ], []
    if state is None:
        return remarks, []
    run.restore(state)
    changed = [what for key, what in SURROUNDINGS.items() if state.get(key) not in (None, made_by[key])]
    remarks = [*state.get("remarks", []), *remarks, *(f"continued with another {what} than before" for what in changed)]
    before = list(state.get("before", []))
    if state.get("sources") not in (None, made_by["sources"]):
        before.append(state["sources"])
    return list(dict.fromkeys(remarks)), before


class Reporter:
    """Prints the step about twice a second, for the dispatcher to show."""

    def __init__(self, number: int) -> None:
        self.number, self.next = number, 0.0

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if now >= self.next or step == steps:
            self.next = now + 0.5
            say(trial=self.number, step=step, steps=steps)


def keep_apart() -> None:
    """Keeps the pipe to the dispatcher for `say` alone; all else that is printed goes where standard error goes.

    Text without an end of line would hide the message after it, and JSON would pass for one.
    """
    global _channel
    _channel = os.fdopen(os.dup(OUT), "w")
    os.dup2(ERR, OUT)
    sys.stdout = sys.stderr  # one buffer, so that all is in order


def say(**message: object) -> None:
    """One line for the dispatcher; that it may be gone must not end a trial, which stops by itself then."""
    channel = _channel or sys.stdout
    try:
        print(json.dumps(message), file=channel, flush=True)
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), channel.fileno())


def _data_facts(run: Run) -> dict[str, Any]:
    data = run.dataset
    return {
        "name": run.trial.data,
        "digest": data.digest,
        "split_digest": data.split_digest,
        "note": SOURCES[run.trial.data].note,
        "variant": data.variant or None,
    }


def _run_facts(job: Job) -> dict[str, Any]:
    """What is not part of the result: clock, device, versions, code."""
    device = torch.device(job.device)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.cpu_name(),
        "precision": job.trial.precision,
        "threads": job.threads,
        "versions": provenance.versions(),
        "git": dict(provenance.code()),
    }


def attempt(job: Job, stop: Stop, pool: Pool) -> Going:
    """`run` with every exception turned into a way to end, and what is printed into the trial's log.

    torch.OutOfMemoryError goes on to the pool while other trials share the memory.
    """
    log = record.record_path(Path(job.out), job.trial).with_suffix(".log")
    try:
        # another user's cannot be opened; then the lock says whose the trial is
        with suppress(PermissionError, IsADirectoryError), log.open("a") as file:
            for printed in (OUT, ERR):
                os.dup2(file.fileno(), printed)
        return (yield from run(job, stop, pool))
    except UserError as error:
        say(trial=job.number, error=str(error))
        return USER_ERROR
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            say(trial=job.number, error=f"{log.parent}: {error.strerror}; free some space or use another --out")
            return USER_ERROR
        if isinstance(error, torch.OutOfMemoryError) and pool.crowded():
            raise
        with suppress(OSError), log.open("a") as file:
            traceback.print_exc(file=file)
        say(trial=job.number, failed=told(error))
        return FAILED
    finally:
        with suppress(OSError):  # a full disk
            sys.stderr.flush()  # a line without an end belongs to this log, not to the next one


def main() -> int:
    """Runs jobs until the parent closes the pipe or a signal comes.

    Says {"trial": number, "end": code, "leaves": whether this process takes no further job} after each.
    """
    keep_apart()
    stop = Stop()
    pool: Pool | None = None
    started = float(os.environ.get(STARTED, "inf"))
    while True:
        idle = pool is None or not pool.busy()
        line = stop.jobs.get() if idle or not stop.jobs.empty() else ""
        if line:
            job = build(Job, json.loads(line), "job")
            if job.seconds is not None:
                # the end is the same for all jobs; the first one was read soonest, and sent before torch was imported
                stop.until = min(stop.until or math.inf, min(started, time.monotonic()) + job.seconds)
                started = math.inf
            pool = pool or Pool(job.share, torch.device(job.device), stop)
            pool.add(job.number, partial(attempt, job, stop, pool))
        if pool is None or not pool.busy():
            return 0
        for number, end in pool.turn():
            say(trial=number, end=end, leaves=stop.asked or provenance.changed())
        if stop.asked and not pool.busy():
            return 0


if __name__ == "__main__":
    sys.exit(main())
