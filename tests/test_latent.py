"""Eqs. 3, 12, 19 and 20 against closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from models.latent import (
    bayes_classify,
    component_log_density,
    exp_n,
    expected_softmax,
    one_hot,
    separated_means,
    straight_through,
)
from models.noise import Noise

N = 200_000


@pytest.mark.parametrize("variance", [0.25, 1.0, 9.0])
def test_exp_n_reads_a_log_variance(variance: float) -> None:
    drawn = exp_n(torch.full((N,), math.log(variance)), Noise.seeded(1)).double()
    assert abs(drawn.mean()) < 5 * math.sqrt(variance / N)
    assert abs(drawn.var() / variance - 1) < 5 * math.sqrt(2 / N)


def test_eq_3_adds_the_mean_and_keeps_elements_independent() -> None:
    mean, log_variance = torch.tensor([3.0, -1.0]), torch.tensor([0.0, 2.0])
    drawn = (mean + exp_n(log_variance.expand(N, 2), Noise.seeded(2))).double()
    assert (drawn.mean(0) - mean).abs().max() < 5 * math.exp(1) / math.sqrt(N)
    covariance = torch.cov(drawn.T)
    assert torch.allclose(covariance, torch.diag(log_variance.exp().double()), rtol=0.02, atol=0.05)


def test_exp_n_without_noise_is_zero() -> None:
    assert torch.equal(exp_n(torch.randn(3, 4), None), torch.zeros(3, 4))


def test_exp_n_differentiates_through_the_scale() -> None:
    x = torch.zeros(1000, requires_grad=True)
    drawn = exp_n(x, Noise.seeded(3))
    (gradient,) = torch.autograd.grad(drawn.sum(), x)
    assert torch.allclose(gradient, 0.5 * drawn)


def test_one_hot_is_float() -> None:
    assert torch.equal(one_hot(torch.tensor([2, 0]), 3), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))


def _mixture(k: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = Noise.seeded(k * 100 + d)
    return noise.normal(k, d) * 2, noise.normal(k, d), torch.softmax(noise.normal(k) * 2, 0)


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 2), (10, 16)])
def test_component_log_density_is_the_multivariate_normal(k: int, d: int) -> None:
    mean, log_variance, _ = _mixture(k, d)
    z = Noise.seeded(4).normal(7, d) * 3
    expected = torch.stack(
        [MultivariateNormal(m, torch.diag(v.exp())).log_prob(z) for m, v in zip(mean, log_variance, strict=True)], 1
    )
    assert torch.allclose(component_log_density(z, mean, log_variance), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("k", "d"), [(2, 1), (3, 2), (10, 4)])
def test_bayes_classify_is_the_brute_force_posterior(k: int, d: int) -> None:
    mean, log_variance, p_y = _mixture(k, d)
    z = Noise.seeded(5).normal(200, d) * 3
    expected = []
    for point in z.double():
        posterior = []
        for j in range(k):
            v = log_variance[j].double().exp()
            density = torch.exp(-0.5 * (point - mean[j].double()) ** 2 / v) / torch.sqrt(2 * math.pi * v)
            posterior.append((density.prod() * p_y[j]).item())
        expected.append(max(range(k), key=posterior.__getitem__))
    assert bayes_classify(z, mean, log_variance, p_y).tolist() == expected
    assert len(set(expected)) > 1


def test_bayes_classify_weighs_priors_and_variances() -> None:
    zero = torch.zeros(2, 1)
    here = torch.zeros(1, 1)
    assert bayes_classify(here, zero, zero, torch.tensor([0.4, 0.6])).item() == 1
    assert bayes_classify(here, zero, zero, torch.tensor([1.0, 0.0])).item() == 0
    wide = torch.tensor([[0.0], [4.0]])
    half = torch.tensor([0.5, 0.5])
    assert bayes_classify(torch.tensor([[0.0], [10.0]]), zero, wide, half).tolist() == [0, 1]


def test_straight_through_has_a_hard_value_and_a_soft_gradient() -> None:
    y = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])[:, :, None, None].requires_grad_()
    hard = straight_through(y)
    assert torch.allclose(hard.flatten(1), torch.tensor([[0.0, 1, 0], [1, 0, 0]]), atol=1e-6)
    weight = torch.arange(6.0).view(2, 3, 1, 1)
    (gradient,) = torch.autograd.grad((hard * weight).sum(), y)
    assert torch.equal(gradient, weight)


def test_straight_through_is_exactly_one_hot() -> None:
    y = torch.softmax(Noise.seeded(6).normal(1000, 10), 1)
    assert torch.equal(straight_through(y), one_hot(y.argmax(1), 10))


def test_expected_softmax_of_two_categories_is_the_logistic_normal_mean() -> None:
    """With two categories it is the mean of a logistic function of one normal variable, here by quadrature."""
    mean, deviation = torch.tensor([[0.3, -0.5], [1.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    found = expected_softmax(mean, deviation, Noise.seeded(0).normal(200_000, 2))
    t = torch.linspace(-8, 8, 4001, dtype=torch.double)
    weight = torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi) * (t[1] - t[0])
    gap, spread = (mean[:, 0] - mean[:, 1]).double(), deviation.double().norm(dim=1)
    exact = (torch.sigmoid(gap[:, None] + spread[:, None] * t) * weight).sum(1)
    torch.testing.assert_close(found[:, 0].double(), exact, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_expected_softmax_without_noise_is_the_softmax() -> None:
    mean = Noise.seeded(1).normal(5, 3)
    torch.testing.assert_close(expected_softmax(mean, torch.zeros(5, 3), torch.ones(7, 3)), mean.softmax(1))


@pytest.mark.parametrize("k", [2, 3, 10, 30])
def test_means_in_the_plane_stand_evenly_on_a_circle(k: int) -> None:
    mean = separated_means(k, 2, 4.0)
    assert mean.shape == (k, 2)
    assert torch.allclose(mean.norm(dim=1), torch.full((k,), 4.0))
    neighbours = (mean - mean.roll(1, 0)).norm(dim=1)
    assert torch.allclose(neighbours, torch.full((k,), 8 * math.sin(math.pi / k)), atol=1e-5)


@pytest.mark.parametrize(("k", "d"), [(3, 3), (10, 16), (30, 64), (1, 1)])
def test_means_elsewhere_are_orthogonal(k: int, d: int) -> None:
    mean = separated_means(k, d, 3.0)
    assert mean.shape == (k, d)
    assert torch.allclose(mean @ mean.T, 9 * torch.eye(k))


@pytest.mark.parametrize(("k", "d"), [(20, 16), (2, 1), (4, 3)])
def test_too_many_means_for_the_space_is_an_error(k: int, d: int) -> None:
    with pytest.raises(ValueError, match=f"{k} components needs at least {k} dimensions .* got {d}"):
        separated_means(k, d, 4.0)
