"""Files that are either whole or not there: written beside their name, then moved onto it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from bench.errors import UserError

STALE_S = 600.0  # after which nobody writes a part any more


def write_output(path: Path, content: str | bytes) -> None:
    """`write_atomic` for a file that the user named; UserError if it cannot be written."""
    try:
        write_atomic(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another file") from None


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one go; a crash, a full disk or a reader never meets half a file.

    Raises OSError with the old file intact and nothing left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(
        f".{path.name}.{os.getpid()}.{uuid4().hex}.part"
    )  # unique: a stale one of a dead run is no obstacle
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def sweep(path: Path) -> None:
    """Deletes what dead runs left half-written of the files that have the name of `path` before their ending."""
    for part in path.parent.glob(f".{path.stem}.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
