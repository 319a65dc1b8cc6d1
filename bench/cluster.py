"""Trials on the workers of a dask cluster, with `Remote` in the place of the dispatcher's `Worker`.

A worker's task starts `python -m bench.trial` and waits, so a trial that is killed costs itself and never the worker; a
worker that is killed takes its trials' pipes with it, they checkpoint and leave, and the scheduler gives their lots to
others. joblib's own dask backend is not used: it waits for ever for a task whose worker died again and again.
Only numbers, names of states and reasons travel; results are records in the folder that all machines share.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import re
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bench.cli import say
from bench.engine import require_device
from bench.errors import UserError
from bench.lock import STALE_S
from bench.pool import BUSY, UNFINISHED
from bench.process import parsed
from bench.remote import compute, sees, stop

if TYPE_CHECKING:
    from argparse import Namespace
    from collections import Counter

    from bench.dispatch import Dispatcher, Plan
    from bench.suite import Trial

Lines = Generator[str, None, list[str] | None]

CONNECT_S = 10.0  # for the scheduler to answer
WORKERS_S = 60.0  # for its first worker
ABSENT_S = 300.0  # without any worker, after which a run ends and the rest stays pending
LEAVING_S = 5.0  # the same once a signal came: their trials have checkpointed, and nobody is left to wait for
POLL_S = 1.0
MOST = 256  # lots at once
RETRIES = 3  # of a lot whose workers keep dying, beside those that the scheduler makes itself


@dataclass
class Cluster:
    """A connection to a scheduler, and what is known of its workers."""

    client: Any
    gpu: bool
    most: int | None = None
    topic: str = field(default_factory=lambda: f"amm-{uuid4().hex}")
    times: int = 0  # signals received
    slots: int = 0
    seen: float = field(default_factory=time.monotonic)  # when there was a worker last
    lost: str = ""  # why none can be had any more
    closing: threading.Event = field(default_factory=threading.Event)
    turn: threading.Condition = field(default_factory=threading.Condition)
    busy: int = 0
    listeners: dict[str, queue.SimpleQueue[dict[str, Any]]] = field(default_factory=dict)

    def watch(self) -> None:
        """Begins to follow the workers and to listen to the trials."""
        self.client.subscribe_topic(self.topic, self._hear)
        self.slots = capacity(self.client, self.gpu)
        threading.Thread(target=self._watch, daemon=True).start()

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        listener = self.listeners.get(event[1]["key"])
        if listener is not None:
            listener.put(event[1])

    def _watch(self) -> None:
        """Counts the workers again and again, and says that a signal came until every trial has heard of it."""
        while not self.closing.wait(POLL_S) and not self.lost:
            try:
                found = capacity(self.client, self.gpu)
                if self.times:
                    self.client.run(stop, self.topic, self.times, on_error="ignore")
            except Exception as error:  # of many kinds, from the sockets up
                found = 0
                if self.client.status != "running" and not self.closing.is_set():
                    self.lost = f"the scheduler is gone ({type(error).__name__})"
            with self.turn:
                self.slots, self.seen = found, time.monotonic() if found else self.seen
                self.turn.notify_all()

    def gone(self) -> bool:
        """Whether no worker can be had any more: the scheduler has left, or neither it nor a worker was heard for long."""
        limit = LEAVING_S if self.times and not self.slots else ABSENT_S
        if not self.lost and time.monotonic() - self.seen > limit:
            self.lost = f"no worker for {limit:.0f} s"
        return bool(self.lost)

    def enter(self, until: float = math.inf) -> bool:
        """Waits for a free slot; False if there is none to be had, the run shall stop, or the monotonic clock is past `until`."""
        with self.turn:
            while not (over := self._over(until)) and self.busy >= min(self.slots, self.most or self.slots):
                self.turn.wait(POLL_S)
            if over:
                return False
            self.busy += 1
            return True

    def _over(self, until: float) -> bool:
        return bool(self.times) or self.gone() or time.monotonic() > until

    def leave(self) -> None:
        """Gives the slot back."""
        with self.turn:
            self.busy -= 1
            self.turn.notify_all()


class Remote:
    """Hands lots to the cluster, one at a time; has the face of `bench.dispatch.Worker`."""

    def __init__(self, cluster: Cluster, device: str, threads: int) -> None:
        self.cluster, self.device, self.threads = cluster, device, threads
        self.signals = 0
        self.code = 0

    @property
    def told(self) -> bool:
        """Whether there was a signal."""
        return self.signals > 0

    def signal(self, number: int) -> None:
        """Has the signal passed on by the next look at the workers; one signal reaches every `Remote` of a cluster."""
        self.signals += 1
        self.cluster.times = max(self.cluster.times, self.signals)

    def close(self) -> int:
        """Exit code of the last lot's process."""
        return self.code

    def hand(self, text: str) -> Iterator[str]:
        """The lines that the trials say, wherever they run; at last those that matter once more."""
        jobs = [json.loads(line) for line in text.splitlines()]
        self.code = 0
        began = time.monotonic()
        seconds = jobs[0]["seconds"]  # the same for all of a lot
        if not self.cluster.enter(math.inf if seconds is None else began + seconds):
            yield from _unfinished(jobs)
            return
        try:
            yield from self._compute(jobs, began)
        finally:
            self.cluster.leave()

    def _compute(self, jobs: list[dict[str, Any]], began: float) -> Iterator[str]:
        """Submits until the lot has ended for another reason than the death of its workers."""
        deaths, died = 0, -math.inf
        while True:
            begun: dict[str, float] = {}
            said = yield from self._submit(jobs, began, begun)
            if len(begun) > 1:  # the scheduler gave the lot of a dead worker to another one by itself
                died = max(begun.values())
            if said is None:
                deaths, died = deaths + 1, time.monotonic()
                if self.cluster.gone() or self.cluster.times:
                    yield from _unfinished(jobs)
                    return
                if deaths > RETRIES:
                    self.code = -signal.SIGKILL
                    why = f"its dask worker died, {deaths} times over"
                    yield from (json.dumps({"trial": job["number"], "failed": why}) + "\n" for job in jobs)
                    return
            elif not self._held_by_its_own(said, died):
                yield from said
                return
            time.sleep(POLL_S)

    def _held_by_its_own(self, said: list[str], died: float) -> bool:
        """Whether a trial is locked, perhaps by its own process on a worker that `died`, still writing its checkpoint."""
        waits = time.monotonic() - died < 2 * STALE_S and not self.cluster.times
        return waits and any(parsed(line).get("end") == BUSY for line in said)

    def _submit(self, jobs: list[dict[str, Any]], began: float, begun: dict[str, float]) -> Lines:
        """Runs the lot once; yields what is said of steps and returns the rest, or None if its workers died.

        `begun` gets the time of each worker's beginning.
        """
        cluster, key = self.cluster, f"trial-{uuid4().hex}"
        heard = cluster.listeners[key] = queue.SimpleQueue()
        spent = time.monotonic() - began
        left = [job | {"seconds": None if job["seconds"] is None else max(0.0, job["seconds"] - spent)} for job in jobs]
        ended = lambda _: heard.put({})
        try:
            future = cluster.client.submit(
                compute,
                *(cluster.topic, key, left, self.threads),
                key=key,
                pure=False,
                resources={"GPU": 1} if cluster.gpu else None,
            )
            future.add_done_callback(ended)
            while not future.done() and not cluster.gone():
                with suppress(queue.Empty):
                    said = heard.get(timeout=POLL_S)
                    if "begun" in said:
                        begun[said["begun"]] = time.monotonic()
                    elif "line" in said and parsed(said["line"]).get("end") != BUSY:
                        yield said["line"]
            if future.status != "finished":
                future.release()
                return None
            lines, self.code = future.result(timeout=CONNECT_S)
            return lines
        except Exception as error:  # the connection broke, or a worker cannot run our code
            say(f"{key}: {type(error).__name__}: {error}")
            return None
        finally:
            del cluster.listeners[key]


