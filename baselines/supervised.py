"""The floor of the semi-supervised tables: the category branch of AMM's encoder, trained on the labelled examples alone.

What SAMM scores above it, it owes to the unlabelled examples. So the layers of y, as Eq. 6 has them, and their Adam are AMM's,
and nothing else is: no augmentation, no schedule, no early stopping. Departure: under Eq. 7, SAMM's default, y reads features of
z's branch as well, whose layers are not here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.losses import descend, error_rate
from models.layers import Net
from models.method import Batch, Method, Spec
from models.noise import Noise


@dataclass(frozen=True)
class SupervisedConfig:
    """Knobs of the supervised floor; a default that SAMM has too is SAMM's."""

    nets: Literal["mnist", "svhn", "digits", "plane", "mnist14"] = "svhn"  # ENCODER_Y of models/<nets>.py
    components: int = 10  # classes, K (section 4.2)
    learning_rate: float = 2e-4  # α (section 4)
    beta1: float = 0.5  # section 4
    beta2: float = 0.999  # Kingma & Ba; not said in the paper
    momentum: float = 0.1  # of running statistics; PyTorch's default
    init_std: float = 0.02  # kernels ~ N(0, init_std²) (section 4)
    weight_decay: float = 0.0  # L2 in Adam's gradient; AMM has none


class Supervised(Method):
    """Gy(x) of Eq. 6 under cross-entropy: its means μ_y(x) are the logits, its noise σ_y is left out."""

    Config = SupervisedConfig
    needs_labels = True

    def __init__(self, config: SupervisedConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        table = importlib.import_module(f"models.{c.nets}").ENCODER_Y
        self.net = Net(table, c.components, noise, c.momentum, c.init_std)
        betas = (c.beta1, c.beta2)
        self.adam = torch.optim.Adam(
            self.net.parameters(), c.learning_rate, betas, weight_decay=c.weight_decay, fused=True
        )

    def logits(self, x: Tensor, noise: Noise | None) -> Tensor:
        """μ_y(x), [B, K]; dropout draws from `noise`, and None leaves it out."""
        return self.net(noise, "yμ", x=x)["yμ"].flatten(1).float()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on the labelled examples, [B, C, H, W] with classes int64 [B]; the unlabelled ones are not looked at."""
        x, y = batch.x_labelled, batch.y_labelled
        assert x is not None and y is not None, "a step needs labelled examples"
        logits = self.logits(x, batch.noise)
        loss = F.cross_entropy(logits, y)
        descend(loss, None, self.adam)
        return {"loss": loss.detach(), "train_error": error_rate(logits, y)}

    def predict(self, x: Tensor) -> Tensor:
        """The class with the largest μ_y(x), int64 [B]."""
        return self.logits(x, None).argmax(1)
