"""What this machine has for trials: devices, cores, memory."""

from __future__ import annotations

import os
import re

from bench.errors import UserError
from bench.yaml_strict import unknown

MOST = 1024  # threads, processes or repetitions that anybody can mean
MEMORY_EACH = 8 * 2**30  # bytes that a trial on a CPU may need, SVHN at its batch of 100 among them


def device_slots(name: str, workers: int | None, trials: int = 10) -> tuple[str, ...]:
    """The device of each worker, for so many trials; UserError for a device that is not there.

    On CPU cores, as many trials at once as there are cores and memory for: a core of its own serves a trial better than
    a share of its products does (docs/performance.md).
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # ask the driver; the parent must hold no CUDA context
    import torch

    count = torch.cuda.device_count()
    known = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if not count and re.fullmatch(r"cuda(:\d+)?", name, re.ASCII):
        why = "finds no GPU" if torch.backends.cuda.is_built() else "was built without CUDA"
        raise UserError(f"--device: unknown device {name!r}: PyTorch {torch.__version__} {why}; choices: auto, cpu")
    if name not in known:
        raise unknown("device", name, known, "--device")
    if name == "auto":
        name = "cuda" if count else "cpu"
    pool = [f"cuda:{index}" for index in range(count)] if name == "cuda" else [name]
    at_once = min(cores(), max(1, trials), max(1, memory() // MEMORY_EACH)) if name == "cpu" else len(pool)
    n = positive("--workers", workers) or at_once
    return tuple(pool[index % len(pool)] for index in range(n))


def threads_each(threads: int | None, workers: int) -> int:
    """CPU threads of each trial: what was asked for, else the cores shared out."""
    return positive("--threads", threads) or max(1, cores() // workers)


def positive(name: str, value: int | None) -> int | None:
    """`value`, or UserError if the option `name` cannot mean it."""
    if value is not None and not 1 <= value <= MOST:
        raise UserError(f"{name}: expected a number from 1 to {MOST}, got {value}")
    return value


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory of this machine; plenty where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**60
