"""What runs on a dask worker: a trial process, and signals for it. Nothing here imports torch: it would block the worker."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.process import Worker


@dataclass
class _Task:
    topic: str
    device: str
    worker: Worker
    told: int = 0


_running: dict[str, _Task] = {}
_stopped: dict[str, int] = {}  # signals by topic, also for tasks that begin later
_lock = threading.Lock()


def compute(topic: str, key: str, jobs: list[dict[str, Any]], threads: int) -> tuple[list[str], int]:
    """Runs jobs in one trial process; what it said without the steps, and its exit code. All of it goes to the topic too."""
    from distributed import get_worker

    tell = get_worker().log_event
    tell(topic, {"key": key, "begun": uuid4().hex})
    with _lock:
        device = _free_device(jobs[0]["device"])
        task = _running[key] = _Task(topic, device, Worker(device, threads))
    said: list[str] = []
    ended = 0
    try:
        lines = task.worker.hand("".join(json.dumps({**job, "device": device}) + "\n" for job in jobs))
        stop(topic, _stopped.get(topic, 0))
        for line in lines:
            tell(topic, {"key": key, "line": line})
            if '"step"' not in line:
                said.append(line)
                ended += '"end"' in line
            if ended == len(jobs):
                break
    finally:
        code = task.worker.close()
        del _running[key]
    return said, code


def _free_device(device: str) -> str:
    """Of "cuda" the first GPU that no task of this worker has; a worker with `--resources GPU=2` has two."""
    if device != "cuda":
        return device
    taken = {task.device for task in _running.values()}
    return next(name for name in (f"cuda:{index}" for index in range(len(taken) + 1)) if name not in taken)


def stop(topic: str, times: int) -> None:
    """Passes on to each trial of a run as many signals as its runner has got; calling it again does no harm."""
    _stopped[topic] = times
    for task in list(_running.values()):
        while task.topic == topic and task.told < times:
            task.told += 1
            task.worker.signal(signal.SIGTERM)


def sees(probe: str) -> bool:
    """Whether a worker sees a file of the runner's."""
    return Path(probe).exists()
