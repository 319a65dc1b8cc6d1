"""Trials that take turns in one process, a step each, and how many of them at once.

On a GPU a step is a few launches of graphs that overlap with those of other trials. Whether more trials pay is timed: twice
as many take turns as long as the steps of all together grow. Without memory for that many, half of them wait for the others.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator

import torch

DONE, FAILED, USER_ERROR, UNFINISHED, BUSY = range(5)  # how a trial ended
Going = Generator[None, None, int]  # a trial under way: yields before every step, returns how it ended
WINDOW_S = 3.0  # over which steps are counted before more trials are tried
SETTLED_S = 5.0  # that new trials are given first to warm up and to be captured
GAIN = 1.05  # of all steps a second that twice as many trials must bring


class Pool:
    """Trials by number, those that take turns and those that wait.

    Args:
        share: how many take turns at most; None for as many as pay.
        device: where they compute.
        stop: whether no trial is to begin any more.
    """

    def __init__(self, share: int | None, device: torch.device, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self.limit = share or 1
        self.grows = share is None
        self.device = device
        self.begin: dict[int, Callable[[], Going]] = {}
        self.waiting: deque[int] = deque()
        self.going: dict[int, Going] = {}
        self.leaving: set[int] = set()
        self.most = 0  # trials that have taken turns at once
        self.rate = 0.0  # steps a second of all trials before the last ones were added
        self.steps, self.seconds = 0, -SETTLED_S  # since then, without turns in which a trial began: that may take long

    def add(self, number: int, begin: Callable[[], Going]) -> None:
        """A trial that shall run; `begin` may be called again if it had to leave for want of memory."""
        self.begin[number] = begin
        self.waiting.append(number)

    def busy(self) -> bool:
        """Whether any trial is under way or waits."""
        return bool(self.going or self.waiting)

    def crowded(self) -> bool:
        """Whether more than one trial is under way."""
        return len(self.going) > 1

    def unwanted(self, number: int) -> bool:
        """Whether a trial under way shall write a checkpoint and leave, to go on later."""
        return number in self.leaving

    def turn(self) -> Iterator[tuple[int, int]]:
        """One step of each; yields the number of a trial that has ended, and how."""
        started, begun, steps = time.monotonic(), False, 0
        while self.waiting and (self.stop() or len(self.going) < self.limit):
            number = self.waiting.popleft()
            if self.stop():
                yield number, UNFINISHED
            else:
                self.going[number], begun = self.begin[number](), True
        self.most = max(self.most, len(self.going))
        for number in list(self.going):
            full = False
            try:
                next(self.going[number])
            except StopIteration as end:
                del self.going[number]
                if number in self.leaving and end.value == UNFINISHED:
                    self.waiting.append(number)
                else:
                    yield number, end.value
                self.leaving.discard(number)
            except torch.OutOfMemoryError:
                full = True
            else:
                steps += 1
            if full:  # only now is the error gone, which had kept all that the trial had
                self._make_room(number)
        if self.grows and self.waiting and not begun:
            self._grow(steps, time.monotonic() - started)

    def _make_room(self, number: int) -> None:
        """Of the trials under way half go on; the one that found no memory begins again from its last checkpoint."""
        del self.going[number]
        self.waiting.append(number)
        self.limit, self.grows = max(1, (len(self.going) + 1) // 2), False
        self.leaving = set(list(self.going)[self.limit :])
        if self.device.type == "cuda":
            gc.collect()  # a run and its engine hold each other
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _grow(self, steps: int, seconds: float) -> None:
        """Counts a turn, and tries twice as many trials if the last ones have brought enough."""
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        if self.seconds < 0:
            self.steps = 0
        elif self.seconds >= WINDOW_S:
            started = time.monotonic()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            rate = self.steps / (self.seconds + time.monotonic() - started)
            self.grows = rate >= GAIN * self.rate
            self.limit *= 2 if self.grows else 1
            self.rate, self.steps, self.seconds = rate, 0, -SETTLED_S