def _unfinished(jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps({"trial": job["number"], "end": UNFINISHED}) + "\n" for job in jobs)


def capacity(client: Any, gpu: bool) -> int:
    """Trials that the workers take at once: one for each GPU, or for each thread."""
    workers = client.scheduler_info()["workers"].values()
    return sum(int(each["resources"].get("GPU", 0)) if gpu else int(each["nthreads"]) for each in workers)


@contextmanager
def opened(
    scheduler: str | None, device: str, devices: Sequence[str], most: int | None, out: Path
) -> Iterator[Cluster]:
    """The cluster at a scheduler's address, or one started here with a worker for each of `devices`.

    UserError: dask is not installed, nobody answers, the address is none, its protocol lacks settings, there are no workers,
    or none that could serve.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise UserError(f"--backend dask needs the module {error.name!r}; pip install -e '.[dask]'") from None
    if scheduler is not None:
        require_address(scheduler)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it repeats what our lines say

    class Caller(Client):
        """The stack closes it; after a constructor that failed, dask's __del__ would wait in vain and complain for long."""

        def __del__(self) -> None: ...

    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        address = scheduler or stack.enter_context(_local(devices))
        try:
            client = stack.enter_context(Caller(address, timeout=CONNECT_S, set_as_default=False))
            client.wait_for_workers(1, timeout=WORKERS_S)
        except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"--scheduler {scheduler}: {reason}; expected one that runs, such as tcp://host:8786"
            ) from None
        check(client, out)
        gpus = capacity(client, gpu=True)
        if device.startswith("cuda") and scheduler and not gpus:
            raise UserError(f"--device {device}: no worker offers a GPU; start dask worker with --resources GPU=1")
        cluster = Cluster(client, gpu=device != "cpu" and gpus > 0, most=most)
        cluster.watch()
        try:
            yield cluster
        finally:
            cluster.closing.set()
            if cluster.times:  # its trials have ended; another Ctrl-C would make dask's end take longer, not shorter
                signal.signal(signal.SIGINT, signal.SIG_IGN)


