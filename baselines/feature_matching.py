"""What Improved GAN and Bad GAN share: both players' nets, how they start, D's losses, what G matches, the schedule.

Both play a K-class D against a G that matches the features of real images (Salimans et al., 2016, sections 3.1 and 5); D's
K + 1st class is that of `baselines.losses`. No method is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.blocks import Chain, data_dependent_
from baselines.losses import error_rate, unlabelled_loss
from baselines.nets import Classifier, Style, conv_small, dense, dense_generator, generator
from models.method import Batch, Data


def players(
    style: Style, shape: Sequence[int], n_classes: int, z_dim: int, hidden: int | None
) -> tuple[Classifier, Chain]:
    """D and G of feature matching: `conv_small` and its generator; with `hidden` units MLPs of three and two layers."""
    if hidden is None:
        return conv_small(style, shape[0], n_classes), generator(z_dim, shape)
    return dense(style, shape, [hidden] * 3, n_classes), dense_generator(z_dim, shape, [hidden] * 2)


def fit_players_(discriminator: Classifier, generator: Chain, data: Data, n: int, z_dim: int) -> None:
    """Fits the weight normalisation of G to n z, uniform in [0, 1), and of D to as many labelled examples in [-1, 1]."""
    assert data.x_labelled is not None, "it needs labelled examples"
    chosen = data.x_labelled[data.noise.permutation(len(data.x_labelled))[:n]]
    data_dependent_(generator, data.noise.uniform(n, z_dim))
    data_dependent_(discriminator, 2 * data.scale * chosen.float() - 1, data.noise)


def discriminator_losses(
    discriminator: Classifier, batch: Batch, images: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D's supervised and unlabelled loss, its share of errors on labelled examples, its logits [M, K] of the others.

    `images` are generated ones in [-1, 1]. D has no batch normalisation, so one pass sees all three.
    """
    assert batch.x_labelled is not None and batch.y_labelled is not None, "a step needs labelled examples"
    seen = [2 * batch.x_labelled - 1, 2 * batch.x - 1, images]
    labelled, free, made = discriminator(torch.cat(seen), batch.noise).split([len(x) for x in seen])
    supervised, error = F.cross_entropy(labelled.float(), batch.y_labelled), error_rate(labelled, batch.y_labelled)
    return supervised, unlabelled_loss(free, made), error, free


def feature_matching(real: Tensor, generated: Tensor) -> Tensor:
    """What G minimises: |E f(x) - E f(G(z))|, the mean over D's features f, [B, F] each.

    Section 3.1 prints the squared norm; openai/improved-gan and kimiyoung/ssl_bad_gan take absolute differences.
    """
    return (real.float().mean(0) - generated.float().mean(0)).abs().mean()


def annealing(steps: Tensor, last: int) -> Tensor:
    """The factor of a learning rate after so many steps: 1 for two thirds of the schedule, then linearly to 0 at `last`."""
    return (3 * (1 - steps / last)).clamp(0, 1)
