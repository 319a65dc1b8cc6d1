"""Trials take turns: none is lost, none is kept waiting for ever, and no more go at once than pay or fit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import pool as module
from bench.pool import DONE, FAILED, GAIN, SETTLED_S, UNFINISHED, WINDOW_S, Going, Pool

CPU = torch.device("cpu")
LONG = 10**6  # steps of a trial that does not end in a test


class Memory:
    """Something large that a trial has."""


class Fake:
    """A pool of made-up trials of so many steps, each of which is noted as (number, step)."""

    def __init__(self, share: int | None, lengths: list[int]) -> None:
        self.lengths = lengths
        self.seen: list[tuple[int, int]] = []
        self.kept = [0] * len(lengths)  # the steps that each trial's checkpoint holds
        self.lives = [0] * len(lengths)
        self.stopped = False
        self.full: Callable[[int, int], bool] = lambda number, step: False  # whether a step finds no memory
        self.spend: Callable[[int, int], None] = lambda number, step: None  # called in every step; -1 is preparing
        self.memory: dict[int, weakref.ref[Memory]] = {}
        self.pool = Pool(share, CPU, lambda: self.stopped)
        for number in range(len(lengths)):
            self.pool.add(number, lambda number=number: self._trial(number))  # type: ignore[misc]

    def _trial(self, number: int) -> Going:
        memory = Memory()
        self.memory[number] = weakref.ref(memory)
        self.lives[number] += 1
        self.spend(number, -1)
        for step in range(self.kept[number], self.lengths[number]):
            yield
            if self.stopped or self.pool.unwanted(number):
                self.kept[number] = step
                return UNFINISHED
            if self.full(number, step):
                raise torch.OutOfMemoryError("no memory")
            self.spend(number, step)
            self.seen.append((number, step))
        return DONE

    def turns(self, n: int = 10_000) -> dict[int, int]:
        """How trials ended within so many turns; each ends once."""
        ends: dict[int, int] = {}
        while n and self.pool.busy():
            n -= 1
            for number, end in self.pool.turn():
                assert number not in ends
                ends[number] = end
        return ends

    def steps_of(self, number: int) -> list[int]:
        return [step for n, step in self.seen if n == number]


def test_trials_take_turns_a_step_each_in_the_order_of_coming() -> None:
    fake = Fake(2, [2, 2, 1])
    assert fake.turns() == {0: DONE, 1: DONE, 2: DONE}
    assert fake.seen == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)]
    assert fake.pool.most == 2 and not fake.pool.busy()


def test_one_at_a_time_is_one_after_another() -> None:
    fake = Fake(1, [2, 3])
    assert fake.turns() == {0: DONE, 1: DONE}
    assert fake.seen == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert fake.pool.most == 1


def test_trials_that_come_later_are_taken_up() -> None:
    fake = Fake(3, [4, 4])
    fake.turns(2)
    fake.lengths.append(1)
    fake.kept.append(0)
    fake.lives.append(0)
    fake.pool.add(2, lambda: fake._trial(2))
    assert fake.turns() == {0: DONE, 1: DONE, 2: DONE} and fake.pool.most == 3


def test_how_a_trial_ends_is_told_and_the_others_go_on() -> None:
    def fails() -> Going:
        yield
        return FAILED

    fake = Fake(3, [3, 3])
    fake.pool.add(7, fails)
    assert fake.turns() == {7: FAILED, 0: DONE, 1: DONE}


def test_crowded_is_more_than_one_under_way() -> None:
    fake, found = Fake(2, [2, 4]), []
    fake.spend = lambda number, step: found.append((number, step, fake.pool.crowded()))
    fake.turns()
    assert [step for number, step, crowded in found if number == 1 and crowded] == [-1, 0]
    assert [step for number, step, crowded in found if number == 1 and not crowded] == [1, 2, 3]  # the other has ended


# too little memory


@pytest.mark.fault(14)
@pytest.mark.parametrize(("trials", "limit"), [(2, 1), (3, 1), (4, 2), (5, 2), (8, 4), (9, 4)])
def test_without_memory_half_of_the_others_go_on_and_nobody_is_lost(trials: int, limit: int) -> None:
    fake = Fake(trials, [6] * trials)
    fake.full = lambda number, step: len(fake.pool.going) > limit and (number, step) == (trials - 1, 2)
    assert fake.turns() == dict.fromkeys(range(trials), DONE)
    assert fake.pool.limit == limit
    for number in range(trials - 1):  # those that left had kept what they had
        assert fake.steps_of(number) == list(range(6))
    assert fake.steps_of(trials - 1) == [0, 1, *range(6)]  # it had kept nothing
    assert fake.lives[0] == 1 and fake.lives[trials - 1] == 2


@pytest.mark.fault(14)
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_whichever_trial_finds_no_memory_all_end_and_no_more_go_than_fit(which: int) -> None:
    fake = Fake(4, [8] * 4)
    most: list[int] = []

    def full(number: int, step: int) -> bool:
        return len(fake.pool.going) > 2 and number == which and step == 3

    fake.full = full
    fake.spend = lambda number, step: most.append(len(fake.pool.going)) if 3 in fake.steps_of(which) else None
    assert fake.turns() == dict.fromkeys(range(4), DONE)
    assert max(most) <= 2 and fake.pool.most == 4 and not fake.pool.leaving


def test_one_that_has_no_memory_beside_another_has_its_turn_alone() -> None:
    fake = Fake(2, [3, 3])
    fake.full = lambda number, step: len(fake.pool.going) > 1 and number == 1
    assert fake.turns() == {0: DONE, 1: DONE}
    assert fake.pool.limit == 1 and fake.seen == [(n, step) for n in (0, 1) for step in range(3)]


def test_all_of_a_turn_may_be_without_memory() -> None:
    fake, once = Fake(4, [3] * 4), set[int]()

    def full(number: int, step: int) -> bool:
        first = number not in once
        once.add(number)
        return first

    fake.full = full
    assert fake.turns() == dict.fromkeys(range(4), DONE)
    assert fake.pool.limit == 1
    assert all(fake.steps_of(number)[-3:] == [0, 1, 2] for number in range(4))


def test_the_memory_of_a_trial_is_free_before_it_is_given_back_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that is being handled would keep everything that the trial had."""
    fake, alive = Fake(2, [3, 3]), []
    fake.pool.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(fake.memory[1]() is not None))
    fake.full = lambda number, step: len(fake.pool.going) > 1 and number == 1
    gc.disable()  # nor may it wait for the collector
    try:
        fake.turns()
    finally:
        gc.enable()
    assert alive == [False]


