"""LALNets as a clustering method (Kilinc & Uysal, 2018): a net learns to name the transformation that an image went through.

Each image is turned by 0, 90, 180 or 270 degrees and flipped or not; which of the 8 is its pseudo class. The output layer (ACOL)
has k duplicates of each pseudo class under one softmax, and fixed pooling adds the duplicates up. Graph-based activity
regularisation (GAR) of the outputs Z before the softmax wants the duplicates of a class to be active on different images and all
equally much. With B = max(Z, 0) and `gar`'s means over the pseudo classes (balance_type 7) the loss of a batch is
    cross-entropy of the pooled softmax + c1 affinity(B) + c2 (1 - balance(B)) + c3 coactivity(B) + c4 ‖Z‖².
k-means on the last hidden layer, of images as they are, gives the clusters. Rewritten after ozcell/LALNets
(examples/pseudo_svhn.py, acol/models.py, regularizers.py, trainings.py; the authors' script for MNIST is not public), with its
choices: every image enters the Gram matrices of all pseudo classes; ‖Z‖² is a sum over the batch, so c4 is meant for 400; an
epoch shows each image under all 8 pseudo classes, so it is 8 of the bench's.
Departures: k-means reads the training images, where the authors fit it to the very test images they score; the mean image of
`standardise` is that of the training images; coactivity is Σ U - tr U as in balance_type 3 (7 repeats balance there; c3 is 0 in
all scripts); pseudo classes are drawn independently; weights ~ N(0, 1 / fan in), not Keras' of Glorot; mlp: norms unbounded.
The known pitfall: the task must need to know what is in the image. A turned 6 is a 9, some digits look the same after some
transformations, and whatever else tells up from down (the mean image, left on a black background) is read instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.gar import gar
from baselines.losses import descend
from models.kmeans import fit_centres, nearest
from models.method import Batch, Data, Method, Spec
from models.nets import conv, fan_in_, linear
from models.noise import Noise

PSEUDO = 8  # pseudo classes: 4 rotations, flipped or not


@dataclass(frozen=True)
class LALNetsConfig:
    """Knobs of LALNets; defaults are those of the SVHN script, but `standardise`."""

    components: int = 10  # clusters of k-means
    n_init: int = 10  # k-means++ starts
    duplicates: int = 20  # k, outputs of each pseudo class
    arch: Literal["conv", "mlp"] = "conv"  # cnn_type 2 of define_cnn; define_mlp
    channels: int = 32  # conv: of the first block, the second has twice as many
    hidden: int = 2048  # width of the fully connected layers, so of the features
    layers: int = 3  # mlp: hidden layers, define_mlp's default
    block_dropout: tuple[float, float] = (0.2, 0.3)  # conv: after each block
    dropout: float = 0.5  # after each fully connected hidden layer
    affinity_weight: float = 0.1  # c1
    balance_weight: float = 1.0  # c2
    coactivity_weight: float = 0.0  # c3
    norm_weight: float = 1e-6  # c4
    standardise: bool = False  # minus the mean image, then per image; the SVHN script does, load_mnist does not
    learning_rate: float = 1e-3  # Adam's three: Keras' defaults
    beta1: float = 0.9
    beta2: float = 0.999


class LALNets(Method):
    """Each step learns to name the transformations of a batch, under GAR; `finish` clusters the features."""

    Config = LALNetsConfig
    centres: Tensor
    mean: Tensor

    def __init__(self, config: LALNetsConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c, (_, height, width) = config, spec.shape
        if height != width or height < 2:
            raise ValueError(f"LALNets turns images by 90 degrees: it needs squares, {spec.data} has {spec.shape}")
        self.stages, self.rates = _stages(c, spec.shape)
        self.head = linear(c.hidden, PSEUDO * c.duplicates)
        fan_in_(self, noise)
        self.register_buffer("centres", torch.zeros(c.components, c.hidden, device=noise.device))
        self.register_buffer("mean", torch.zeros(spec.shape, device=noise.device))
        self.adam = torch.optim.Adam(self.parameters(), c.learning_rate, (c.beta1, c.beta2), fused=True)

    def prepare(self, data: Data) -> None:
        """The mean image, [C, H, W]."""
        self.mean.copy_(torch.stack([x.double().sum(0) for x in data.batches()]).sum(0) / len(data))

    def embed(self, x: Tensor) -> Tensor:
        """The features, [B, hidden], of images [B, C, H, W] as they are."""
        return self.features(self.standardised(x))

    def standardised(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] minus the mean image, each then with mean 0 and std 1 over all its values, if so configured."""
        std, mean = torch.std_mean(x - self.mean, (1, 2, 3), correction=0, keepdim=True)
        return (x - self.mean - mean) / (std + 1e-8) if self.config.standardise else x

    def features(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The last hidden layer, [B, hidden], of images ready for the net; dropout with `noise` alone."""
        for stage, rate in zip(self.stages, self.rates, strict=True):
            x = stage(x)
            x = x * noise.keep(x, rate) if noise is not None else x
        return x

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on images [B, C, H, W], each transformed by a pseudo class of its own."""
        c, pseudo = self.config, batch.noise.integers(PSEUDO, len(batch.x))
        x = transform(self.standardised(batch.x), pseudo)
        z = self.head(self.features(x, batch.noise)).float().view(-1, c.duplicates, PSEUDO)
        parts = {"pseudo": F.cross_entropy(pooled(z), pseudo), **gar(z), "norm": z.square().sum()}
        loss = parts["pseudo"] + c.affinity_weight * parts["affinity"] + c.balance_weight * (1 - parts["balance"])
        loss = loss + c.coactivity_weight * parts["coactivity"] + c.norm_weight * parts["norm"]
        descend(loss, None, self.adam)
        return {name: value.detach() for name, value in parts.items()}

    def finish(self, data: Data) -> None:
        """k-means on the features of all training images."""
        features = torch.cat([self.embed(x).detach() for x in data.batches()])
        self.centres.copy_(fit_centres(features, self.config.components, self.config.n_init, data.noise.seed()))

    def predict(self, x: Tensor) -> Tensor:
        """The centre nearest to the features, int64 [B]."""
        return nearest(self.embed(x), self.centres)


def transform(x: Tensor, pseudo: Tensor) -> Tensor:
    """Square images [B, C, H, H] turned counterclockwise by 90° · (pseudo mod 4), then mirrored left-right if pseudo >= 4."""
    bits = [(pseudo & bit).bool()[:, None, None, None] for bit in (1, 2, 4)]
    x = torch.where(bits[0], torch.rot90(x, 1, (2, 3)), x)
    x = torch.where(bits[1], torch.rot90(x, 2, (2, 3)), x)
    return torch.where(bits[2], x.flip(3), x)


def pooled(z: Tensor) -> Tensor:
    """Logits [B, P] of the pseudo classes from z [B, k, P]: their softmax is that of all k·P outputs, added up over k."""
    return z.logsumexp(1)


def _stages(c: LALNetsConfig, shape: tuple[int, int, int]) -> tuple[nn.ModuleList, list[float]]:
    """The hidden layers and the dropout after each; conv: two blocks (max pooling: odd sides lose one), then one layer."""
    if c.arch == "mlp":
        widths = [torch.Size(shape).numel(), *[c.hidden] * c.layers]
        return nn.ModuleList(map(_dense, widths[:-1], widths[1:])), [c.dropout] * c.layers
    a, b, positions = c.channels, 2 * c.channels, (shape[1] // 4) * (shape[2] // 4)
    stages = [_block(shape[0], a), _block(a, b), _dense(b * positions, c.hidden)]
    return nn.ModuleList(stages), [*c.block_dropout, c.dropout]


def _block(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(conv(a, b, 3, 1, 1), nn.ReLU(), conv(b, b, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))


def _dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), linear(inputs, outputs), nn.ReLU())
