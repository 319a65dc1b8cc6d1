"""The nets that Triple-GAN and SGAN share, and SGAN's own two: layers of their codes, and dense ones of ours for small images.

No net holds values yet: `models.nets.normal_` draws them. Neither code fits its weight-normalised layers to data.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from baselines.blocks import Block, Chain, Drop, Mean
from baselines.nets import Classifier, Style, conv_large, dense, dense_generator, generator
from models.method import Spec
from models.nets import conv, linear

Backbone = Literal["conv_large", "dense"]  # the first for images of 32x32; dense, for all others, is ours


def classifier(backbone: Backbone, spec: Spec, k: int, hidden: int, drops: tuple[float, float]) -> Classifier:
    """C of both codes: conv-large, batch normalisation after every layer, the last one's logits included.

    drops: of the input and of hidden layers. dense, ours: two layers of `hidden` units. The weights hold no values yet.
    """
    style = Style("batch", "batch", slope=0.2, input_dropout=drops[0], dropout=drops[1])
    return (
        conv_large(style, spec.shape[0], k)
        if backbone == "conv_large"
        else dense(style, spec.shape, (hidden, hidden), k)
    )


def conditional_generator(backbone: Backbone, spec: Spec, k: int, hidden: int, z_dim: int) -> Chain:
    """G of both codes, called as net(z, None, y), y one-hot. dense, ours: two layers of `hidden` units."""
    if backbone == "conv_large":
        return generator(z_dim, spec.shape, k)
    return dense_generator(z_dim, spec.shape, (hidden, hidden), k)


def pair_discriminator(backbone: Backbone, shape: tuple[int, int, int], k: int, width: int, drop: float) -> Chain:
    """D(x, y) of both codes, called as net(x, noise, y): logits [B, 1] that pairs of images and one-hot classes are real.

    conv_large, for 32x32: 3x3 convolutions of w, w (stride 2), 2w, 2w (stride 2), then 4w and 4w without padding, and their
    mean over positions; dense, ours: two layers of w units. y joins the input of every layer. Weight normalisation and leaky
    ReLU of slope 0.2; dropout of the input and, conv_large, after each stride. The weights hold no values yet.
    """
    c, w, leaky = shape[0], width, nn.LeakyReLU(0.2)
    if backbone == "dense":
        first = Block(linear(math.prod(shape) + k, w), "weight", leaky)
        body = [Drop(drop), nn.Flatten(), first, Block(linear(w + k, w), "weight", leaky)]
        return Chain([*body, _judge(w + k)])

    def block(a: int, b: int, stride: int = 1, padding: int = 1) -> Block:
        return Block(conv(a + k, b, 3, stride, padding), "weight", leaky)

    body = [Drop(drop), block(c, w), block(w, w, 2), Drop(drop), block(w, 2 * w), block(2 * w, 2 * w, 2), Drop(drop)]
    body += [block(2 * w, 4 * w, padding=0), block(4 * w, 4 * w, padding=0), Mean()]
    return Chain([*body, _judge(4 * w + k)])


def _judge(features: int) -> Block:
    return Block(linear(features, 1), "weight", train_g=True)


class JointDiscriminator(nn.Module):
    """D_xz: logits [B] that a pair of an image in [-1, 1] and a z [B, z_dim] is inferred.

    conv_large, of the code: z through 512 and 512 units, x through 5x5 convolutions of stride 2, 128, 256 and 512 channels,
    the last two with batch normalisation; both through 1,024 units; dense, ours: `hidden` units in each place. Leaky ReLU of
    slope 0.2.
    """

    def __init__(self, backbone: Backbone, shape: tuple[int, int, int], hidden: int, z_dim: int) -> None:
        super().__init__()
        leaky, wide = nn.LeakyReLU(0.2), 512 if backbone == "conv_large" else hidden
        self.of_z = Chain([Block(linear(z_dim, wide), "none", leaky), Block(linear(wide, wide), "none", leaky)])
        if backbone == "conv_large":
            layers = [Block(conv(shape[0], 128, 5, 2, 2), "none", leaky)]
            layers += [Block(conv(n, 2 * n, 5, 2, 2, bias=False), "batch", leaky) for n in (128, 256)]
            self.of_x, seen, last = Chain([*layers, nn.Flatten()]), 512 * shape[1] * shape[2] // 64, 1024
        else:
            self.of_x = Chain([nn.Flatten(), Block(linear(math.prod(shape), hidden), "none", leaky)])
            seen, last = hidden, hidden
        self.joint = Chain([Block(linear(seen + wide, last), "none", leaky), Block(linear(last, 1), "none")])

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits [B] of images [B, C, H, W] and z [B, z_dim]."""
        logit: Tensor = self.joint(torch.cat([self.of_x(x), self.of_z(z)], 1))
        return logit.flatten().float()


def inference_net(backbone: Backbone, shape: tuple[int, int, int], hidden: int, z_dim: int) -> Chain:
    """I(x): z [B, z_dim] of images in [-1, 1]; conv_large: 4x4 convolutions of stride 2, 64 to 512 channels; dense: ours."""
    leaky = nn.LeakyReLU(0.2)
    if backbone == "dense":
        sizes = pairwise((math.prod(shape), hidden, hidden))
        body = [nn.Flatten(), *(Block(linear(a, b, bias=False), "batch", leaky) for a, b in sizes)]
        return Chain([*body, Block(linear(hidden, z_dim), "none")])
    body = [Block(conv(a, b, 4, 2, 1, bias=False), "batch", leaky) for a, b in pairwise((shape[0], 64, 128, 256, 512))]
    return Chain([*body, nn.Flatten(), Block(linear(512 * shape[1] * shape[2] // 256, z_dim), "none")])
