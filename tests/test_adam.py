"""Adam on a schedule of tensors: PyTorch's while nothing changes, and its formulas by hand when rate and β1 do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from baselines.adam import Adam
from models.noise import Noise


def test_adam_is_pytorchs_while_nothing_changes() -> None:
    noise = Noise.seeded(0)
    mine, theirs = (nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    ours, reference = Adam([mine], 0.999), torch.optim.Adam([theirs], 0.01, (0.9, 0.999))
    for t in range(1, 30):
        mine.grad = noise.normal(2, 3)
        theirs.grad = mine.grad.clone()
        ours.step_with(torch.tensor(0.01), torch.tensor(0.9), torch.tensor(t))
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_adam_follows_a_change_of_rate_and_beta1() -> None:
    """Kingma & Ba's formulas in a loop over numbers, long after the start."""
    noise, p = Noise.seeded(0), nn.Parameter(torch.tensor([1.0]))
    ours, m, v, value = Adam([p], 0.999), 0.0, 0.0, 1.0
    for t in range(1, 400):
        rate, beta1 = (0.01, 0.9) if t < 300 else (0.004, 0.5)
        p.grad = noise.normal(1)
        g = float(p.grad)
        m, v = beta1 * m + (1 - beta1) * g, 0.999 * v + 0.001 * g * g
        value -= rate * m / (1 - beta1**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        ours.step_with(torch.tensor(rate), torch.tensor(beta1), torch.tensor(t))
    assert float(p.detach()) == pytest.approx(value, abs=1e-4)
