"""The losses against the paper's logarithms, the penalties against discriminators whose gradient is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.adversarial import (
    discriminator_loss,
    gradient_penalty,
    inference_loss,
    roth_penalty,
    synthesis_loss,
)

Q = torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=torch.float64)
P = torch.tensor([-1.0, 0.25, 1.5, 4.0], dtype=torch.float64)


def _log(logit: Tensor) -> Tensor:
    return torch.log(torch.sigmoid(logit))


def _log_1m(logit: Tensor) -> Tensor:
    return torch.log(1 - torch.sigmoid(logit))


def test_losses_are_those_of_the_algorithms() -> None:
    assert torch.allclose(discriminator_loss(Q, P), -_log(Q).mean() - _log_1m(P).mean())
    assert torch.allclose(inference_loss(Q), -_log_1m(Q).mean())
    assert torch.allclose(synthesis_loss(P), -_log(P).mean())


def test_saturating_losses_are_the_value_of_eq_13() -> None:
    assert torch.allclose(inference_loss(Q, saturating=True), _log(Q).mean())
    assert torch.allclose(synthesis_loss(P, saturating=True), _log_1m(P).mean())
    value = inference_loss(Q, saturating=True) + synthesis_loss(P, saturating=True)
    assert torch.allclose(discriminator_loss(Q, P), -value)


@pytest.mark.parametrize("logit", [-1e4, -90.0, 90.0, 1e4])
def test_losses_and_gradients_are_finite_where_the_sigmoid_is_not(logit: float) -> None:
    q = torch.full((3,), logit, requires_grad=True)
    p = torch.full((3,), logit, requires_grad=True)
    losses = [discriminator_loss(q, p)]
    losses += [f(t, saturating=s) for f, t in ((inference_loss, q), (synthesis_loss, p)) for s in (False, True)]
    gradients = torch.autograd.grad(sum(losses[1:], losses[0]), [q, p])
    assert all(bool(torch.isfinite(t).all()) for t in [*losses, *gradients])
    assert losses[0].item() == pytest.approx(abs(logit), rel=1e-6)


@pytest.mark.parametrize("saturating", [False, True])
def test_the_players_pull_against_each_other(saturating: bool) -> None:
    q, p = Q.clone().requires_grad_(), P.clone().requires_grad_()
    d_q, d_p = torch.autograd.grad(discriminator_loss(q, p), [q, p])
    (g_q,) = torch.autograd.grad(inference_loss(q, saturating), q)
    (g_p,) = torch.autograd.grad(synthesis_loss(p, saturating), p)
    assert bool((d_q < 0).all() and (g_q > 0).all())
    assert bool((d_p > 0).all() and (g_p < 0).all())


# penalties: x [B, 1, 2, 2], y [B, 3, 1, 1], z [B, 2, 1, 1]

SHAPES = ((1, 2, 2), (3, 1, 1), (2, 1, 1))


def _tuple(seed: int, n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y, z = (torch.randn(n, *s, generator=generator, dtype=torch.float64, requires_grad=True) for s in SHAPES)
    return x, y, z


def _flat(*tensors: Tensor) -> Tensor:
    return torch.cat([t.flatten(1) for t in tensors], 1)


W = torch.tensor([0.3, -1.2, 0.7, 0.1, 2.0, -0.4, 0.0, 0.9, -0.6], dtype=torch.float64)


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    """The joint norm: a norm for each of x, y and z would give another number."""
    u = torch.rand(5, dtype=torch.float64)
    got = gradient_penalty(lambda x, y, z: _flat(x, y, z) @ W, _tuple(1), _tuple(2), u)
    assert torch.allclose(got, (W.norm() - 1) ** 2)
    separate = torch.stack([(w.norm() - 1) ** 2 for w in (W[:4], W[4:7], W[7:])])
    assert not torch.allclose(got, separate.mean()) and not torch.allclose(got, separate.sum())
    each = gradient_penalty(lambda x, y, z: _flat(x, y, z) @ W, _tuple(1), _tuple(2), u, joint=False)
    assert torch.allclose(each, separate.sum())


def test_gradient_penalty_of_a_zero_discriminator_is_one_and_differentiable() -> None:
    w = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    got = gradient_penalty(lambda x, y, z: _flat(x, y, z) @ w, _tuple(1), _tuple(2), torch.zeros(5).double())
    assert got.item() == pytest.approx(1, abs=1e-5)
    (gradient,) = torch.autograd.grad(got, w)
    assert bool(torch.isfinite(gradient).all())


def _quadratic(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return 0.5 * _flat(x, y, z).square().sum(1)  # the gradient is the point itself


def test_gradient_penalty_is_taken_between_the_pairs() -> None:
    q, p = _tuple(3), _tuple(4)
    for u in (torch.zeros(5), torch.ones(5), torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])):
        weight = u.double()[:, None]
        points = weight * _flat(*q) + (1 - weight) * _flat(*p)
        expected = ((points.norm(dim=1) - 1) ** 2).mean()
        assert torch.allclose(gradient_penalty(_quadratic, q, p, u.double()), expected)


def test_penalties_send_no_gradient_to_the_generators() -> None:
    q, p = _tuple(5), _tuple(6)
    w = W.clone().requires_grad_()

    def logit(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(_flat(x, y, z) * w).sum(1)

    for penalty in (gradient_penalty(logit, q, p, torch.rand(5).double()), roth_penalty(logit, q, p)):
        to_w, *to_tuples = torch.autograd.grad(penalty, [w, *q, *p], allow_unused=True)
        assert to_w.abs().max() > 0
        assert to_tuples == [None] * 6


@pytest.mark.parametrize("name", ["gradient", "roth"])
def test_penalty_derivative_is_that_of_finite_differences(name: str) -> None:
    q, p = _tuple(7), _tuple(8)
    u = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    generator = torch.Generator().manual_seed(9)
    first = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    second = torch.randn(6, generator=generator, dtype=torch.float64)

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        def logit(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return F.softplus(_flat(x, y, z) @ a.T) @ b

        return gradient_penalty(logit, q, p, u) if name == "gradient" else roth_penalty(logit, q, p)

    assert torch.autograd.gradcheck(penalty, (first.requires_grad_(), second.requires_grad_()))


def test_roth_penalty_of_a_linear_discriminator() -> None:
    q, p = _tuple(10), _tuple(11)
    rho_q, rho_p = (torch.sigmoid(_flat(*side) @ W) for side in (q, p))
    expected = 0.5 * W.square().sum() * (((1 - rho_q) ** 2).mean() + (rho_p**2).mean())
    assert torch.allclose(roth_penalty(lambda x, y, z: _flat(x, y, z) @ W, q, p), expected)
