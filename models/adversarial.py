"""The game of Eqs. 13-14 on the discriminator's logits, and its penalties (Eq. 18, section 4.1).

ρ = sigmoid(logit) is the discriminator's probability that a tuple (x, y, z) comes from the inference side q. With logits,
-log ρ = softplus(-logit) and -log(1 - ρ) = softplus(logit), which stay finite where ρ rounds to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Logit = Callable[..., Tensor]  # D's logits [B] of the members of a tuple


def discriminator_loss(logit_q: Tensor, logit_p: Tensor) -> Tensor:
    """L_D of Algorithm 1: -E_q log ρ_q - E_p log(1 - ρ_p)."""
    return F.softplus(-logit_q).mean() + F.softplus(logit_p).mean()


def inference_loss(logit_q: Tensor, saturating: bool = False) -> Tensor:
    """The loss of Gy and Gz(x): -E log(1 - ρ_q) as in Algorithm 2, or E log ρ_q, the minimax form of Eq. 13."""
    return -F.softplus(-logit_q).mean() if saturating else F.softplus(logit_q).mean()


def synthesis_loss(logit_p: Tensor, saturating: bool = False) -> Tensor:
    """The loss of Gx and Gz(y): -E log ρ_p as in Algorithm 2, or E log(1 - ρ_p), the minimax form of Eq. 13."""
    return -F.softplus(logit_p).mean() if saturating else F.softplus(-logit_p).mean()


def gradient_penalty(logit: Logit, q: Sequence[Tensor], p: Sequence[Tensor], u: Tensor, joint: bool = True) -> Tensor:
    """Eq. 18: E (‖∇_{x,y,z} D‖₂ - 1)² at points between the two sides.

    Args:
        logit: D's logit of (x, y, z), or of the pair (x, z) of a model without y.
        q, p: tuples from both sides; no gradient flows to them.
        u: position on the straight line of each pair, in [0, 1], [B].
        joint: one norm over x, y and z together, as section 4.1 says; otherwise each has its own, and their penalties are added.
    """
    norms = [slope_norms(logit, q, p, u)] if joint else map(_root, slope_squares(logit, q, p, u))
    return sum(((norm - 1).square().mean() for norm in norms), torch.zeros((), device=u.device))


def slope_norms(logit: Logit, q: Sequence[Tensor], p: Sequence[Tensor], u: Tensor) -> Tensor:
    """‖∇_{x,y,z} D‖₂ of Eq. 18, [B]; arguments as above."""
    squares = slope_squares(logit, q, p, u)
    return _root(sum(squares[1:], squares[0]))


def slope_squares(logit: Logit, q: Sequence[Tensor], p: Sequence[Tensor], u: Tensor) -> list[Tensor]:
    """‖∇ D‖₂² of each variable between the sides, [B] each; arguments as above."""
    points = [_between(a, b, u).requires_grad_() for a, b in zip(q, p, strict=True)]
    return _squares(logit(*points), points)


def _squares(values: Tensor, points: Sequence[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(values.sum(), points, create_graph=True)
    return [gradient.flatten(1).square().sum(1) for gradient in gradients]


def _root(squared: Tensor) -> Tensor:
    return torch.sqrt(squared + 1e-12)  # the root has no derivative at 0, where a dead discriminator sits


def roth_penalty(logit: Logit, q: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    """Ω_JS of Roth et al. (2017), for the logit: E_q (1 - ρ)² ‖∇ logit‖² + E_p ρ² ‖∇ logit‖², halved."""
    total = torch.zeros((), device=q[0].device)
    for side, sign in ((q, -1.0), (p, 1.0)):
        points = [t.detach().requires_grad_() for t in side]
        value = logit(*points)
        squared = sum(_squares(value, points), torch.zeros_like(value))
        total = total + (torch.sigmoid(sign * value).square() * squared).mean()
    return 0.5 * total


def _between(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    u = u.view(-1, *[1] * (a.ndim - 1))
    return (u * a.detach() + (1 - u) * b.detach()).detach()
