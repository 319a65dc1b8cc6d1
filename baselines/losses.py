"""What several rivals share: losses of a discriminator with K + 1 classes, entropy, errors, log odds, a schedule, a step.

D has K logits l(x), one for each class; that of class K + 1, "generated", is fixed at 0, since a softmax has one logit too many
(Salimans et al., 2016, section 5). With Z(x) = Σ_k exp l_k(x), D(x) = 1 - p(K + 1 | x) = Z / (Z + 1) is the probability that x
is real, so log Z is its logit and serves wherever `models.adversarial` asks for one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.adversarial import discriminator_loss


def real_logit(logits: Tensor) -> Tensor:
    """log Z(x), [B], from logits [B, K]: the logit of D(x)."""
    return torch.logsumexp(logits.float(), 1)


def unlabelled_loss(unlabelled: Tensor, generated: Tensor) -> Tensor:
    """L_unsupervised of section 5, halved as in openai/improved-gan: -E log D(x) / 2 - E log(1 - D(G(z))) / 2.

    From D's logits [B, K] of unlabelled examples and of generated ones.
    """
    return 0.5 * discriminator_loss(real_logit(unlabelled), real_logit(generated))


def conditional_entropy(logits: Tensor) -> Tensor:
    """Mean of H[p(y | x)] over the batch, in nats, from logits [B, K]; from 0 to log K."""
    log_p = F.log_softmax(logits.float(), 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def error_rate(logits: Tensor, y: Tensor) -> Tensor:
    """The share of examples whose largest logit, of [B, K], is not that of their class in y, int64 [B]."""
    return (logits.argmax(1) != y).float().mean()


def log_odds(logits: Tensor) -> Tensor:
    """log p_k / (1 - p_k) of p = softmax(logits), float64 [B, K].

    It still tells the surest examples apart where p itself is rounded to 1.
    """
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits.double()[:, None].masked_fill(itself, -torch.inf)
    return logits.double() - torch.logsumexp(others, 2)


def decayed(rate: float, factor: float, every: int, epoch: Tensor) -> Tensor:
    """A learning rate in epoch 0, 1, ...: times `factor` after every `every` epochs."""
    return rate * torch.pow(factor, torch.div(epoch, every, rounding_mode="floor").float())


def set_rate(rate: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Gives them the learning rate of this step: a tensor that stays theirs, where a restored optimiser has a copy."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = rate


def descend(loss: Tensor, parameters: Sequence[Tensor] | None, *optimizers: torch.optim.Optimizer) -> None:
    """One step on `loss` of these parameters alone; None for all that it depends on."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward(inputs=parameters)
    for optimizer in optimizers:
        optimizer.step()
