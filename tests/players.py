"""What tests of the rivals' steps share: what each optimiser and each net is given, and how optimisers are set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.method import Method

Gradients = dict[str, list[list[Tensor]]]


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_given(monkeypatch: pytest.MonkeyPatch, method: Method) -> Gradients:
    """By the name of an optimiser the gradients that each of its steps is given, from now on; none moves anything."""
    given: Gradients = {name: [] for name in method.optimizers()}

    def note(name: str, optimizer: torch.optim.Optimizer) -> None:
        given[name].append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters(optimizer)])

    for name, optimizer in method.optimizers().items():
        monkeypatch.setattr(optimizer, "step", lambda name=name, optimizer=optimizer: note(name, optimizer))
    return given


def assert_gradients_of(losses: dict[str, list[Tensor]], given: Gradients, method: Method) -> None:
    """Each step of each optimiser was given the gradient of its loss: every term with its sign and its weight."""
    assert given.keys() == losses.keys()
    for name, optimizer in method.optimizers().items():
        for loss, found in zip(losses[name], given[name], strict=True):
            expected = torch.autograd.grad(loss, parameters(optimizer), retain_graph=True, materialize_grads=True)
            largest = max(float(gradient.abs().max()) for gradient in expected)
            assert largest > 0, name
            torch.testing.assert_close(found, list(expected), atol=1e-5 * largest, rtol=0, msg=f"{name}: ".__add__)


def inputs_of(net: nn.Module) -> list[Tensor]:
    """What the net is given first in each call, from now on."""
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0].detach()))
    return seen


def adams(method: Method) -> dict[str, tuple[float, ...]]:
    """Rate, β1, β2, ε and weight decay of each Adam of a method."""
    groups = {name: optimizer.param_groups[0] for name, optimizer in method.optimizers().items()}
    return {name: (float(g["lr"]), *g["betas"], g["eps"], g["weight_decay"]) for name, g in groups.items()}
