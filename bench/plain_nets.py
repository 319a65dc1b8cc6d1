"""The networks of `bench.plain` in PyTorch's modules: Tables 3-10, and the small nets for 8x8 digits and the plane.

y is [B, k] and z is [B, d] throughout. A row that sees and makes one position is written as the linear map that it is, and
so are all rows for the digits, whose kernels span the image: as convolutions these take several times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, int] | tuple[int, int, int, int]  # inputs, outputs and, of a convolution, width and stride

LEAK = 0.2


def _weights(shape: Shape, transposed: bool = False) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(*shape)
    return nn.ConvTranspose2d(*shape) if transposed else nn.Conv2d(*shape)


def _layer(shape: Shape, dropout: float = 0.0, transposed: bool = False) -> nn.Module:
    """The weights of one row, with dropout on its input."""
    weights = _weights(shape, transposed)
    return nn.Sequential(nn.Dropout(dropout), weights) if dropout else weights


def _layers(shapes: Sequence[Shape], dropout: float, transposed: bool = False) -> nn.ModuleList:
    return nn.ModuleList(_layer(shape, dropout, transposed) for shape in shapes)


def _norms(channels: Sequence[int], flat: bool) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm1d(n) if flat else nn.BatchNorm2d(n) for n in channels)


def _stack(shapes: Sequence[Shape], dropout: float = 0.0) -> list[nn.Module]:
    """Rows of D, each with its activation."""
    return [module for shape in shapes for module in (_layer(shape, dropout), nn.LeakyReLU(LEAK))]


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The reparametrised normal sample."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


# the wiring


class Encoder(nn.Module):
    """x -> y and z, where each y-layer also reads the z-layer beside it, as Tables 3 and 7 draw it.

    Args:
        trunk: what both branches read.
        branch: the layers of either branch.
        end: from the last of them to [B, channels].
    """

    def __init__(
        self, k: int, z: int, trunk: nn.Module, branch: Sequence[Shape], end: nn.Module, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, flat = [shape[1] for shape in branch], len(branch[0]) == 2
        self.trunk, self.end = trunk, end
        self.y, self.z = _layers(branch, dropout), _layers(branch, dropout)
        self.y_norm, self.z_norm = _norms(channels, flat), _norms(channels, flat)
        self.y_mean, self.y_log_variance = nn.Linear(channels[-1], k), nn.Linear(channels[-1], k)
        self.z_mean, self.z_log_variance = nn.Linear(channels[-1], z), nn.Linear(channels[-1], z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = z = self.trunk(x)
        for y_layer, z_layer, y_norm, z_norm in zip(self.y, self.z, self.y_norm, self.z_norm, strict=True):
            y, z = y_layer(y), z_layer(z)
            y, z = F.leaky_relu(y_norm(y + z), LEAK), F.leaky_relu(z_norm(z), LEAK)
        y, z = self.end(y), self.end(z)
        y = torch.softmax(sample(self.y_mean(y), self.y_log_variance(y)), dim=1)
        return y, sample(self.z_mean(z), self.z_log_variance(z))

    def infer_z(self, x: Tensor) -> Tensor:
        """z alone, which no y reaches: what Algorithm 2 asks of a labelled x."""
        z = self.trunk(x)
        for layer, norm in zip(self.z, self.z_norm, strict=True):
            z = F.leaky_relu(norm(layer(z)), LEAK)
        z = self.end(z)
        return sample(self.z_mean(z), self.z_log_variance(z))


class Prior(nn.Module):
    """y -> z by networks for its mean and its log-variance, or with unit variance."""

    def __init__(self, mean: nn.Module, log_variance: nn.Module | None = None) -> None:
        super().__init__()
        self.mean, self.log_variance = mean, log_variance

    def forward(self, y: Tensor) -> Tensor:
        mean: Tensor = self.mean(y)
        return mean + torch.randn_like(mean) if self.log_variance is None else sample(mean, self.log_variance(y))


class FixedPrior(nn.Module):
    """y -> z with unit variance around means [k, d] that stay where they are."""

    means: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)

    def forward(self, y: Tensor) -> Tensor:
        mean = y @ self.means
        return mean + torch.randn_like(mean)


class Decoder(nn.Module):
    """y, z -> x in [0, 1]; the y-branch also reads the z-layers and has no activation, as Tables 5 and 9 draw it.

    Args:
        first: channels of the first row.
        branch: the further layers of either branch.
        image: shape of x.
    """

    def __init__(
        self, k: int, z: int, first: int, branch: Sequence[Shape], image: tuple[int, int, int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, flat = [first, *(shape[1] for shape in branch[:-1])], len(branch[0]) == 2
        self.y_in, self.z_in = nn.Linear(k, first), nn.Linear(z, first)
        self.start = nn.Identity() if flat else nn.Unflatten(1, (first, 1, 1))
        self.y_norm, self.z_norm = _norms(channels, flat), _norms(channels, flat)
        self.y, self.z = _layers(branch, dropout, transposed=True), _layers(branch, dropout, transposed=True)
        self.image = image

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        y, z = self.start(self.y_in(y)), self.start(self.z_in(z))
        for y_norm, z_norm, y_layer, z_layer in zip(self.y_norm, self.z_norm, self.y, self.z, strict=True):
            y, z = y_norm(y + z), F.leaky_relu(z_norm(z), LEAK)
            y, z = y_layer(y), z_layer(z)
        return torch.sigmoid(y + z).view(-1, *self.image)


class Discriminator(nn.Module):
    """x, y, z -> logit [B], the three joined as in Tables 6 and 10.

    Args:
        x: layers from x to [B, channels].
        joint: channels of x, y and z together, of which y and z have `side` each.
    """

    def __init__(self, k: int, z: int, x: Sequence[nn.Module], side: int, joint: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.x = nn.Sequential(*x)
        self.y = nn.Sequential(*_stack([(k, side)]), *_stack([(side, side)], dropout))
        self.z = nn.Sequential(*_stack([(z, side)]), *_stack([(side, side)], dropout))
        self.joint = nn.Sequential(*_stack(2 * [(joint, joint)], dropout), _layer((joint, 1), dropout))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        logit: Tensor = self.joint(torch.cat([self.x(x), self.y(y), self.z(z)], dim=1))
        return logit.flatten()


class Nets(NamedTuple):
    """One dataset's networks; `mean` is that of z, [B, d] from y, under the learned prior of unit variance."""

    z: int
    encoder: Encoder
    mean: nn.Module
    decoder: nn.Module
    discriminator: nn.Module


