"""The latent variables: Eqs. 3, 8-10, 12, 19 and 20.

Networks predict means and log-variances. Eqs. 3 and 8-10 are rows of the layer tables (μ + ExpN(log σ²), then Softmax for y).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.noise import Noise


def exp_n(x: Tensor, noise: Noise | None) -> Tensor:
    """Eq. 20, ExpN(x) = exp(0.5 x) ⊙ ε with ε ~ N(0, I): the noise term of Eqs. 3, 8, 10, 12 from a log-variance.

    Without `noise` it is 0, its mean, which leaves μ.
    """
    if noise is None:
        return torch.zeros_like(x)
    return torch.exp(0.5 * x) * noise.normal(*x.shape)


def one_hot(y: Tensor, k: int) -> Tensor:
    """Categories int64 [B] as float [B, k]."""
    return (y[:, None] == torch.arange(k, device=y.device)).float()  # F.one_hot reads a value back from the device


def expected_softmax(mean: Tensor, deviation: Tensor, draws: Tensor) -> Tensor:
    """E[softmax(μ + σ ⊙ ε)], the probabilities of q(y | x) in Eqs. 8 and 9, [B, K].

    From μ and σ, [B, K], and S draws of ε, [S, K] for all examples or [B, S, K].

    Its largest entry need not be that of μ: an entry with a large σ is the largest of a draw more often than its μ says.
    """
    noisy = mean[:, None] + deviation[:, None] * draws
    return torch.softmax(noisy, dim=2).mean(1)


def straight_through(y: Tensor) -> Tensor:
    """One-hot of the largest entry of y [B, K, ...], with the gradient of y itself."""
    hard = one_hot(y.flatten(1).argmax(1), y.shape[1]).view_as(y)
    return hard + (y - y.detach())  # in this order, so that the value is exactly one-hot


def component_log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; μ_k, σ²_k) of each component, [B, K], from z [B, d], means and log-variances [K, d] (Eq. 12)."""
    difference = z[:, None, :] - mean
    exponent = (difference.square() * torch.exp(-log_variance) + log_variance).sum(-1)
    return -0.5 * (exponent + z.shape[1] * math.log(2 * math.pi))


def bayes_classify(z: Tensor, mean: Tensor, log_variance: Tensor, p_y: Tensor) -> Tensor:
    """Eq. 19: argmax_k p(z | y = k) p(y = k), int64 [B]."""
    return (component_log_density(z, mean, log_variance) + p_y.log()).argmax(1)


def separated_means(k: int, dimensions: int, separation: float) -> Tensor:
    """Means of a fixed mixture, [k, dimensions]: `separation` times the unit vectors, or evenly on a circle in the plane."""
    if dimensions == 2:
        angle = torch.arange(k) * (2 * math.pi / k)
        return separation * torch.stack([angle.cos(), angle.sin()], dim=1)
    if k > dimensions:
        raise ValueError(
            f"a fixed mixture of {k} components needs at least {k} dimensions of z, or 2; got {dimensions}"
        )
    return separation * torch.eye(dimensions)[:k]
