"""The losses of a run over time: summed on the device, read now and then, so that a step never waits for the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.errors import Diverged

POINTS = 100  # of a whole trial


class Trace:
    """Means of each loss over stretches of steps.

    Args:
        steps: length of the trial; a stretch is at least 1/POINTS of it.
    """

    def __init__(self, steps: int) -> None:
        self.stretch = steps / POINTS
        self.totals: dict[str, Tensor] = {}  # since `step`, on the device
        self.step = 0
        self.points: list[dict[str, float]] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """The losses of one step, detached scalars."""
        if not isinstance(losses, Mapping):
            raise TypeError(f"update must return a dict of losses, not {type(losses).__name__}")
        if "step" in losses:
            raise TypeError("update must not call a loss 'step', the name of the trace's own column")
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.ndim:
                raise TypeError(f"update must return scalar tensors, loss {name!r} is none")
            if name not in self.totals:  # in double: a sum in bfloat16 would stop growing
                self.totals[name] = torch.zeros((), dtype=torch.float64, device=loss.device)
            self.totals[name] += loss  # in place, since a recorded step knows the sums by where they lie

    def due(self, step: int) -> bool:
        """Whether a stretch ends at `step`."""
        return step - self.step >= self.stretch

    def close(self, step: int, broken: Sequence[str] = ()) -> None:
        """Ends a stretch at `step`. Raises Diverged if a loss was not finite, or something else is `broken`."""
        totals = self.totals if step > self.step else {}
        means = {name: float(total) / (step - self.step) for name, total in totals.items()}
        broken = [*(f"loss {name!r}" for name, mean in means.items() if not math.isfinite(mean)), *broken]
        if broken:
            raise Diverged(f"{broken[0]} is not finite between steps {self.step} and {step}")
        if means:
            self.points.append({"step": step, **means})
        for total in self.totals.values():
            total.zero_()
        self.step = step

    def means(self, since: int) -> dict[str, float]:
        """Mean of each loss over the steps after `since`, which was the end of a stretch."""
        points = [point for point in self.points if point["step"] > since]
        starts = [since, *(point["step"] for point in points)]
        weights = [point["step"] - start for point, start in zip(points, starts, strict=False)]
        names = [name for name in (points[0] if points else ()) if name != "step"]
        return {name: _mean([point[name] for point in points], weights) for name in names}

    def columns(self) -> dict[str, list[float]]:
        """The whole trace by name, "step" among them, to five digits."""
        names = [name for name in (self.points[0] if self.points else ()) if name != "step"]
        values = {name: [float(f"{point[name]:.5g}") for point in self.points] for name in names}
        return {"step": [int(point["step"]) for point in self.points], **values} if values else {}

    def state(self) -> dict[str, Any]:
        return {"totals": self.totals, "step": self.step, "points": self.points}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.totals = {name: value.to(device, copy=True) for name, value in state["totals"].items()}
        self.step, self.points = state["step"], state["points"]


def _mean(values: list[float], weights: list[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