def _mean(k: int, z: int, dropout: float = 0.0) -> nn.Module:
    """Table 4."""
    first = [nn.Linear(k, z), nn.BatchNorm1d(z), nn.LeakyReLU(LEAK)]
    second = [_layer((z, z), dropout), nn.BatchNorm1d(z), nn.LeakyReLU(LEAK)]
    return nn.Sequential(*first, *second, nn.Linear(z, z))


def prior(kind: str, nets: Nets, k: int, separation: float) -> nn.Module:
    """p(z | y): "learned" with unit variance, "learned_variance" (Table 8), or "fixed".

    Fixed means are `separation` times the unit vectors, or evenly on a circle of that radius in the plane.
    """
    if kind == "learned":
        return Prior(nets.mean)
    if kind == "learned_variance":
        return Prior(nn.Linear(k, nets.z), nn.Linear(k, nets.z))
    angle = 2 * pi / k * torch.arange(k)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    return FixedPrior(separation * (circle if nets.z == 2 else torch.eye(nets.z)[:k]))


# MNIST

MNIST: tuple[Shape, ...] = ((1, 32, 2, 1), (32, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1), (64, 128, 4, 1))
MNIST_BACK: tuple[Shape, ...] = ((128, 64, 4, 1), (64, 64, 3, 1), (64, 32, 3, 2), (32, 32, 3, 2), (32, 1, 2, 1))


def mnist(k: int) -> Nets:
    """Tables 3-6; D drops nothing of the image itself."""
    d_x = [*_stack(MNIST[:1]), *_stack(MNIST[1:], 0.2), nn.Flatten()]
    return Nets(
        64,
        Encoder(k, 64, nn.Identity(), MNIST, nn.Flatten(), dropout=0.2),
        _mean(k, 64, dropout=0.2),
        Decoder(k, 64, 128, MNIST_BACK, (1, 28, 28), dropout=0.2),
        Discriminator(k, 64, d_x, side=64, joint=256, dropout=0.2),
    )


