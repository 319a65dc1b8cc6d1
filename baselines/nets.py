"""The backbones that several semi-supervised rivals share; it holds no method.

`conv_small` is the net of Salimans et al. (2016, openai/improved-gan, train_svhn_feature_matching.py), which BadGAN and the
small VAT use in their own styles, `conv_large` that of Miyato et al. (2018, takerum/vat_tf, cnn.py), which TripleGAN and SGAN
use in theirs; `dense` is a counterpart of ours for small images. All are `Classifier`s; `generator` is improved-gan's, given
classes as TripleGAN does it. Their layers are those of `baselines.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from baselines.blocks import Block, Blur, Chain, Drop, Mean, Normalisation
from models.nets import conv, linear, transposed
from models.noise import Noise


@dataclass(frozen=True)
class Style:
    """What the codes that share a backbone do differently."""

    norm: Normalisation = "batch"  # of every layer but the last
    last_norm: Normalisation = "none"  # of the layer that makes the logits
    slope: float = 0.1  # of the leaky ReLU
    input_dropout: float = 0.0
    input_noise: float = 0.0  # std of Gaussian noise on the input, before its dropout
    dropout: float = 0.5  # after each of the two halvings; `dense`: after the first layer
    whole_channels: bool = False  # dropout drops whole channels, as Dropout2d
    pool: Literal["stride", "max"] = "stride"  # conv_small: what halves the sides; conv_large always takes the maximum
    momentum: float = 0.1  # of running statistics
    scale: float = 1.0  # times the channels


class Classifier(nn.Module):
    """A backbone: `body` ends in the features, for the conv nets the global average pooling's, `head` makes the logits."""

    def __init__(self, body: Chain, head: Block) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The last hidden layer, [B, F], of images [B, C, H, W]; without `noise` nothing is dropped or blurred."""
        found: Tensor = self.body(x, noise)
        return found

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        logits: Tensor = self.head(self.features(x, noise))
        return logits


def _widths(style: Style, *channels: int) -> list[int]:
    return [max(1, round(style.scale * n)) for n in channels]


def _block(style: Style, a: int, b: int, width: int = 3, stride: int = 1, padding: int = 1) -> Block:
    layer = conv(a, b, width, stride, padding, bias=style.norm != "batch")  # batch normalisation removes a bias
    return Block(layer, style.norm, nn.LeakyReLU(style.slope), style.momentum)


def _head(style: Style, features: int, n_classes: int) -> Block:
    """The last layer: weight-normalised ones train g and start with std 0.1 (improved-gan, also BadGAN)."""
    layer = linear(features, n_classes, bias=style.last_norm != "batch")
    return Block(layer, style.last_norm, None, style.momentum, train_g=True, init_std=0.1)


def _entrance(style: Style) -> list[nn.Module]:
    return [Blur(style.input_noise), Drop(style.input_dropout, style.whole_channels)]


def _exit(style: Style, n: Sequence[int]) -> list[nn.Module]:
    """From 8x8 to the features: a 3x3 convolution without padding, two of 1x1, and their average over the 6x6 positions."""
    ones = [_block(style, a, b, 1, padding=0) for a, b in pairwise(n[1:])]
    return [_block(style, n[0], n[1], padding=0), *ones, Mean()]


def conv_small(style: Style, colours: int = 3, n_classes: int = 10) -> Classifier:
    """Images of 32x32 -> 16 -> 8 -> 6 -> 1; 64 and 128 channels, 128 features. See `Style.pool` for what halves the sides."""
    (a, b), last = _widths(style, 64, 128), 1 if style.pool == "max" else 2
    halved = [nn.MaxPool2d(2)] if style.pool == "max" else []
    drop = [Drop(style.dropout, style.whole_channels)]
    first = [_block(style, colours, a), _block(style, a, a), _block(style, a, a, stride=last), *halved, *drop]
    second = [_block(style, a, b), _block(style, b, b), _block(style, b, b, stride=last), *halved, *drop]
    body = Chain([*_entrance(style), *first, *second, *_exit(style, [b, b, b, b])])
    return Classifier(body, _head(style, b, n_classes))


def conv_large(style: Style, colours: int = 3, n_classes: int = 10) -> Classifier:
    """Images of 32x32 -> 16 -> 8 -> 6 -> 1; 128, 256, then 512, 256 and 128 channels, 128 features."""
    a, b, c = _widths(style, 128, 256, 512)
    layers = _entrance(style)
    for before, n in ((colours, a), (a, b)):
        layers += [_block(style, before, n), _block(style, n, n), _block(style, n, n), nn.MaxPool2d(2)]
        layers += [Drop(style.dropout, style.whole_channels)]
    return Classifier(Chain([*layers, *_exit(style, [b, c, b, a])]), _head(style, a, n_classes))


def dense(style: Style, shape: Sequence[int], hidden: Sequence[int], n_classes: int = 10) -> Classifier:
    """The counterpart for images [C, H, W] of any size: fully connected layers of these widths, the last one's the features."""
    layers: list[nn.Module] = [nn.Flatten(), *_entrance(style)]
    for i, (a, b) in enumerate(pairwise([math.prod(shape), *hidden])):
        layer = linear(a, b, bias=style.norm != "batch")
        layers += [Drop(style.dropout)] if i == 1 else []
        layers.append(Block(layer, style.norm, nn.LeakyReLU(style.slope), style.momentum))
    return Classifier(Chain(layers), _head(style, hidden[-1], n_classes))


def generator(z_dim: int = 100, shape: Sequence[int] = (3, 32, 32), y_dim: int = 0, channels: int = 512) -> Chain:
    """Images in (-1, 1) from z [B, z_dim], for square sides divisible by 8: 4 -> 8 -> 16 -> 32, channels 512, 256, 128.

    With `y_dim` it is called as generator(z, None, y), y one-hot [B, y_dim]. ValueError: sides that it cannot make.
    """
    colours, height, side = shape
    if height != side or side % 8:
        raise ValueError(f"the generator makes squares with sides divisible by 8, not {height}x{side}")
    c, start = channels, side // 8
    first = linear(z_dim + y_dim, c * start**2, bias=False)
    layers: list[nn.Module] = [Block(first, "batch", nn.ReLU()), nn.Unflatten(1, (c, start, start))]
    for n in (c, c // 2):
        layer = transposed(n + y_dim, n // 2, 5, 2, 2, bias=False, output_padding=1)
        layers.append(Block(layer, "batch", nn.ReLU()))
    last = transposed(c // 4 + y_dim, colours, 5, 2, 2, output_padding=1)
    return Chain([*layers, Block(last, "weight", nn.Tanh(), train_g=True, init_std=0.1)])


def dense_generator(z_dim: int, shape: Sequence[int], hidden: Sequence[int], y_dim: int = 0) -> Chain:
    """The counterpart for images of any size: batch normalisation and ReLU, then weight normalisation and tanh."""
    layers: list[nn.Module] = [
        Block(linear(a + y_dim, b, bias=False), "batch", nn.ReLU()) for a, b in pairwise([z_dim, *hidden])
    ]
    last = Block(linear(hidden[-1] + y_dim, math.prod(shape)), "weight", nn.Tanh(), train_g=True, init_std=0.1)
    return Chain([*layers, last, nn.Unflatten(1, tuple(shape))])