def require_address(scheduler: str) -> None:
    """UserError unless it reads as an address, with the certificates that dask needs for an encrypted one."""
    import dask
    from distributed.security import Security

    if not scheduler.strip():
        raise UserError("--scheduler: is empty, perhaps an unset variable; expected an address such as tcp://host:8786")
    if not re.fullmatch(r"(\w+://)?[^\s/]+:\d+", scheduler):  # of anything else the client would complain for long
        raise UserError(f"--scheduler {scheduler}: expected an address such as tcp://host:8786")
    if not scheduler.startswith(("tls://", "wss://")) or dask.config.get("distributed.client.security-loader", None):
        return
    for name in ("ca-file", "client.cert"):  # the key may lie in the certificate's file
        setting = f"distributed.comm.tls.{name}"
        if not dask.config.get(setting, None):
            variable = "DASK_" + setting.upper().replace(".", "__").replace("-", "_")
            raise UserError(f"--scheduler {scheduler}: dask's setting {setting} is missing; set {variable}=FILE")
    try:
        Security().get_connection_args("client")
    except (OSError, ValueError) as error:
        why = f"the files of dask's settings distributed.comm.tls cannot be used ({error})"
        raise UserError(f"--scheduler {scheduler}: {why}; set ca-file, client.cert and client.key") from None


def _local(devices: Sequence[str]) -> Any:
    """A cluster on this machine: a worker process of one thread for each device."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=len(devices),
        threads_per_worker=1,
        resources={"GPU": 1} if devices[0].startswith("cuda") else None,
        memory_limit=0,  # a trial's memory is no matter of its worker's
        dashboard_address=None,
        # a group of its own: a terminal's Ctrl-C reaches us alone, who pass it on, and the workers live to hear of it
        preload=["import os; os.setpgid(0, 0)"],
        silence_logs=logging.CRITICAL,
    )


def check(client: Any, out: Path) -> None:
    """UserError if there are workers that lack our code or our folder."""
    probe = out / f".{uuid4().hex}.probe"
    out.mkdir(parents=True, exist_ok=True)
    probe.touch()
    try:
        found = client.run(sees, str(probe.resolve()), on_error="return")
    finally:
        probe.unlink(missing_ok=True)
    for address, seen in found.items():
        if isinstance(seen, BaseException):
            raise UserError(f"worker {address}: cannot import bench ({seen}); start it with PYTHONPATH at the code")
        if not seen:
            raise UserError(
                f"worker {address}: does not see {out.resolve()}; --out must be a folder that all machines share"
            )


def dispatch(plan: Plan, trials: Sequence[Trial], options: Namespace) -> tuple[Dispatcher, Counter[str]]:
    """Runs trials on the cluster that the options name; the paths of `plan` become absolute."""
    from bench.dispatch import Dispatcher
    from bench.progress import Board

    root = plan.data_root.resolve() if plan.data_root else None
    plan = replace(plan, out=plan.out.resolve(), data_root=root)
    with opened(options.scheduler, options.device, plan.devices, options.workers, plan.out) as cluster:
        if options.scheduler:
            name = options.device if options.device not in ("auto", "cuda") else "cuda" if cluster.gpu else "cpu"
            for trial in trials:
                require_device(trial.precision, name)
            plan = replace(plan, devices=(name,) * max(1, min(cluster.slots, options.workers or cluster.slots)))
        names = plan.devices if not options.scheduler else plan.devices[:1] * min(len(plan.lots(trials)), MOST)
        dispatcher = Dispatcher(plan, Board(), [Remote(cluster, name, plan.threads) for name in names])
        outcomes = dispatcher.run(trials)
        if cluster.lost:
            say(f"stopped: {cluster.lost}; the same command goes on")
        return dispatcher, outcomes
