"""The layers that the shared backbones are made of, with weight or batch normalisation; it holds no method.

Weights hold no values yet: `models.nets.normal_` or `fan_in_` draws them, then `data_dependent_` fits those that are
weight-normalised. Every mask and all noise comes from the trial's `Noise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.noise import Noise

Normalisation = Literal["weight", "batch", "none"]


class Drop(nn.Module):
    """Dropout, of single elements or of whole channels."""

    def __init__(self, p: float, whole_channels: bool = False) -> None:
        super().__init__()
        self.p, self.whole_channels = p, whole_channels

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """x [B, C, ...] masked; as it is if `noise` is None."""
        if noise is None or not self.p:
            return x
        like = x.flatten(2)[:, :, 0] if self.whole_channels and x.ndim > 2 else x
        mask = noise.keep(like, self.p)
        return x * mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim))


class Blur(nn.Module):
    """Additive Gaussian noise."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """x plus noise; as it is if `noise` is None."""
        return x if noise is None or not self.std else x + self.std * noise.normal(*x.shape)


class Mean(nn.Module):
    """The mean of each channel over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] of x [B, C, H, W]. `nn.AdaptiveAvgPool2d` turns its result unseen by a recording, which then gives up."""
        return x.mean((2, 3))


class Block(nn.Module):
    """A layer with weight or batch normalisation, and its activation.

    Weight normalisation (Salimans & Kingma, 2016, Eq. 2): w = g v / ‖v‖ for each output, with the norm as in improved-gan's
    nn.py, sqrt(1e-6 + Σ v²). g is 1 until `data_dependent_` sets it, and is trained only if `train_g` says so.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d,
        norm: Normalisation,
        activation: nn.Module | None = None,
        momentum: float = 0.1,
        train_g: bool = False,
        init_std: float = 1.0,
    ) -> None:
        super().__init__()
        outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        self.layer, self.activation, self.init_std = layer, activation or nn.Identity(), init_std
        self.weight_normed, self.fitting = norm == "weight", False
        self.axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # of the outputs, in the weights
        if self.weight_normed:
            self.g = nn.Parameter(torch.ones(outputs), requires_grad=train_g)
        batchnorm = nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d
        self.norm = batchnorm(outputs, momentum=momentum) if norm == "batch" else None

    def weight(self) -> Tensor:
        """The layer's weights, normalised if they are to be."""
        v = self.layer.weight
        if not self.weight_normed:
            return v
        others = [axis for axis in range(v.ndim) if axis != self.axis]
        shape = [-1 if axis == self.axis else 1 for axis in range(v.ndim)]
        return v * (self.g.view(shape) * (1e-6 + v.square().sum(others, keepdim=True)).rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        """The activations of x, [B, outputs] or [B, outputs, H, W]."""
        if self.fitting:
            self._fit(x)
        h = functional_call(self.layer, {"weight": self.weight()}, (x,)) if self.weight_normed else self.layer(x)
        activated: Tensor = self.activation(h if self.norm is None else self.norm(h))
        return activated

    def _fit(self, x: Tensor) -> None:
        """g and bias that give every output mean 0 and standard deviation `init_std` on x (Salimans & Kingma, Eq. 6)."""
        h = functional_call(self.layer, {"weight": self.weight()}, (x,)).transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(h, 1, correction=0)
        factor = self.init_std * (var + 1e-12).rsqrt()
        assert self.layer.bias is not None
        self.layer.bias.copy_((self.layer.bias - mean) * factor)
        self.g.mul_(factor)


class Chain(nn.Module):
    """Layers one after another. `noise` goes to those that draw; y, if given, joins the input of every `Block`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, noise: Noise | None = None, y: Tensor | None = None) -> Tensor:
        """The last layer's output for x; without `noise` nothing is dropped or blurred. y is one-hot, [B, K]."""
        # convolutions are faster in this memory layout, and keep it
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        for layer in self.layers:
            if isinstance(layer, Drop | Blur):
                x = layer(x, noise)
            else:
                x = layer(joined(x, y) if y is not None and isinstance(layer, Block) else x)
        return x


def joined(x: Tensor, y: Tensor) -> Tensor:
    """x [B, C] or [B, C, H, W] with y [B, K] as further channels, the same everywhere."""
    return torch.cat([x, y.view(*y.shape, *(1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])], 1)


@contextmanager
def _fitting(net: nn.Module) -> Iterator[None]:
    blocks = [layer for layer in net.modules() if isinstance(layer, Block) and layer.weight_normed]
    try:
        for block in blocks:
            block.fitting = True
        yield
    finally:
        for block in blocks:
            block.fitting = False


@torch.no_grad()
def data_dependent_(net: nn.Module, x: Tensor, noise: Noise | None = None) -> None:
    """Fits weight-normalised layers, first to last, to examples x: pre-activations of mean 0 and the block's `init_std`.

    `noise` is what training will drop and blur with. Repeating it with the same x changes nothing more.
    """
    with _fitting(net):
        net(x, noise)
