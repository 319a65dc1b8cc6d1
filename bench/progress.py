"""What a person sees while trials run: one live line per running trial on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Board:
    """Live lines for running trials, and one plain line for each that has ended.

    On a terminal the live lines are redrawn in place; otherwise only the ends are printed.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.lock = threading.RLock()  # a signal may come while its own thread holds it
        self.lines: dict[str, str] = {}
        self.started: dict[str, tuple[float, int]] = {}
        self.drawn = 0

    def update(self, name: str, said: dict[str, Any]) -> None:
        """A trial reported {"step", "steps"}."""
        if not self.live or "step" not in said:
            return
        with self.lock, self._unheard():
            step, steps, now = int(said["step"]), int(said["steps"]), time.monotonic()
            since, first = self.started.setdefault(name, (now, step))
            self.lines[name] = f"{name}: {step}/{steps}" + _rate(step - first, steps - step, now - since)
            self._draw()

    def done(self, name: str, outcome: str) -> None:
        """A trial has ended."""
        with self.lock:
            self.lines.pop(name, None)
            self.say(f"{name}: {outcome}")

    def say(self, line: str) -> None:
        """A plain line, above the live ones."""
        with self.lock, self._unheard():
            self._clear()
            print(line, file=self.stream, flush=True)
            self._draw()

    def close(self) -> None:
        """Takes the live lines away."""
        with self.lock, self._unheard():
            self._clear()

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """Nobody reads any more, a pipe was closed or a terminal has gone: the trials go on."""
        try:
            yield
        except OSError:
            self.live = False

    def _clear(self) -> None:
        if self.drawn:
            self.stream.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0

    def _draw(self) -> None:
        self._clear()
        if self.live and self.lines:
            self.stream.write("".join(f"{line[:79]}\n" for line in self.lines.values()))
            self.drawn = len(self.lines)
        self.stream.flush()


def _rate(steps: int, left: int, seconds: float) -> str:
    """Steps per second and the time left, once there is something to go by."""
    if steps <= 0 or seconds <= 0:
        return ""
    rate = steps / seconds
    return f", {rate:.1f} steps/s, {duration(left / rate)} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
