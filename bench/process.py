"""A trial process as seen from outside. Nothing here imports torch, for a dask worker must answer at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from bench.provenance import ROOT

STARTED = "AMM_STARTED"  # in a child's environment: when it was started, by the clock that all processes share


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
                errors="replace",  # whatever it says must not hurt
                env=environment(self.threads),
                start_new_session=True,  # a terminal's Ctrl-C reaches the dispatcher alone, which passes it on
            )
        return self.child

    def hand(self, text: str) -> Iterable[str]:
        """Hands jobs to the process, a line each; the lines that it says."""
        child = self.start()
        assert child.stdin and child.stdout
        with suppress(BrokenPipeError):  # it died at once; its exit code says how
            child.stdin.write(text)
            child.stdin.flush()
        return child.stdout

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


def parsed(line: str) -> dict[str, Any]:
    """A JSON object from a line of the child, or nothing: half a line of one that died must not hurt."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def environment(threads: int) -> dict[str, str]:
    """The child's environment: where the package lies, its threads, deterministic matrix products, memory kept.

    glibc returns large buffers to the system at once and pays a page fault for every page of the next one; keeping them
    makes elementwise work on a CPU two to three times as fast.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {
        **os.environ,
        STARTED: repr(time.monotonic()),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        "MALLOC_TOP_PAD_": str(2**28),
    }
