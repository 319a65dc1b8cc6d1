"""Plain networks for the baselines, whose papers give widths and not tables; every weight is drawn from the trial's noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

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


@contextmanager
def running_statistics_kept(net: nn.Module) -> Iterator[None]:
    """Batch normalisation in training mode then uses its batch alone, and leaves its running statistics as they are."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


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
