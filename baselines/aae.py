"""AAE, the adversarial autoencoder, as a clustering method (Makhzani et al., 2016, section 6).

The encoder splits x into a category y and a style z; two discriminators push y towards Cat(1/K) and z towards N(0, I).

The authors published no code. The defaults are those of a reimplementation that never claimed the paper's error:
musyoku/adversarial-autoencoder, run/unsupervised/clustering, but for pixels in [0, 1] behind a sigmoid instead of
[-1, 1] behind tanh (weight 4 makes up for the scale), one logit instead of a softmax over two, gradients not clipped
(at a norm of 5 there). The paper's Appendix A.3 has others: `optimizer: sgd` and what a suite's row sets beside it, of which
rates, momenta and the drop are given here from memory.

Pitfalls: without batch normalisation in the encoder D_y wins, and hardly a cluster lives for the first epochs. Section 6 names
each cluster by its most confident validation example, so the whole error of a cluster hangs on one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.blocks import Drop
from baselines.codes import Game
from baselines.losses import descend, log_odds, set_rate
from models.latent import one_hot
from models.method import Batch, Method, Spec
from models.nets import mlp, normal_
from models.noise import Noise


@dataclass(frozen=True)
class AAEConfig:
    """Knobs of AAE; defaults are musyoku's unless said otherwise."""

    components: int = 30  # K; the paper has 16 and 30, Table 1 of AMM takes 30
    hidden: int = 1000  # width of the two hidden layers of every net
    z_dim: int = 10  # dimensions of the style z
    batchnorm: bool = False  # in the hidden layers of encoder and decoder
    encoder_batchnorm: bool = False  # in the encoder alone, there before softmax and z too (A.3)
    input_dropout: float = 0.0  # of the pixels that the encoder learns from; A.3: 0.2
    output: Literal["sigmoid", "linear"] = "sigmoid"  # linear for data outside [0, 1]
    reconstruction_weight: float = 4.0  # of the mean squared error; 4 is the change from [0, 1] to [-1, 1]
    noise: float = 0.3  # std of the Gaussian noise on the inputs of both discriminators
    optimizer: Literal["adam", "sgd"] = "adam"  # one of Adam's for each net, or one of SGD's for each phase (A.3)
    learning_rate: float = 1e-4  # sgd: of the reconstruction; A.3: 0.01
    beta1: float = 0.1
    beta2: float = 0.999
    momentum: float = 0.9  # sgd: of the reconstruction (A.3)
    game_learning_rate: float = 0.1  # sgd: of the discriminators, and of the encoder against them (A.3)
    game_momentum: float = 0.1  # sgd: of the same (A.3)
    drop_after: int = 27_500  # sgd: steps with these rates, a tenth of them since; 50 epochs of 55,000 images (A.3)
    init_std: float = 0.01  # weights ~ N(0, init_std²), biases 0