# SVHN

SVHN_TRUNK = ((3, 96, 96, 96), (96, 192, 192, 192), (192, 384))  # channels, with Max2 between the groups
SVHN: tuple[Shape, ...] = ((384, 192, 1, 1), (192, 96, 1, 1))
SVHN_BACK: tuple[Shape, ...] = ((512, 256, 4, 1), (256, 256, 3, 1), (256, 128, 3, 2), (128, 128, 3, 1), (128, 3, 4, 2))


def _trunk(normed: bool, dropout: float = 0.0) -> list[nn.Module]:
    """x1-x7 of Tables 7 and 10: 3x3, padded but for x7; dropout on what is pooled."""
    layers: list[nn.Module] = []
    for group in SVHN_TRUNK:
        if layers:
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)] if dropout else [nn.MaxPool2d(2)]
        for inputs, outputs in pairwise(group):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=0 if group == SVHN_TRUNK[-1] else 1)]
            layers += [nn.BatchNorm2d(outputs), nn.LeakyReLU(LEAK)] if normed else [nn.LeakyReLU(LEAK)]
    return layers


def svhn(k: int) -> Nets:
    """Tables 7, 9 and 10, with Table 4 as the learned prior; Avg6 comes after the activation."""
    pool = [nn.AvgPool2d(6), nn.Flatten()]
    return Nets(
        64,
        Encoder(k, 64, nn.Sequential(*_trunk(normed=True)), SVHN, nn.Sequential(*pool)),
        _mean(k, 64, dropout=0.2),
        Decoder(k, 64, 512, SVHN_BACK, (3, 32, 32)),
        Discriminator(k, 64, [*_trunk(False, 0.1), *_stack(SVHN), *pool], side=96, joint=288, dropout=0.1),
    )


# digits of 8x8

DIGITS: tuple[Shape, ...] = ((64, 256), (256, 128))
DIGITS_BACK: tuple[Shape, ...] = ((128, 256), (256, 64))


def digits(k: int) -> Nets:
    """The wiring of Tables 3-6 with two hidden layers and no dropout."""
    return Nets(
        16,
        Encoder(k, 16, nn.Flatten(), DIGITS, nn.Identity()),
        _mean(k, 16),
        Decoder(k, 16, 128, DIGITS_BACK, (1, 8, 8)),
        Discriminator(k, 16, [nn.Flatten(), *_stack(DIGITS)], side=64, joint=256),
    )


# points in the plane

PLANE: tuple[Shape, ...] = ((2, 64), (64, 64))


class PlaneDecoder(nn.Module):
    """y, z -> points [B, 2, 1, 1]."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.y, self.z = nn.Linear(k, 64), nn.Linear(2, 64)
        hidden = [nn.BatchNorm1d(64), nn.LeakyReLU(LEAK), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.LeakyReLU(LEAK)]
        self.x = nn.Sequential(*hidden, nn.Linear(64, 2), nn.Unflatten(1, (2, 1, 1)))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return self.x(self.y(y) + self.z(z))


class PlaneDiscriminator(nn.Module):
    """x, y, z -> logit [B]."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.x, self.y, self.z = nn.Sequential(nn.Flatten(), nn.Linear(2, 64)), nn.Linear(k, 64), nn.Linear(2, 64)
        self.joint = nn.Sequential(nn.LeakyReLU(LEAK), *_stack([(64, 64)]), nn.Linear(64, 1))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        logit: Tensor = self.joint(self.x(x) + self.y(y) + self.z(z))
        return logit.flatten()


def plane(k: int) -> Nets:
    """Two hidden layers of 64."""
    encoder = Encoder(k, 2, nn.Flatten(), PLANE, nn.Identity())
    return Nets(2, encoder, nn.Linear(k, 2), PlaneDecoder(k), PlaneDiscriminator(k))


NETS: dict[str, Callable[[int], Nets]] = {"mnist": mnist, "svhn": svhn, "digits": digits, "plane": plane}
