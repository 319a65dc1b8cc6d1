"""SAMM, the semi-supervised AMM: Algorithm 2.

Two games are played with one discriminator: AMM's on unlabelled examples, and Eq. 14's on labelled ones, whose y is true and
whose z the encoder infers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.amm import AMM, AMMConfig, Tuple3, judged
from models.latent import one_hot
from models.method import Batch, Data, Spec
from models.noise import Noise
from models.prior import Kind


@dataclass(frozen=True)
class SAMMConfig(AMMConfig):
    """Knobs of SAMM: AMM's, with the defaults of the SVHN experiments, and those that labels bring."""

    nets: Literal["mnist", "svhn", "digits", "plane", "mnist14"] = "svhn"  # Tables 7-10
    prior: Kind = "learned_variance"  # Table 8
    penalty_weight: float = 0.01  # λ for SVHN (section 4.1)
    p_y: Literal["labels", "uniform"] = "labels"  # p(y) is how often each class occurs among the labels (section 4.3.2)
    discriminators: Literal["one", "two"] = "one"  # Algorithm 2 has one; two: one for each game, ours


class SAMM(AMM):
    """Algorithm 2: Algorithm 1 with M tuples of the labelled game beside the M of the unlabelled one.

    Every loss of Algorithm 2 is the sum of both games, each with weight 1 / 2M: the mean over the 2M tuples of both, which
    is what AMM's step takes (of fewer labelled examples than unlabelled ones the labelled game weighs less). No gradient of
    the labelled game reaches the rows of y, which is given there; the rows before them that z shares learn from both.
    """

    Config = SAMMConfig
    needs_labels = True
    config: SAMMConfig

    def __init__(self, config: SAMMConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        self.sizes = 0, 0  # of the last step: unlabelled and labelled examples
        if config.discriminators == "two":  # both from the same weights
            self.discriminator_labelled = deepcopy(self.discriminator)
            added = list(self.discriminator_labelled.parameters())
            self.d_parameters += added
            self.d_adam.add_param_group({"params": added})

    def prepare(self, data: Data) -> None:
        """p(y) from the labelled subset."""
        if self.config.p_y == "labels" and data.y_labelled is not None:
            count = torch.bincount(data.y_labelled, minlength=self.config.components)
            self.prior.p_y.copy_(count / count.sum())

    def labelled(self, x: Tensor, y: Tensor, noise: Noise) -> Tuple3:
        """(x, y, ẑ) ~ q(x, y) q(z | x, y), Eq. 4, for classes y int64 [M]; in Eqs. 7 and 15 z is seen from x alone."""
        given = one_hot(y, self.config.components)[:, :, None, None]
        if self.config.factorisation == 6:
            return x, given, self.encoder_z(noise, "z", x=x, y=given)["z"]
        return x, given, self.encoder(noise, "z", x=x)["z"]

    def tuples(self, batch: Batch) -> tuple[Tuple3, Tuple3]:
        """Both games' tuples, the unlabelled first; batch normalisation sees the two batches of x one after the other."""
        assert batch.x_labelled is not None and batch.y_labelled is not None, "a step needs labelled examples"
        self.sizes = len(batch.x), len(batch.x_labelled)
        free = self.inferred(batch.x, batch.noise)
        given = self.labelled(batch.x_labelled, batch.y_labelled, batch.noise)
        x, y, z = (torch.cat(pair) for pair in zip(free, given, strict=True))
        return (x, y, z), self.synthesised(len(x), batch.noise)

    def logit(self, xyz: Sequence[Tensor], noise: Noise | None) -> Tensor:
        """The logit, [B], of tuples (x, y, z) of one side as `tuples` lays them, or of both sides, q first.

        With one discriminator for both games D compares the mean of their inference sides with the synthesis side, so that one
        may err where the other makes up for it. With two, each of Eqs. 13 and 14 has its own optimum.
        """
        if self.config.discriminators == "one":
            return super().logit(xyz, noise)
        sizes = [*self.sizes] * (len(xyz[0]) // sum(self.sizes))
        parts = [t.split(sizes) for t in xyz]  # by turns of each game, which each have one pass
        nets = (self.discriminator, self.discriminator_labelled)
        games = [judged(net, [torch.cat(p[game::2]) for p in parts], noise) for game, net in enumerate(nets)]
        by_game = [logit.split(sizes[game::2]) for game, logit in enumerate(games)]
        return torch.cat([part for pair in zip(*by_game, strict=True) for part in pair])
