"""What Triple-GAN and SGAN share but for nets: losses of pairs, the classifier's own loss, schedules that count epochs.

Losses take logits, so that -log σ(l) = softplus(-l) stays finite wherever σ(l) rounds to 0 or 1. Schedules are functions of a
counter that is a tensor, since a step is recorded once and replayed. No method is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import losses
from baselines.nets import Classifier
from models.nets import running_statistics_kept
from models.noise import Noise


def real(logit: Tensor) -> Tensor:
    """Binary cross-entropy with target 1, the mean of -log σ(logit)."""
    return F.softplus(-logit.float()).mean()


def fake(logit: Tensor) -> Tensor:
    """Binary cross-entropy with target 0, the mean of -log(1 - σ(logit))."""
    return F.softplus(logit.float()).mean()


def balance(logits: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution to the batch's mean of p(y | x), in nats; at least log K."""
    log_p = F.log_softmax(logits.float(), 1)
    return math.log(len(logits)) - log_p.logsumexp(0).mean()


def classifier_loss(labelled: Tensor, y: Tensor, unlabelled: Tensor, entropy: float, even: float) -> Tensor:
    """-E log p(y | x) over labelled logits [L, K] + `entropy` * H[p(y | x)] + `even` * balance of unlabelled ones [M, K].

    `categorical_crossentropy_ssl_separated` in components/objectives.py of zhenxuan00/triple-gan and thudzj/StructuredGAN.
    """
    supervised = F.cross_entropy(labelled.float(), y)
    return supervised + entropy * losses.conditional_entropy(unlabelled) + even * balance(unlabelled)


def named(classifier: Classifier, images: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """-E log p(y | x) of generated images and the classes they were made of; running statistics stay as they are."""
    with running_statistics_kept(classifier):
        return F.cross_entropy(classifier(images, noise).float(), y)


def epoch_of(steps: Tensor, length: int) -> Tensor:
    """The epoch, from 1, of the step that follows `steps` taken ones (int64), of `length` steps each."""
    return torch.div(steps, length, rounding_mode="floor") + 1


def decay(epoch: Tensor, start: int, factor: float) -> Tensor:
    """The factor of a learning rate in `epoch`: 1 up to `start`, then `factor` times that of the epoch before."""
    return torch.pow(factor, (epoch - start).clamp(min=0))


def even_classes(n: int, k: int, device: torch.device) -> Tensor:
    """Classes int64 [n] of generated images, each equally often if k divides n."""
    return torch.arange(n, device=device) % k


def composition(epoch: Tensor, n: int) -> Tensor:
    """Where each of D_xy's n true pairs comes from: 0 labelled, 1 unlabelled with C's class, 2 generated; int64 [n].

    Of 200: 200 labelled; from epoch 10 on 16 fewer each ten epochs, down to 40 at epoch 100, the rest with C's class; from
    epoch 400 on 40 labelled, 150 with C's class, 10 generated.
    """
    labelled = 200 - 16 * torch.div(epoch, 10, rounding_mode="floor").clamp(0, 10)
    generated = 10 * (epoch >= 400)
    at = 200 * torch.arange(n, device=epoch.device)
    return (at >= labelled * n).long() + (at >= (200 - generated) * n).long()


def descend(loss: Tensor, parameters: Sequence[Tensor], adam: torch.optim.Optimizer, rate: Tensor) -> None:
    """One step on `loss` of these parameters alone, at a rate that a schedule may have changed."""
    losses.set_rate(rate, adam)
    losses.descend(loss, parameters, adam)
