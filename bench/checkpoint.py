"""Checkpoints: from one of these an interrupted trial goes on exactly, bit for bit on a CPU.

One file holds the sha256 of its payload, then the payload, so that a flipped bit or a cut end is noticed; the one before
it is kept. Payloads are loaded with `weights_only`, so a checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from bench.files import unused, write_atomic
from bench.record import digest_today

State = dict[str, Any]
PREVIOUS = ".previous"  # ends the name of the checkpoint before the last


def save(path: Path, state: State) -> None:
    """Writes `state` (tensors, numbers, text, lists and dicts of them) atomically; OSError leaves the last one intact.

    Raises TypeError for a state that could not be loaded again.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    try:
        torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TypeError(f"a checkpoint may hold plain tensors and numbers only: {error}") from error
    store(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def store(path: Path, content: bytes) -> None:
    """`save` for the bytes of a checkpoint, such as one from another folder."""
    if path.exists():
        path.replace(previous(path))
    write_atomic(path, content)


def load(path: Path, digest: str) -> tuple[State | None, list[str]]:
    """The latest sound state of the trial `digest`, or None; and what had to be passed over, one line each.

    Digests are those of trials as planned today: a knob that the method has got since the state was saved changes nothing.
    """
    remarks: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        state = read(candidate)
        if state is not None and digest_of(state) == digest:
            return state, remarks
        problem = "damaged" if state is None else "of another configuration"
        remarks.append(f"checkpoint {candidate.name} is {problem}, moved aside")
        _rename(candidate)
    return None, remarks


def step_reached(path: Path, digest: str) -> int:
    """The step at which the trial `digest` would go on; 0 without a sound checkpoint of it. Moves nothing, unlike `load`."""
    states = (read(candidate) for candidate in (path, previous(path)) if candidate.exists())
    return next((state["step"] for state in states if state is not None and digest_of(state) == digest), 0)


def digest_of(state: State) -> str:
    """Digest of a state's trial as it would be planned today, if the state says which trial that is."""
    return digest_today(state) if "trial" in state else str(state.get("digest"))


def set_aside(path: Path) -> None:
    """Renames the checkpoints of a trial that cannot go on from them."""
    for candidate in (path, previous(path)):
        if candidate.exists():
            _rename(candidate)


def remove(path: Path) -> None:
    """Deletes the checkpoints of a finished trial."""
    for candidate in (path, previous(path)):
        candidate.unlink(missing_ok=True)


def _rename(path: Path) -> None:
    path.replace(unused(lambda mark: path.with_name(f"{path.name}.bad{mark}")))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` lies."""
    return path.with_name(path.name + PREVIOUS)


def read(path: Path) -> State | None:
    """The state in a file, on the CPU, or None if a single bit of it is not as written."""
    return parse(path.read_bytes())


def parse(content: bytes) -> State | None:
    """The state that a file holds, as `read` gives it."""
    head, _, payload = content.partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != head:
        return None
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises nearly anything on bytes that make no sense; it runs no code in any case
        return None
    return state if isinstance(state, dict) else None
