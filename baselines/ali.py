"""ALI, Adversarially Learned Inference (Dumoulin et al., 2016): AMM's nets without y, and k-means on the embedding.

The game is AMM's with pairs (x, z) and z ~ N(0, I), and like ALI's own it has no gradient penalty unless a suite asks for it:
what AMM scores above it, it owes to its mixture or to its penalty.

Departures from ALI's own code (IshmaelBelghazi/ALI): the layer tables are AMM's, so that the two can be compared; for
the same reason Adam's 2e-4 and N(0, 0.02²) kernels instead of 1e-4 and N(0, 0.01²), and an output bias that starts at 0
instead of the log-odds of the data. ALI published no clustering.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.adversarial import discriminator_loss, gradient_penalty, inference_loss, synthesis_loss
from models.kmeans import fit_centres, nearest
from models.layers import Net
from models.method import Batch, Data, Method, Spec
from models.noise import Noise
from models.tables import Table, WithoutY

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ALIConfig:
    """Knobs of ALI; a default that AMM has too is AMM's."""

    nets: Literal["mnist", "digits", "plane", "mnist14"] = "mnist"  # layer tables: models/<nets>.py without y
    components: int = 10  # clusters of k-means
    n_init: int = 10  # k-means++ starts
    penalty_weight: float = 0.0  # λ of Eq. 18 on (x, z); ALI has no penalty
    learning_rate: float = 2e-4  # AMM's; ALI's code has 1e-4
    beta1: float = 0.5  # ALI and AMM
    beta2: float = 0.999  # ALI prints 1e-3, which is this in the convention of its code
    momentum: float = 0.1  # of running statistics; PyTorch's default, ALI's code has 0.05
    init_std: float = 0.02  # AMM's; ALI's code has 0.01
    g_dropout: float = 1.0  # factor on the tables' probabilities in encoder and decoder; 0 leaves dropout out
    d_dropout: float = 1.0  # the same in D


class ALI(Method):
    """Encoder Gz(x) and decoder Gx(z) against D(x, z), all updated at once from one forward pass, as in ALI's code."""

    Config = ALIConfig
    centres: Tensor

    def __init__(self, config: ALIConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        nets = importlib.import_module(f"models.{c.nets}")

        def net(table: Table, dropout: float) -> Net:
            return Net(WithoutY(**vars(table)), c.components, noise, c.momentum, c.init_std, dropout=dropout)

        self.encoder = net(nets.ENCODER, c.g_dropout)  # Gz(x)
        self.decoder = net(nets.DECODER, c.g_dropout)  # Gx(z)
        self.discriminator = net(nets.DISCRIMINATOR, c.d_dropout)
        self.dimensions = self.decoder.sizes["z"][0]
        self.register_buffer("centres", torch.zeros(c.components, self.dimensions, device=noise.device))

        self.d_parameters = list(self.discriminator.parameters())
        self.g_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        betas = (c.beta1, c.beta2)
        self.d_adam = torch.optim.Adam(self.d_parameters, c.learning_rate, betas, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, c.learning_rate, betas, fused=True)

    def logit(self, x: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """D's logit [B] of pairs (x, z): large for the inference side."""
        return self.discriminator(noise, x=x, z=z)["p"].flatten()

    def penalty(self, q: Pair, p: Pair, noise: Noise) -> Tensor:
        """λ times Eq. 18 on pairs (x, z)."""
        if not self.config.penalty_weight:
            return q[0].new_zeros(())
        u = noise.uniform(len(q[0]))
        return self.config.penalty_weight * gradient_penalty(lambda x, z: self.logit(x, z, noise), q, p, u)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of D, encoder and decoder on M examples x, [M, C, H, W]."""
        x, noise = batch.x, batch.noise
        z = noise.normal(len(x), self.dimensions, 1, 1)
        q = x, self.encoder(noise, x=x)["z"]
        p = self.decoder(noise, z=z)["x"], z
        logit_q, logit_p = self.logit(torch.cat([q[0], p[0]]), torch.cat([q[1], p[1]]), noise).chunk(2)
        l_d, penalty = discriminator_loss(logit_q, logit_p), self.penalty(q, p, noise)
        l_q, l_p = inference_loss(logit_q), synthesis_loss(logit_p)
        self.d_adam.zero_grad()
        self.g_adam.zero_grad()
        (l_d + penalty).backward(inputs=self.d_parameters, retain_graph=True)
        (l_q + l_p).backward(inputs=self.g_parameters)
        self.d_adam.step()
        self.g_adam.step()
        named = {"d": l_d, "penalty": penalty, "q": l_q, "p": l_p, "logit_q": logit_q.mean(), "logit_p": logit_p.mean()}
        return {name: value.detach() for name, value in named.items()}

    def finish(self, data: Data) -> None:
        """k-means on the embeddings of all training examples."""
        features = torch.cat([self.embed(x) for x in data.batches()])
        centres = fit_centres(features, self.config.components, self.config.n_init, data.noise.seed())
        self.centres.copy_(centres)

    def predict(self, x: Tensor) -> Tensor:
        """The centre nearest to the embedding, int64 [B]."""
        return nearest(self.embed(x), self.centres)

    def embed(self, x: Tensor) -> Tensor:
        """μ_z(x), [B, d]."""
        return self.encoder(None, x=x)["zμ"].flatten(1)

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """As many images as y has entries, [B, C, H, W]; ALI has no y, so its values do not matter."""
        return self.decoder(None, z=noise.normal(len(y), self.dimensions))["x"]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Gx(μ_z(x)), shaped like x."""
        return self.decoder(None, z=self.embed(x))["x"]