def test_a_trial_that_ends_although_it_shall_leave_has_ended() -> None:
    fake = Fake(4, [2, 2, 1, 9])
    fake.full = lambda number, step: len(fake.pool.going) > 2 and number == 0
    fake.turns(1)
    fake.pool.leaving = {2}
    fake.pool.going[2] = (value for value in ())  # type: ignore[assignment]
    assert dict(fake.pool.turn())[2] is None
    assert 2 not in fake.pool.leaving  # its number may be that of another trial later


# asked to stop


def test_asked_to_stop_those_under_way_leave_and_those_that_wait_do_not_begin() -> None:
    fake = Fake(2, [LONG] * 4)
    fake.turns(3)
    fake.stopped = True
    assert fake.turns() == dict.fromkeys(range(4), UNFINISHED)
    assert fake.lives == [1, 1, 0, 0] and fake.kept == [2, 2, 0, 0]


def test_asked_to_stop_those_that_wait_for_memory_do_not_begin_again() -> None:
    fake = Fake(4, [LONG] * 4)
    fake.full = lambda number, step: (number, step) == (0, 4) and fake.lives[0] == 1
    fake.turns(7)
    assert list(fake.pool.waiting) == [0, 3] and sorted(fake.pool.going) == [1, 2]
    fake.stopped = True
    assert fake.turns() == dict.fromkeys(range(4), UNFINISHED)
    assert fake.lives == [1] * 4 and fake.kept[3] > 0  # what it had is in its checkpoint


# how many at once


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Seconds as the pool sees them."""
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def _spend(clock: Any, fake: Fake, seconds: Callable[[int], float], preparing: float = 0.0) -> None:
    """A turn of n trials takes `seconds(n)`."""

    def spend(number: int, step: int) -> None:
        n = len(fake.pool.going)
        clock.now += preparing if step < 0 else seconds(n) / n

    fake.spend = spend


@pytest.mark.parametrize("preparing", [0.0, 100.0])
@pytest.mark.parametrize(("at_once", "limit"), [(1, 2), (3, 8), (4, 8), (16, 12)])
def test_trials_are_added_while_the_steps_of_all_grow(clock: Any, at_once: int, limit: int, preparing: float) -> None:
    """On a device that takes `at_once` steps in the time of one: those that brought nothing stay, no more come."""
    fake = Fake(None, [LONG] * 12)
    _spend(clock, fake, lambda n: 0.05 * max(1.0, n / at_once), preparing)
    fake.turns(4000)
    assert len(fake.pool.going) == fake.pool.most == limit


@pytest.mark.parametrize(("gain", "added"), [(GAIN - 0.02, False), (GAIN + 0.02, True)])
def test_twice_as_many_trials_must_bring_so_much(clock: Any, gain: float, added: bool) -> None:
    fake = Fake(None, [LONG] * 3)
    _spend(clock, fake, lambda n: 0.01 * n / gain ** (n - 1))
    fake.turns(3000)
    assert (fake.pool.limit == 4) == added


def test_trials_are_watched_for_long_enough_before_more_come(clock: Any) -> None:
    fake = Fake(None, [LONG] * 3)
    _spend(clock, fake, lambda n: 0.5)
    fake.turns(1 + int((SETTLED_S + WINDOW_S) / 0.5) - 1)
    assert fake.pool.limit == 1
    fake.turns(1)
    assert fake.pool.limit == 2
    fake.turns(1 + int((SETTLED_S + WINDOW_S) / 0.5) - 1)  # so are two
    assert fake.pool.limit == 2
    fake.turns(1)
    assert fake.pool.limit == 4


def test_short_trials_share_a_device_too(clock: Any) -> None:
    """Each ends before a trial alone would have been watched for long enough."""
    fake = Fake(None, [50] * 40)
    _spend(clock, fake, lambda n: 0.02)
    assert fake.turns() == dict.fromkeys(range(40), DONE)
    assert fake.pool.most > 2


@pytest.mark.parametrize("share", [1, 2, 5])
def test_a_given_number_is_kept(clock: Any, share: int) -> None:
    fake = Fake(share, [LONG] * 8)
    _spend(clock, fake, lambda n: 0.05)
    fake.turns(1000)
    assert len(fake.pool.going) == fake.pool.limit == share


def test_no_trial_is_added_after_one_found_no_memory(clock: Any) -> None:
    fake = Fake(None, [LONG] * 8)
    _spend(clock, fake, lambda n: 0.05)
    fake.full = lambda number, step: len(fake.pool.going) == 8
    fake.turns(3000)
    assert fake.pool.limit == len(fake.pool.going) == 4
