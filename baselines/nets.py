"""Networks that several semi-supervised rivals share: the small convolutional classifier, its generator, and MLPs in their place.

Layers draw their randomness from the `Noise` that a pass is given; without one, a pass is deterministic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.method import Spec
from models.nets import conv, linear, normal_
from models.noise import Noise

Network = Literal["conv_small", "mlp"]


class WeightNorm(nn.Module):
    """A layer with weight normalisation (Salimans & Kingma, 2016): each output's kernel is g v / ‖v‖, with a bias.

    While `initialise` runs, a pass sets g and the bias so that over the batch each output has mean 0 and standard deviation
    `std` (section 3). As in openai/improved-gan, g stays as it is from then on unless it is `trained`.
    """

    scale: Tensor

    def __init__(
        self, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, std: float = 1.0, trained: bool = False
    ) -> None:
        super().__init__()
        self.layer, self.std, self.starting = layer, std, False
        self.dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # of the weight's outputs
        scale = torch.ones(layer.weight.shape[self.dim])
        if trained:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        assert bias is not None
        rest = [d for d in range(weight.ndim) if d != self.dim]
        norm = weight.square().sum(rest, keepdim=True).sqrt().clamp(min=1e-12)
        weight = weight * (self.scale.view_as(norm) / norm)
        if self.starting:
            out = self._apply_to(x, weight, None)
            var, mean = torch.var_mean(out.transpose(0, 1).flatten(1), 1, correction=0)
            factor = self.std / (var + 1e-6).sqrt()
            self.scale.data.mul_(factor)
            bias.copy_(-mean * factor)
            weight = weight * factor.view_as(norm)
        return self._apply_to(x, weight, bias)

    def _apply_to(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding)
        return F.conv_transpose2d(x, weight, bias, layer.stride, layer.padding, layer.output_padding)  # type: ignore[arg-type]


class Dropout(nn.Module):
    """Drops elements with probability p, or with `maps` whole feature maps; what is kept is scaled by 1 / (1 - p)."""

    def __init__(self, p: float, maps: bool = False) -> None:
        super().__init__()
        self.p, self.maps = p, maps

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        if noise is None or not self.p:
            return x
        return x * noise.keep(x[:, :, :1, :1] if self.maps and x.ndim == 4 else x, self.p)


class Blur(nn.Module):
    """Adds Gaussian noise."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        return x if noise is None or not self.std else x + self.std * noise.normal(*x.shape)


class Classifier(nn.Module):
    """Features and logits; `noise` is for its dropout and its Gaussian noise."""

    def __init__(self, body: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.ModuleList(body), head

    def features(self, x: Tensor, noise: Noise | None) -> Tensor:
        """What the last layer reads, [B, F]."""
        for layer in self.body:
            x = layer(x, noise) if isinstance(layer, Dropout | Blur) else layer(x)
        return x

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """Logits [B, K]."""
        return self.head(self.features(x, noise))


class Mean(nn.Module):
    """Over positions: [B, C, H, W] to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@contextmanager
def initialise(*nets: nn.Module) -> Iterator[None]:
    """A pass within sets the scales and biases of weight normalisation by its batch."""
    layers = [layer for net in nets for layer in net.modules() if isinstance(layer, WeightNorm)]
    for layer in layers:
        layer.starting = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.starting = False


class Average(nn.Module):
    """An exponential moving average of a net's parameters, starting at zero; its buffers are the net's."""

    def __init__(self, net: Classifier, rate: float) -> None:
        super().__init__()
        self.net, self.rate = copy.deepcopy(net).requires_grad_(False), rate
        for parameter in self.net.parameters():
            parameter.data.zero_()

    @torch.no_grad()
    def follow(self, net: Classifier) -> None:
        """One step towards the net's parameters."""
        for mine, other in zip(self.net.parameters(), net.parameters(), strict=True):
            mine.lerp_(other, self.rate)
        for mine, other in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(other)


def classifier(
    network: Network,
    spec: Spec,
    k: int,
    width: int,
    noise: Noise,
    drop: tuple[float, float] = (0.2, 0.5),
    maps: bool = False,
    blur: float = 0.0,
) -> Classifier:
    """Logits of k classes from images in [-1, 1].

    conv_small, for 32x32: three convolutions of `width` channels, six of twice as many, mean over positions: conv-small of
    openai/improved-gan; mlp: three layers of `width` units, ours. All with weight normalisation and leaky ReLU
    of slope 0.2; kernels ~ N(0, 0.05^2), the last layer's logits begin with standard deviation 0.1.

    Args:
        drop: of the input and of hidden layers, of whole maps with `maps`.
        blur: standard deviation of Gaussian noise on the input.
    """
    leaky, first = nn.LeakyReLU(0.2), [Blur(blur), Dropout(drop[0], maps)]
    if network == "mlp":
        pixels = math.prod(spec.shape)
        body = [*first, nn.Flatten(), WeightNorm(linear(pixels, width)), leaky, WeightNorm(linear(width, width)), leaky]
        body += [Dropout(drop[1]), WeightNorm(linear(width, width)), leaky]
        return normal_(Classifier(body, WeightNorm(linear(width, k), 0.1, trained=True)), noise, 0.05)
    if spec.shape[1:] != (32, 32):
        raise ValueError(f"network: conv_small takes images of 32x32; {spec.data} has {spec.shape}; mlp takes any")
    a, b, body = width, 2 * width, [*first]
    for inputs, outputs in ((spec.shape[0], a), (a, b)):
        for i, o, stride in ((inputs, outputs, 1), (outputs, outputs, 1), (outputs, outputs, 2)):
            body += [WeightNorm(conv(i, o, 3, stride, 1)), leaky]
        body.append(Dropout(drop[1], maps))
    for size in (3, 1, 1):
        body += [WeightNorm(conv(b, b, size)), leaky]
    return normal_(Classifier([*body, Mean()], WeightNorm(linear(b, k), 0.1, trained=True)), noise, 0.05)


def generator(network: Network, spec: Spec, z: int, width: int, noise: Noise) -> nn.Sequential:
    """Images in [-1, 1] of z [B, z]; batch normalisation after hidden layers, weight normalisation on the last one.

    conv_small, for 32x32: `width` 4x4 maps, 5x5 transposed convolutions to 1/2 and 1/4 as many; mlp: two layers of `width` units.
    """
    if network == "mlp":
        pixels = math.prod(spec.shape)
        hidden = [*_dense(z, width), *_dense(width, width)]
        net = [*hidden, WeightNorm(linear(width, pixels), 0.1, trained=True), nn.Tanh(), nn.Unflatten(1, spec.shape)]
        return normal_(nn.Sequential(*net), noise, 0.05)
    net = [*_dense(z, 16 * width), nn.Unflatten(1, (width, 4, 4))]
    for inputs in (width, width // 2):
        net += [_up(inputs, inputs // 2, False), nn.BatchNorm2d(inputs // 2), nn.ReLU()]
    net += [WeightNorm(_up(width // 4, spec.shape[0]), 0.1, trained=True), nn.Tanh()]
    return normal_(nn.Sequential(*net), noise, 0.05)


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


def _up(inputs: int, outputs: int, bias: bool = True) -> nn.ConvTranspose2d:
    layer: nn.ConvTranspose2d = nn.utils.skip_init(
        nn.ConvTranspose2d, inputs, outputs, 5, stride=2, padding=2, output_padding=1, bias=bias
    )
    return layer
