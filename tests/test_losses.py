"""Losses on K + 1 classes against the softmax over all of them, feature matching against a loop, log odds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.feature_matching import feature_matching
from baselines.losses import log_odds, real_logit, unlabelled_loss
from models.noise import Noise


def softmax(logits: Tensor) -> list[list[float]]:
    """Probabilities of K + 1 classes, the last with logit 0, one by one in double precision."""
    rows = [[math.exp(value) for value in row] + [1.0] for row in logits.double().tolist()]
    return [[value / sum(row) for value in row] for row in rows]


@pytest.mark.parametrize("k", [1, 2, 7])
def test_losses_are_those_of_a_softmax_over_k_plus_one_classes(k: int) -> None:
    noise = Noise.seeded(k)
    unlabelled, generated = 3 * noise.normal(6, k), 3 * noise.normal(5, k) - 1
    p_u, p_g = softmax(unlabelled), softmax(generated)
    for logit, row in zip(real_logit(unlabelled).tolist(), p_u, strict=True):
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(sum(row[:-1]), rel=1e-5)
    real = -sum(math.log(sum(row[:-1])) for row in p_u) / 6
    fake = -sum(math.log(row[-1]) for row in p_g) / 5
    assert float(unlabelled_loss(unlabelled, generated)) == pytest.approx((real + fake) / 2, rel=1e-5)
    # the same as the code's -½ E log Z + ½ E softplus(log Z) + ½ E softplus(log Z)
    z_u, z_g = unlabelled.exp().sum(1), generated.exp().sum(1)
    code = -0.5 * z_u.log().mean() + 0.5 * (1 + z_u).log().mean() + 0.5 * (1 + z_g).log().mean()
    assert float(unlabelled_loss(unlabelled, generated)) == pytest.approx(float(code), rel=1e-4)


def test_cross_entropy_over_the_k_classes_is_that_of_k_plus_one_given_that_the_example_is_real() -> None:
    """So a classifier needs no (K + 1)th logit: -log p(y | x, y <= K)."""
    logits, y = 2 * Noise.seeded(0).normal(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    given = -sum(math.log(row[k] / sum(row[:-1])) for row, k in zip(softmax(logits), y.tolist(), strict=True)) / 6
    assert float(F.cross_entropy(logits, y)) == pytest.approx(given, rel=1e-5)


def test_each_player_moves_the_real_logit_its_own_way() -> None:
    noise = Noise.seeded(3)
    unlabelled, generated = noise.normal(8, 3).requires_grad_(), noise.normal(4, 3).requires_grad_()
    real, fake = torch.autograd.grad(unlabelled_loss(unlabelled, generated), [unlabelled, generated])
    p_u, p_g = (torch.tensor(softmax(logits.detach())).float() for logits in (unlabelled, generated))
    # d(-log D)/dl_k = -p(k | x, real) p(K + 1 | x), d(-log(1 - D))/dl_k = p(k | x)
    torch.testing.assert_close(real, -0.5 * p_u[:, :-1] / p_u[:, :-1].sum(1, keepdim=True) * p_u[:, -1:] / 8)
    torch.testing.assert_close(fake, 0.5 * p_g[:, :-1] / 4)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_have_finite_losses_and_slopes(size: float) -> None:
    unlabelled = torch.full((2, 5), size).requires_grad_()
    generated = (size * torch.eye(5)[:3]).requires_grad_()
    loss = unlabelled_loss(unlabelled, generated)
    slopes = torch.autograd.grad(loss, [unlabelled, generated])
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    if size > 0:  # D is sure of the real ones, which cost nothing, and wrong about the generated ones
        assert loss.item() == pytest.approx(0.5 * size)
        assert float(slopes[0].abs().max()) == 0
        torch.testing.assert_close(slopes[1], torch.eye(5)[:3] / 6)
    else:
        assert loss.item() == pytest.approx(0.5 * (-size - math.log(5) + math.log(4 + 1)))
        torch.testing.assert_close(slopes[0], torch.full((2, 5), -0.5 / 10))


def test_half_inputs_are_computed_in_single_precision() -> None:
    a, b = Noise.seeded(0).normal(6, 3).bfloat16(), Noise.seeded(1).normal(6, 3).bfloat16()
    for loss in (unlabelled_loss, feature_matching):
        assert loss(a, b).dtype == torch.float32
        assert torch.equal(loss(a, b), loss(a.float(), b.float()))


def test_feature_matching_is_that_of_a_loop() -> None:
    real, generated = Noise.seeded(0).normal(4, 3), Noise.seeded(1).normal(7, 3)
    total = 0.0
    for j in range(3):
        means = [sum(row[j] for row in side.tolist()) / len(side) for side in (real, generated)]
        total += abs(means[0] - means[1])
    assert float(feature_matching(real, generated)) == pytest.approx(total / 3, rel=1e-5)
    assert float(feature_matching(real, real.flip(0))) == pytest.approx(0, abs=1e-6)
    (slope,) = torch.autograd.grad(feature_matching(real, generated.requires_grad_()), generated)
    sign = (generated.detach().mean(0) - real.mean(0)).sign()
    torch.testing.assert_close(slope, (sign / 21).expand(7, 3))


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    torch.testing.assert_close(log_odds(logits), (p / (1 - p)).log())
    torch.testing.assert_close(log_odds(logits + 7), log_odds(logits))
    assert log_odds(torch.zeros(1, 1)).item() == torch.inf  # the only class


def test_log_odds_tell_apart_what_a_softmax_rounds_to_one() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0], [60.0, 0.0, 0.0], [200.0, 0.0, 199.0]])
    assert logits.softmax(1)[:2, 0].tolist() == [1.0, 1.0]
    assert log_odds(logits)[:, 0].tolist() == pytest.approx([40 - math.log(2), 60 - math.log(2), 1.0])
    normalised = logits.log_softmax(1)  # which rounds the largest to 0
    torch.testing.assert_close(log_odds(normalised), log_odds(logits), rtol=0, atol=1e-4)
