"""Bad GAN's own: its settings and the pull-away term; tests/test_feature_matching.py has what Improved GAN shares."""

from __future__ import annotations

import pytest
import torch
from test_feature_matching import gan, pairs

from baselines.badgan import BadGAN, pull_away
from models.noise import Noise
from tests.players import adams


@pytest.mark.parametrize(("n", "width"), [(2, 3), (7, 4), (5, 20)])
def test_pull_away_is_the_mean_over_pairs(n: int, width: int) -> None:
    features = 10 * Noise.seeded(n).normal(n, width)
    assert float(pull_away(features)) == pytest.approx(pairs(features.double().tolist()), rel=1e-4)


def test_pull_away_of_orthogonal_equal_opposite_and_empty_features() -> None:
    assert float(pull_away(torch.eye(5) * torch.arange(1.0, 6.0)[:, None])) == 0
    equal = torch.tensor([[3.0, 4.0]]).repeat(6, 1)
    assert float(pull_away(equal)) == pytest.approx(1)
    signs = torch.tensor([1, -1, 2, -2, 1, 5])[:, None]
    assert float(pull_away(equal * signs)) == pytest.approx(1)  # lengths and signs do not matter
    features = torch.zeros(3, 2, requires_grad=True)
    pull_away(features).backward()
    assert pull_away(features).item() == 0 and bool(features.grad.isfinite().all())  # type: ignore[union-attr]


def test_descent_on_the_pull_away_term_turns_features_apart() -> None:
    features = torch.tensor([[1.0, 0.2], [1.0, -0.2]], requires_grad=True)
    (slope,) = torch.autograd.grad(pull_away(features), features)
    assert float(pull_away((features - 0.1 * slope).detach())) < pull_away(features).item()
    assert float((slope * features).sum(1).detach().abs().max()) < 1e-6  # their lengths do not matter


def test_settings_are_those_of_the_original() -> None:
    c, (d, g) = BadGAN.Config(), (pytest.approx((1e-3, beta1, 0.999, 1e-8, 0)) for beta1 in (0.5, 0))
    assert adams(gan(BadGAN)) == {"d_adam": d, "g_adam": g}
    assert (c.schedule, c.least_rate, c.init_examples) == (900 * 1145, 1e-4, 7 * 64)
    assert (c.input_noise, c.input_dropout, c.dropout) == (0.05, 0.15, 0.5)
    assert (c.slope, c.z_dim, c.init_std) == (0.2, 100, 0.05)
