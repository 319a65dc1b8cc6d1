"""The lock of a trial: one runner has it, on this machine or on any other that shares the folder.

A lock is a file seedNN.lock.K, made by a hard link, which exactly one of many can make. Its holder keeps the system's own
lock on it (`flock`) and writes a new beat into it every BEAT_S seconds. Who finds such a file and
- cannot get the flock: the holder lives;
- gets it, and the file is of this machine: the holder is dead, for on one machine flock is always right;
- gets it, and the file is of another machine: flock may not reach there, so the beat is watched, for STALE_S seconds of the
  watcher's own monotonic clock; what differs between the machines' clocks never matters.
A dead holder's lock is taken over by making the file K + 1. A holder that slept through that sees it, and leaves.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from uuid import uuid4

from bench.files import publish

BEAT_S = 10.0
STALE_S = 120.0  # longer than a beat and the minute for which an NFS client may believe an old directory
LENGTH = 256  # bytes of a beat: written in place and in one go


class Lost(Exception):
    """Another runner has taken the lock over, because this one was silent for too long."""


@cache
def machine() -> str:
    """Which running system this is: the kernel's boot id, since names of hosts need not differ."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def acquire(path: Path, stop: Callable[[], bool] = lambda: False) -> Generator[None, None, Lock | None]:
    """The lock, or None if another runner lives that has it; yields while that is being watched, until `stop`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = _newest(path)
    if number and (yield from _lives(_file(path, number), stop)):
        return None
    lock = Lock(path, number + 1)
    return lock if lock.claim() else None


def under_way(path: Path) -> bool:
    """Whether the lock has a holder that lives, by one look; of another machine's, which takes longer, it is believed."""
    try:
        with _file(path, _newest(path)).open("rb") as file:
            dead = _flock(file, fcntl.LOCK_SH)  # shared: who looks at the same moment, or may not write, sees the same
            return not (dead and _machine_of(file.read()) == machine())
    except (FileNotFoundError, NotADirectoryError):  # there is none
        return False
    except PermissionError:  # another user's, which cannot be asked
        return True


class Lock:
    """A lock to be claimed and held; as a context manager it is released in the end."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.lost = False
        self.beats = 0
        self.ended = threading.Event()
        self.file: BinaryIO | None = None

    def claim(self) -> bool:
        """Whether the lock could be had; the file appears with its content and with the flock already on it."""
        part = self.path.with_name(f".{self.path.name}.{uuid4().hex}.part")
        self.file = part.open("x+b", buffering=0)
        try:
            _flock(self.file)
            self._beat()
            if not publish(part, _file(self.path, self.number)) or not self.held():
                self.release()
                return False
        except BaseException:  # such as a full disk
            self.release()
            raise
        finally:
            part.unlink(missing_ok=True)
        for number in _numbers(self.path) - {self.number}:
            _file(self.path, number).unlink(missing_ok=True)
        threading.Thread(target=self._keep, daemon=True).start()
        return True

    def held(self) -> bool:
        """Whether the lock is still ours, by what lies in the folder now."""
        try:
            self.lost = self.lost or not (_newest(self.path) == self.number and self._is_mine())
        except (OSError, ValueError):  # ValueError: it was released just now, while its thread asked
            self.lost = True
        return not self.lost

    def require(self) -> None:
        """Raises Lost if the lock is no longer ours; to be called before anything is written."""
        if not self.held():
            raise Lost

    def release(self) -> None:
        """Removes the file unless it is another's by now."""
        self.ended.set()
        if self.file is None:
            return
        with suppress(OSError):
            if self._is_mine():
                _file(self.path, self.number).unlink(missing_ok=True)
        self.file.close()

    def _is_mine(self) -> bool:
        assert self.file
        return os.path.samestat(os.fstat(self.file.fileno()), os.stat(_file(self.path, self.number)))

    def _keep(self) -> None:
        while not self.ended.wait(BEAT_S) and self.held():
            with suppress(
                OSError, ValueError
            ):  # a full or slow disk, or the file was closed just now: others may take over
                self._beat()

    def _beat(self) -> None:
        assert self.file
        self.beats += 1
        about = {"machine": machine(), "host": platform.node(), "pid": os.getpid(), "beat": self.beats}
        about["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # for people; nothing compares it
        os.pwrite(self.file.fileno(), json.dumps(about)[: LENGTH - 1].ljust(LENGTH - 1).encode() + b"\n", 0)
        os.fsync(self.file.fileno())

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lives(path: Path, stop: Callable[[], bool]) -> Generator[None, None, bool]:
    """Whether the holder of a lock file lives, or may; False also if the file is gone."""
    try:
        with path.open("r+b") as file:
            granted = _flock(file)
            if granted is False:
                return True
            first = path.read_bytes()
            if granted and _machine_of(first) == machine():
                return False
            until = time.monotonic() + STALE_S
            while time.monotonic() < until:
                look = time.monotonic() + BEAT_S / 5
                while time.monotonic() < look:
                    if stop():
                        return True
                    yield
                    time.sleep(0.05)
                if path.read_bytes() != first:
                    return True
    except FileNotFoundError:
        pass
    except PermissionError:  # another user's, which cannot be asked
        return True
    return False


def _flock(file: BinaryIO, kind: int = fcntl.LOCK_EX) -> bool | None:
    """Whether the system's lock on an open file could be had; None where the file system knows no such locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _machine_of(beat: bytes) -> str | None:
    try:
        return str(json.loads(beat)["machine"])
    except (ValueError, KeyError, TypeError):
        return None


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _numbers(path: Path) -> set[int]:
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)")
    found = (pattern.fullmatch(name) for name in os.listdir(path.parent))
    return {int(match[1]) for match in found if match}


def _newest(path: Path) -> int:
    return max(_numbers(path), default=0)
