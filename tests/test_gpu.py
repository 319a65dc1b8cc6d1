"""A GPU computes what the CPU computes: equal weights, equal draws, a few steps on both.

    python -m pytest -m gpu

`AMM_TEST_DEVICE=cpu` tries the tests themselves where there is no GPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.engine import set_precision
from bench.plan import build_config, method_class, trials
from bench.sources import SOURCES
from bench.suite import Precision, load_suite
from bench.trainer import Run
from models.method import Batch, Data, Method, Spec
from models.noise import Noise

pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ.get("AMM_TEST_DEVICE", "cuda"))
CPU = torch.device("cpu")
ROWS = [("mnist_unsup", "amm_k10"), ("mnist_unsup", "amm_k10_fixed"), ("svhn_unsup", "amm_k20"), ("svhn_semi", "samm")]
ROWS += [("svhn_semi", "supervised"), ("digits_semi", "samm"), ("digits_unsup", "aae"), ("digits_unsup", "ali_kmeans")]
TOLERANCE: dict[Precision, float] = {"fp32": 2e-4, "tf32": 2e-2, "bf16": 5e-2}  # of a loss near 1


class Carried(Noise):
    """Draws on the CPU, so that two devices see the same numbers, and carries them to `device`."""

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__(torch.Generator("cpu").manual_seed(seed))
        self.to = device
        self.drawing = Noise(self.generator)

    @property
    def device(self) -> torch.device:
        return self.to

    def normal(self, *shape: int) -> Tensor:
        return self.drawing.normal(*shape).to(self.to)

    def uniform(self, *shape: int) -> Tensor:
        return self.drawing.uniform(*shape).to(self.to)

    def keep(self, like: Tensor, p: float) -> Tensor:
        layout = torch.empty_like(like, device="cpu")
        return self.drawing.keep(layout, p).to(self.to)

    def categorical(self, probabilities: Tensor, n: int) -> Tensor:
        return self.drawing.categorical(probabilities.cpu(), n).to(self.to)

    def integers(self, high: int, n: int) -> Tensor:
        return self.drawing.integers(high, n).to(self.to)

    def permutation(self, n: int) -> Tensor:
        return self.drawing.permutation(n).to(self.to)


def _steps(suite: str, row: str, device: torch.device, precision: Precision, n: int = 3) -> tuple[Method, list[Any]]:
    """A method after `n` steps of 16 made-up examples, and its losses."""
    trial = trials(load_suite(suite), "paper", [row], [0])[0]
    source = SOURCES[trial.data]
    images = torch.randint(256, (64, *source.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    y = (torch.arange(64) % source.n_classes).to(device)
    noise, context = Carried(3, device), set_precision(precision, device)
    method = method_class(trial.method)(build_config(trial), Spec(trial.data, source.shape, 10), noise).to(device)
    data = Data(images.to(device), 1 / 255, noise, images.to(device), y)
    method.prepare(data)
    losses = []
    for _ in range(n):
        index = noise.permutation(64)[:16]
        x = data.take(index)
        with context:
            losses.append(method.update(Batch(x, noise, x, y[index], index)))
    return method, [{name: float(value) for name, value in step.items()} for step in losses]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("suite", "row"), ROWS)
def test_a_few_steps_agree_with_the_cpu(suite: str, row: str, precision: Precision) -> None:
    if precision == "tf32" and DEVICE.type == "cpu":
        pytest.skip("a CPU has no tf32")
    method, losses = _steps(suite, row, DEVICE, precision)
    _, expected = _steps(suite, row, CPU, "fp32")
    for step, (found, wanted) in enumerate(zip(losses, expected, strict=True)):
        for name, value in wanted.items():
            # Adam's first steps are as long for a gradient that is rounding as for any other
            close = TOLERANCE[precision] * (1 + 4 * step) * max(1.0, abs(value))
            assert found[name] == pytest.approx(value, abs=close), (name, step)
    assert all(bool(p.isfinite().all()) and p.device.type == DEVICE.type for p in method.parameters())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_trial_runs_and_resumes_on_the_device(precision: Precision, tmp_path: Path) -> None:
    if precision == "tf32" and DEVICE.type == "cpu":
        pytest.skip("a CPU has no tf32")
    (trial,) = trials(load_suite("digits_semi"), "quick", ["samm"], [0])
    trial = replace(trial, steps=40, validate=20, precision=precision)
    whole, first, second = (Run(trial, DEVICE) for _ in range(3))
    assert whole.advance(lambda: False, lambda *_: None, lambda _: None)
    assert not first.advance(lambda: first.step == 15, lambda *_: None, lambda _: None)
    second.restore(first.state())
    assert second.advance(lambda: False, lambda *_: None, lambda _: None)
    result = second.result()
    assert result is not None and 0 <= result["last"]["test"]["error"] < 100
    last = whole.curve[-1]["losses"]
    assert second.curve[-1]["losses"] == pytest.approx(last, rel=0.2, abs=0.2)  # a GPU adds in any order


def test_masks_and_draws_on_the_device() -> None:
    noise = Noise.seeded(1, DEVICE)
    like = torch.zeros(64, 32, 9, 9, device=DEVICE).to(memory_format=torch.channels_last)
    mask = noise.keep(like, 0.2)
    assert mask.stride() == like.stride() and set(mask.unique().tolist()) == {0.0, 1.25}
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    again = Noise.seeded(1, DEVICE)
    assert torch.equal(again.keep(like, 0.2), mask) and torch.equal(again.normal(5), noise.normal(5))
    y = noise.categorical(torch.tensor([0.25, 0.75, 0.0], device=DEVICE), 4000)
    assert y.bincount(minlength=3)[2] == 0 and y.float().mean().item() == pytest.approx(0.75, abs=0.05)
