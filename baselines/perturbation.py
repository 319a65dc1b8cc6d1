"""Virtual adversarial perturbations (Miyato et al., 2018), which VAT and IMSAT share, and draws that repeat; no method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.noise import Noise


class Repeated(Noise):
    """A stream whose masks and noise are drawn in the first pass through a net and come again in every later one.

    For passes that shall differ in their input alone. Call `again` before each later pass of the same shape.
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise.generator)
        self.noise = noise
        self.drawn: list[Tensor] = []
        self.at = 0

    def again(self) -> Repeated:
        """Goes back to the first draw; returns itself."""
        self.at = 0
        return self

    def keep(self, like: Tensor, p: float) -> Tensor:
        return self._next(lambda: self.noise.keep(like, p))

    def normal(self, *shape: int) -> Tensor:
        return self._next(lambda: self.noise.normal(*shape))

    def _next(self, draw: Callable[[], Tensor]) -> Tensor:
        if self.at == len(self.drawn):
            self.drawn.append(draw())
        self.at += 1
        return self.drawn[self.at - 1]


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
