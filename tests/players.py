"""What tests of the rivals' steps share: toy images, what each optimiser and each net is given, how optimisers are set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.method import Batch, Method
from models.noise import Noise

Gradients = dict[str, list[list[Tensor]]]
ByHand = Callable[[Any, Batch, Noise], Tensor]  # a player's loss


def quarters(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 8, 8] of four classes and these: one bright quarter each, in uniform noise."""
    noise = Noise.seeded(seed)
    y = noise.integers(4, n)
    x = 0.5 * noise.uniform(n, 2, 4, 2, 4)
    x[torch.arange(n), y // 2, :, y % 2] += 0.4
    return x.reshape(n, 1, 8, 8), y


def quarters_batch(n: int = 12, labelled: int = 8, seed: int = 1) -> Batch:
    """Such images without labels, and some with."""
    return Batch(quarters(n, seed)[0], Noise.seeded(seed), *quarters(labelled, seed + 100))


def stripes(n: int = 30, seed: int = 1) -> Batch:
    """Images [n, 1, 4, 4] whose bright row is row i mod 3."""
    noise = Noise.seeded(seed)
    x = 0.1 * noise.uniform(n, 1, 4, 4)
    x[torch.arange(n), 0, torch.arange(n) % 3] += 0.8
    return Batch(x, noise)


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Its parameters as they are now, by name."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def moved(method: Method, before: dict[str, Tensor]) -> set[str]:
    """The players with a parameter that changed."""
    return {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, before[name])}


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


def assert_steps_by_hand(
    method: Any, batch: Batch, d_by_hand: ByHand, g_by_hand: ByHand, rate: float, epsilon: float
) -> None:
    """One step of D and then of G is Adam's first step by hand, of losses of (method, batch, noise) on a copy of the method."""
    twin, noise = copy.deepcopy(method), Noise.seeded(1)
    method.update(batch)
    _adam(d_by_hand(twin, batch, noise), twin.discriminator, rate, epsilon)
    for p, q in zip(method.discriminator.parameters(), twin.discriminator.parameters(), strict=True):
        assert float((p - q).detach().abs().mean()) < 2e-5
    twin.discriminator.load_state_dict(method.discriminator.state_dict())  # what rounding made of gradients near 0
    _adam(g_by_hand(twin, batch, noise), twin.generator, rate, epsilon)
    for p, q in zip(method.generator.parameters(), twin.generator.parameters(), strict=True):
        assert float((p - q).detach().abs().mean()) < 2e-5


def _adam(loss: Tensor, net: nn.Module, rate: float, epsilon: float) -> None:
    """The first step, whose corrected moments are the gradient and its square."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    for p, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.data -= rate * slope / (slope.abs() + epsilon)


def inputs_of(net: nn.Module) -> list[Tensor]:
    """What the net is given first in each call, from now on."""
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0].detach()))
    return seen


def adams(method: Method) -> dict[str, tuple[float, ...]]:
    """Rate, β1, β2, ε and weight decay of each Adam of a method."""
    groups = {name: optimizer.param_groups[0] for name, optimizer in method.optimizers().items()}
    return {name: (float(g["lr"]), *g["betas"], g["eps"], g["weight_decay"]) for name, g in groups.items()}
