"""Semi-supervised AAE, the adversarial autoencoder with labels (Makhzani et al., 2016, section 5), on AMM's nets.

The encoder splits x into a category y and a style z, from which the decoder rebuilds x. One step plays, on examples x and
labelled ones (x', y'):

    reconstruction   E ‖x - dec(y(x), z(x))‖² + E ‖x' - dec(y', z(x'))‖², means over pixels
    D_y              -E log D_y(c) - E log(1 - D_y(y(x))), c one-hot from Cat(1/K)
    D_z              -E log D_z(n) - E log(1 - D_z(z(x))), n from N(0, I)
    encoder          -E log D_y(y(x)) - E log D_z(z(x))
    labels           -E log y(x')[y']

each against what the one before it left. A class is the largest entry of y(x).

A reimplementation: the authors published no code, and nets and settings here are not those of their SVHN experiment (their
appendix), so its published error is not what this row can show. Order and settings follow musyoku/adversarial-autoencoder,
run/semi-supervised/classification (MNIST). Departures from it: the nets are AMM's tables of this data set; pixels in [0, 1]
behind a sigmoid instead of [-1, 1] behind tanh (weight 4 makes up for the scale); one logit instead of a softmax over two;
gradients are not clipped; AMM's nets have batch normalisation, there is none there, and half of what the running statistics
hold comes from the last pass of a step, that on labelled examples.

Pitfalls: one-hot draws and softmax outputs differ so visibly that D_y wins early; noise on the inputs of both discriminators
hides it. Cat(1/K) is not how often the digits of SVHN occur. Cross-entropy wants logits: fducau's code gives it a softmax's.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.codes import Game
from baselines.losses import descend, error_rate
from models.latent import one_hot
from models.layers import Net
from models.method import Batch, Method, Spec
from models.nets import mlp, normal_
from models.noise import Noise


@dataclass(frozen=True)
class AAESemiConfig:
    """Knobs of the semi-supervised AAE; defaults are musyoku's on MNIST (run/semi-supervised/classification)."""

    nets: Literal["mnist", "svhn", "digits", "plane"] = "svhn"  # ENCODER and DECODER of models/<nets>.py: ours
    components: int = 10  # classes, K
    hidden: int = 1000  # width of the two hidden layers of both discriminators
    reconstruction_weight: float = 4.0  # of the squared error; 4 is the change from [0, 1] to [-1, 1]
    noise: float = 0.3  # std of the Gaussian noise on the inputs of both discriminators
    learning_rate: float = 1e-4
    beta1: float = 0.1
    beta2: float = 0.999  # Kingma & Ba
    momentum: float = 0.1  # of running statistics; PyTorch's default
    init_std: float = 0.02  # of encoder and decoder: AMM's (section 4 of its paper), as the nets are
    d_init_std: float = 0.01  # of both discriminators


class AAESemi(Method):
    """Each step plays four phases: reconstruction, both discriminators, the encoder against them, labels."""

    Config = AAESemiConfig
    needs_labels = True

    def __init__(self, config: AAESemiConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c, nets = config, importlib.import_module(f"models.{config.nets}")
        self.encoder = Net(nets.ENCODER, c.components, noise, c.momentum, c.init_std)
        self.decoder = Net(nets.DECODER, c.components, noise, c.momentum, c.init_std)
        self.z_dim = self.decoder.sizes["z"][0]
        self.d_y = normal_(mlp((c.components, c.hidden, c.hidden, 1)), noise, c.d_init_std)
        self.d_z = normal_(mlp((self.z_dim, c.hidden, c.hidden, 1)), noise, c.d_init_std)

        # rows of log-variances are never computed: nothing here is drawn
        self.e_parameters = [p for name, p in self.encoder.named_parameters() if "σ" not in name]
        self.r_parameters = list(self.decoder.parameters())
        self.d_parameters = [*self.d_y.parameters(), *self.d_z.parameters()]
        for name, p in self.encoder.named_parameters():
            p.requires_grad_("σ" not in name)
        betas = (c.beta1, c.beta2)
        self.e_adam = torch.optim.Adam(self.e_parameters, c.learning_rate, betas, fused=True)  # of three phases
        self.r_adam = torch.optim.Adam(self.r_parameters, c.learning_rate, betas, fused=True)
        self.d_adam = torch.optim.Adam(self.d_parameters, c.learning_rate, betas, fused=True)

    def encode(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Logits of y, [B, K], and z, [B, z_dim], of examples [B, C, H, W]; dropout draws from `noise`."""
        rows = self.encoder(noise, "yμ", "zμ", x=x)
        return rows["yμ"].flatten(1).float(), rows["zμ"].flatten(1).float()

    def decode(self, y: Tensor, z: Tensor, noise: Noise | None) -> Tensor:
        """Examples [B, C, H, W] of y [B, K] and z [B, z_dim]."""
        return self.decoder(noise, "x", y=y, z=z)["x"].float()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players on examples [M, C, H, W] and labelled ones of classes int64 [L]."""
        c, x, given, y_true, noise = self.config, batch.x, batch.x_labelled, batch.y_labelled, batch.noise
        assert given is not None and y_true is not None, "a step needs labelled examples"
        everything = torch.cat([x, given])
        logits, z = self.encode(everything, noise)
        y = torch.cat([F.softmax(logits[: len(x)], 1), one_hot(y_true, c.components)])
        squared = (self.decode(y, z, noise) - everything).square().flatten(1).mean(1)
        reconstruction, rebuilt = squared[: len(x)].mean(), squared[len(x) :].mean()
        loss = c.reconstruction_weight * (reconstruction + rebuilt)
        descend(loss, self.e_parameters + self.r_parameters, self.e_adam, self.r_adam)

        logits, z = self.encode(x, noise)
        y, n = F.softmax(logits, 1), len(x)
        prior_y, prior_z = one_hot(noise.integers(c.components, n), c.components), noise.normal(n, self.z_dim)
        games = [Game(self.d_y, prior_y, y), Game(self.d_z, prior_z, z)]
        l_y, l_z = (game.discriminator_loss(c.noise, noise) for game in games)
        descend(l_y + l_z, self.d_parameters, self.d_adam)

        e_y, e_z = (game.encoder_loss(c.noise, noise) for game in games)
        descend(e_y + e_z, self.e_parameters, self.e_adam)

        logits, _ = self.encode(given, noise)
        supervised = F.cross_entropy(logits, y_true)
        descend(supervised, self.e_parameters, self.e_adam)
        told = {"reconstruction": reconstruction, "rebuilt": rebuilt, "d_y": l_y, "d_z": l_z, "e_y": e_y, "e_z": e_z}
        told |= {"supervised": supervised, "train_error": error_rate(logits, y_true)}
        return {name: value.detach() for name, value in told.items()}

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class, int64 [B]."""
        return self.encode(x, None)[0].argmax(1)

    def embed(self, x: Tensor) -> Tensor:
        """The style z, [B, z_dim]."""
        return self.encode(x, None)[1]

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Examples of the classes y, int64 [B], with styles from N(0, I)."""
        return self.decode(one_hot(y, self.config.components), noise.normal(len(y), self.z_dim), None)