class AAE(Method):
    """Each step plays three phases: reconstruction, both discriminators, and the encoder against them."""

    Config = AAEConfig
    steps: Tensor

    def __init__(self, config: AAEConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        pixels, code = torch.Size(spec.shape).numel(), c.components + c.z_dim
        wide, self.drop = (c.hidden, c.hidden), Drop(c.input_dropout)
        self.encoder = mlp((pixels, *wide, code), batchnorm=c.batchnorm or c.encoder_batchnorm)  # logits of y, then z
        if c.encoder_batchnorm:
            self.encoder.append(nn.BatchNorm1d(code))
        self.decoder = mlp((code, *wide, pixels), batchnorm=c.batchnorm)
        self.d_y, self.d_z = mlp((c.components, *wide, 1)), mlp((c.z_dim, *wide, 1))
        normal_(self, noise, c.init_std)

        self.e_parameters = list(self.encoder.parameters())
        self.r_parameters = list(self.decoder.parameters())
        self.d_parameters = [*self.d_y.parameters(), *self.d_z.parameters()]
        if c.optimizer == "adam":
            betas = (c.beta1, c.beta2)
            self.e_adam = torch.optim.Adam(self.e_parameters, c.learning_rate, betas, fused=True)  # of two phases
            self.r_adam = torch.optim.Adam(self.r_parameters, c.learning_rate, betas, fused=True)
            self.d_adam = torch.optim.Adam(self.d_parameters, c.learning_rate, betas, fused=True)
        else:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=noise.device))
            both = self.e_parameters + self.r_parameters
            self.r_sgd = torch.optim.SGD(both, c.learning_rate, c.momentum, fused=True)
            self.e_sgd = torch.optim.SGD(self.e_parameters, c.game_learning_rate, c.game_momentum, fused=True)
            self.d_sgd = torch.optim.SGD(self.d_parameters, c.game_learning_rate, c.game_momentum, fused=True)

    def encode(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """y = softmax, [B, K], and z, [B, z_dim], of examples [B, C, H, W]; pixels are dropped if there is `noise`."""
        logits, z = self.encoder(self.drop(x.flatten(1), noise)).split([self.config.components, self.config.z_dim], 1)
        return F.softmax(logits, 1), z

    def decode(self, y: Tensor, z: Tensor) -> Tensor:
        """Examples [B, C, H, W] of y [B, K] and z [B, z_dim]."""
        x = self.decoder(torch.cat([y, z], 1)).view(-1, *self.spec.shape)
        return torch.sigmoid(x) if self.config.output == "sigmoid" else x

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players on examples [B, C, H, W], each phase against what the one before it left."""
        x, noise, n = batch.x, batch.noise, len(batch.x)
        reconstruct, judge, encode = self._optimizers()
        reconstruction = F.mse_loss(self.decode(*self.encode(x, noise)), x)
        loss = self.config.reconstruction_weight * reconstruction
        descend(loss, self.e_parameters + self.r_parameters, *reconstruct)

        y, z = self.encode(x, noise)
        prior_y = one_hot(noise.integers(self.config.components, n), self.config.components)
        prior_z = noise.normal(n, self.config.z_dim)
        games = [Game(self.d_y, prior_y, y), Game(self.d_z, prior_z, z)]
        l_y, l_z = (game.discriminator_loss(self.config.noise, noise) for game in games)
        descend(l_y + l_z, self.d_parameters, judge)

        e_y, e_z = (game.encoder_loss(self.config.noise, noise) for game in games)
        descend(e_y + e_z, self.e_parameters, encode)
        named = {"reconstruction": reconstruction, "d_y": l_y, "d_z": l_z, "e_y": e_y, "e_z": e_z}
        return {name: value.detach() for name, value in named.items()}

    def _optimizers(self) -> tuple[list[torch.optim.Optimizer], torch.optim.Optimizer, torch.optim.Optimizer]:
        """Those of reconstruction, discriminators and encoder, with the rates of this step."""
        c = self.config
        if c.optimizer == "adam":
            return [self.e_adam, self.r_adam], self.d_adam, self.e_adam
        part = torch.where(self.steps < c.drop_after, 1.0, 0.1)
        self.steps += 1
        set_rate(c.learning_rate * part, self.r_sgd)
        set_rate(c.game_learning_rate * part, self.d_sgd, self.e_sgd)
        return [self.r_sgd], self.d_sgd, self.e_sgd

    def predict(self, x: Tensor) -> Tensor:
        """The most probable category, int64 [B]."""
        return self.encode(x)[0].argmax(1)

    def log_odds(self, x: Tensor) -> Tensor:
        """Of q(y | x), [B, K]: the paper names a cluster by the example that maximises it."""
        return log_odds(self.encoder(x.flatten(1))[:, : self.config.components])

    def embed(self, x: Tensor) -> Tensor:
        """The style z, [B, z_dim]."""
        return self.encode(x)[1]

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Examples of the categories y, int64 [B], with styles from N(0, I)."""
        return self.decode(one_hot(y, self.config.components), noise.normal(len(y), self.config.z_dim))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoder's answer to y and z of x, shaped like x."""
        return self.decode(*self.encode(x))
