"""Adam on a schedule of tensors, which a recorded step follows. No method is here."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, Algorithm 1) whose rate, β1 and count of steps are tensors, so a recorded step follows a schedule.

    Of a changed β1 the bias correction knows only the new value: that is exact once β1^t is 0 to rounding.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], beta2: float) -> None:
        super().__init__(parameters, {"beta2": beta2})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    @torch.no_grad()
    def step_with(self, rate: Tensor, beta1: Tensor, t: Tensor) -> None:
        """Step t = 1, 2, ... with these, each a scalar tensor."""
        beta2, parameters = self.param_groups[0]["beta2"], self.param_groups[0]["params"]
        gradients = [p.grad for p in parameters]
        m, v = ([self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, torch._foreach_mul(gradients, 1 - beta1))
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        size = torch._foreach_sqrt(v)
        torch._foreach_div_(size, (1 - beta2**t).sqrt())
        torch._foreach_add_(size, 1e-8)
        moves = torch._foreach_div(m, size)
        torch._foreach_mul_(moves, -rate / (1 - beta1**t))
        torch._foreach_add_(parameters, moves)
