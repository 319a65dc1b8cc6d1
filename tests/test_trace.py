"""bench.trace against sums over all steps, kept one by one in double precision."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
import torch

from bench.errors import Diverged
from bench.trace import POINTS, Trace

CPU = torch.device("cpu")


def _losses(steps: int) -> list[dict[str, torch.Tensor]]:
    """Two losses of each step, of different sizes."""
    draw = random.Random(steps)
    return [
        {"d": torch.tensor(draw.gauss(0, 1), dtype=torch.double), "q": torch.tensor(draw.expovariate(0.01))}
        for _ in range(steps)
    ]


def _mean(losses: list[dict[str, torch.Tensor]], name: str, first: int, last: int) -> float:
    """Mean over the steps `first` + 1 to `last`."""
    return math.fsum(float(each[name]) for each in losses[first:last]) / (last - first)


def _run(trace: Trace, losses: list[dict[str, torch.Tensor]], start: int, end: int, scored: set[int]) -> None:
    """What the trainer does with a trace from step `start` + 1 to `end`."""
    for step in range(start + 1, end + 1):
        trace.add(losses[step - 1])
        if step in scored or trace.due(step):
            trace.close(step)


@pytest.mark.parametrize("steps", [1, 7, 99, 100, 101, 250, 1000])
def test_points_are_the_means_of_stretches_that_cover_all_steps(steps: int) -> None:
    trace, losses = Trace(steps), _losses(steps)
    _run(trace, losses, 0, steps, {steps})
    ends = [int(point["step"]) for point in trace.points]
    assert ends == sorted(set(ends)) and ends[-1] == steps
    assert min(steps, POINTS // 2) <= len(ends) <= POINTS
    for start, point in zip([0, *ends], trace.points, strict=False):
        expected = {name: _mean(losses, name, start, int(point["step"])) for name in ("d", "q")}
        assert {name: point[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_scoring_ends_a_stretch_early_and_the_next_one_is_whole_again() -> None:
    trace, losses = Trace(1000), _losses(1000)  # stretches of 10
    _run(trace, losses, 0, 60, {14, 25, 50})
    assert [point["step"] for point in trace.points] == [10, 14, 24, 25, 35, 45, 50, 60]


@pytest.mark.parametrize("seed", range(5))
def test_means_since_a_scoring_weigh_stretches_by_their_steps(seed: int) -> None:
    draw = random.Random(seed)
    steps = draw.randrange(150, 900)
    trace, losses, scored = Trace(steps), _losses(steps), sorted({*draw.sample(range(1, steps), 5), steps})
    for start, end in zip([0, *scored], scored, strict=False):
        _run(trace, losses, start, end, {end})
        expected = {name: _mean(losses, name, start, end) for name in ("d", "q")}
        assert trace.means(start) == pytest.approx(expected, rel=1e-5)
    assert trace.means(0) == pytest.approx({name: _mean(losses, name, 0, steps) for name in ("d", "q")}, rel=1e-5)
    assert trace.means(steps) == {}


def test_a_trace_restored_at_any_step_goes_on_exactly() -> None:
    losses, whole = _losses(250), Trace(250)
    _run(whole, losses, 0, 250, {40, 250})
    for at in (0, 1, 39, 40, 41, 249):
        first, second = Trace(250), Trace(250)
        _run(first, losses, 0, at, {40})
        second.restore(first.state(), CPU)
        _run(second, losses, at, 250, {40, 250})
        assert second.points == whole.points


def test_a_restored_trace_shares_no_sum_with_the_one_before_it() -> None:
    losses, first, second = _losses(250), Trace(250), Trace(250)
    _run(first, losses, 0, 40, set())
    first.add(losses[40])
    second.restore(first.state(), CPU)
    before = [total.clone() for total in first.totals.values()]
    second.add(losses[41])
    assert all(map(torch.equal, first.totals.values(), before))
    first.close(41)
    assert not any(torch.equal(total, torch.zeros(())) for total in second.totals.values())


def test_the_steps_of_a_long_trial_are_told_to_the_last_digit() -> None:
    trace = Trace(1_234_567)
    trace.step = 1_222_000
    trace.add({"d": torch.tensor(1.0)})
    trace.close(1_234_567)
    steps = trace.columns()["step"]
    assert steps == [1_234_567] and type(steps[0]) is int


def test_columns_are_json_of_five_digits() -> None:
    trace = Trace(200)
    assert trace.columns() == {}
    for step, value in ((1, 1 / 3), (2, 2 / 3), (3, -123456.0), (4, 1e-9)):
        trace.add({"d": torch.tensor(value, dtype=torch.double)})
        if trace.due(step):
            trace.close(step)
    assert json.loads(json.dumps(trace.columns())) == {"step": [2, 4], "d": [0.5, -61728.0]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_a_low_precision_are_summed_in_a_higher_one(dtype: torch.dtype) -> None:
    """In bfloat16 256 + 1 is 256, in float16 2048 + 1 is 2048."""
    trace = Trace(400_000)  # a stretch of 4,000
    for _ in range(4000):
        trace.add({"d": torch.ones((), dtype=dtype)})
    trace.close(4000)
    assert trace.points == [{"step": 4000, "d": 1.0}]


def test_closing_twice_at_a_step_changes_nothing() -> None:
    trace = Trace(1)
    trace.add({"d": torch.tensor(2.0)})
    trace.close(1)
    trace.close(1)
    assert trace.points == [{"step": 1, "d": 2.0}]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_seen_at_the_end_of_its_stretch(bad: float) -> None:
    trace = Trace(1000)
    losses = [{"fine": torch.tensor(1.0), "d": torch.tensor(bad if step == 23 else 0.0)} for step in range(1, 41)]
    with pytest.raises(Diverged, match="^loss 'd' is not finite between steps 20 and 30$"):
        _run(trace, losses, 0, 40, set())
    assert [point["step"] for point in trace.points] == [10, 20]  # nothing that is no number is kept
    json.dumps(trace.columns(), allow_nan=False)


def test_the_first_stretch_begins_at_0() -> None:
    with pytest.raises(Diverged, match="'d' is not finite between steps 0 and 1$"):
        _run(Trace(10), [{"d": torch.tensor(math.nan)}], 0, 1, set())


def test_losses_are_not_read_from_the_device_within_a_stretch() -> None:
    """A tensor without data would raise if its value were asked for."""
    trace = Trace(1000)
    for step in range(1, 10):
        trace.add({"d": torch.ones((), device="meta")})
        assert not trace.due(step)
    assert trace.due(10) and trace.points == []


@pytest.mark.parametrize(
    ("losses", "part"),
    [
        (None, "update must return a dict of losses, not NoneType"),
        (torch.zeros(()), "update must return a dict of losses, not Tensor"),
        ({"d": 1.0}, "update must return scalar tensors, loss 'd' is none"),
        ({"d": torch.zeros(3)}, "update must return scalar tensors, loss 'd' is none"),
        ({"d": torch.zeros(()), "step": torch.zeros(())}, "must not call a loss 'step'"),
    ],
)
def test_losses_that_are_none_name_the_method_that_gave_them(losses: Any, part: str) -> None:
    with pytest.raises(TypeError, match=part):
        Trace(10).add(losses)
