"""Virtual adversarial perturbations (Miyato et al., 2018), which VAT and IMSAT share; this module holds no method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Mean of KL(p || q) in nats over a batch of logits [B, K]."""
    log_p, log_q = F.log_softmax(p.float(), 1), F.log_softmax(q.float(), 1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def worst_direction(
    net: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor, start: Tensor, xi: float, iterations: int
) -> Tensor:
    """Unit vectors [B, D] along which KL(p(y | x) || p(y | x + r)) grows fastest, by power iteration (Algorithm 1)."""
    d = _unit(start)
    for _ in range(iterations):
        d.requires_grad_()
        # the KL is quadratic in a small r, so this is its Hessian times d, up to a factor
        (gradient,) = torch.autograd.grad(kl_divergence(logits, net(x + xi * d)), d)
        d = _unit(gradient)
    return d


def _unit(d: Tensor) -> Tensor:
    """Rows of length 1; the largest entry goes first, as squares of small gradients underflow. Zero stays zero."""
    return F.normalize(d / d.abs().amax(1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny))
