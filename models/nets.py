"""Plain networks for the baselines, whose papers give widths and not tables; every weight is drawn from the trial's noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from models.noise import Noise

M = TypeVar("M", bound=nn.Module)
WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def mlp(
    sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, batchnorm: bool = False, bias: bool = True
) -> nn.Sequential:
    """Linear layers from sizes[0] inputs to sizes[-1] outputs, `activation` (after batch normalisation) between them.

    The weights hold no values yet: `normal_` or `fan_in_` draws them.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        layers += [linear(a, b, bias), *([nn.BatchNorm1d(b)] if batchnorm else []), activation()]
    return nn.Sequential(*layers, linear(sizes[-2], sizes[-1]))


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A layer without values yet; the global random stream is left alone."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    return layer


def conv(inputs: int, outputs: int, width: int, stride: int = 1, padding: int = 0, bias: bool = True) -> nn.Conv2d:
    """A convolution without values yet."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, width, stride=stride, padding=padding, bias=bias)
    return layer


def transposed(
    inputs: int, outputs: int, width: int, stride: int = 1, padding: int = 0, bias: bool = True, output_padding: int = 0
) -> nn.ConvTranspose2d:
    """A transposed convolution without values yet."""
    shape = {"stride": stride, "padding": padding, "output_padding": output_padding}
    layer: nn.ConvTranspose2d = nn.utils.skip_init(nn.ConvTranspose2d, inputs, outputs, width, bias=bias, **shape)
    return layer


def _normalised(net: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


@contextmanager
def running_statistics_kept(net: nn.Module) -> Iterator[None]:
    """Batch normalisation in training mode then uses its batch alone, and leaves its running statistics as they are."""
    layers = _normalised(net)
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@torch.no_grad()
def refit_statistics(net: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> None:
    """Running statistics of batch normalisation in `net` from `batches` alone, each of equal weight, as `forward` passes them.

    For weights that no batch has gone through, such as averaged ones. PyTorch's `update_bn` calls the net with a batch alone.
    """
    layers = _normalised(net)
    momenta, training = [layer.momentum for layer in layers], [layer.training for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's sign for a plain mean
        layer.train()
    try:
        for batch in batches:
            forward(batch)
    finally:
        for layer, momentum, mode in zip(layers, momenta, training, strict=True):
            layer.momentum = momentum
            layer.train(mode)


def normal_(net: M, noise: Noise, std: float) -> M:
    """Weights ~ N(0, std²), biases 0; moves the net to the noise's device and returns it."""
    return _draw(net, noise, lambda weight, fan_in: noise.normal(*weight.shape).mul_(std))


def fan_in_(net: M, noise: Noise, gain: float = 1.0) -> M:
    """Weights ~ N(0, gain² / fan in), biases 0: gain √2 is He et al.'s, 1 is LeCun's."""
    return _draw(net, noise, lambda weight, fan_in: noise.normal(*weight.shape).mul_(gain / fan_in**0.5))


def _draw(net: M, noise: Noise, values: Callable[[Tensor, int], Tensor]) -> M:
    net.to(noise.device)
    for layer in net.modules():
        if isinstance(layer, WEIGHTED):
            weight = layer.weight
            fan_in = weight[0].numel() if not isinstance(layer, nn.ConvTranspose2d) else weight[:, 0].numel()
            weight.data = values(weight, fan_in)
            if layer.bias is not None:
                layer.bias.data.zero_()
    return net


class Averaged(nn.Module):
    """An exponential moving average of a net, a <- a + rate (p - a) for each parameter p, and a net to call with it.

    PyTorch's `AveragedModel` reads its counter on the host in each update, so a step with it cannot be recorded.

    Args:
        net: what is averaged; it is copied, so its weights must be drawn before.
        rate: weight of the newest parameters, 1 - decay.
        start: "weights" starts at the net's parameters, "zero" at 0 without any correction, as improved-gan does.
        average_buffers: the running statistics are averaged like the parameters (TripleGAN); else they are the net's own.
            They start at the net's values in any case: a variance of 0 is none.
    """

    def __init__(
        self,
        net: nn.Module,
        rate: float,
        start: Literal["weights", "zero"] = "weights",
        average_buffers: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.rate, self.average_buffers = copy.deepcopy(net).requires_grad_(False), rate, average_buffers
        if start == "zero":
            # a g that is not trained is a constant, not an average of anything
            trained = {name for name, p in net.named_parameters() if p.requires_grad}
            for name, parameter in self.net.named_parameters():
                if name in trained:
                    parameter.zero_()

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Takes in what `net`, of the same kind, is now."""
        averaged: list[tuple[Tensor, Tensor]] = [*zip(self.net.parameters(), net.parameters(), strict=True)]
        copied = [*zip(self.net.buffers(), net.buffers(), strict=True)]
        if self.average_buffers:
            averaged += [pair for pair in copied if pair[0].is_floating_point()]
            copied = [pair for pair in copied if not pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in averaged], [new for _, new in averaged], self.rate)
        for whole in (True, False):  # one launch for tensors of one kind
            pairs = [pair for pair in copied if pair[0].is_floating_point() != whole]
            if pairs:
                torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])

    def forward(self, *args: Tensor) -> Tensor:
        """The averaged net's output."""
        out: Tensor = self.net(*args)
        return out
