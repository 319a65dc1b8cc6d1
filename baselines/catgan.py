"""CatGAN, categorical generative adversarial networks, as a clustering method (Springenberg, 2015).

D is a K-way classifier, to be certain of every example, to use all categories alike, and to be at a loss before generated
images; G is to make D certain of its images, of each category equally often. Eq. 7:
max_D H_X[p(y)] - E_x H[p(y | x)] + E_z H[p(y | G(z))], min_G E_z H[p(y | G(z))] - H_G[p(y)], with conditional entropies
(Eqs. 4 and 5) and that of a batch's mean (Eq. 6). A cluster is a category.

The authors published no code. Nets and settings follow smayru/catgan (K = 10 there), but its loss of G has + H_G, which
rewards images of one category alone: a slip of the sign; here it is Eq. 7's. Further departures from that code: G plays
against what D has just become (there one pass serves both), on the same images; the running statistics are those of real
images alone, under D's noise, which its answers are without (both normalise generated ones as a batch apart); no biases before
batch normalisation, which removes them; slope 0.1 in G's last hidden layer too (0.2 there); batch normalisation's ε is 1e-5
(2e-5 there). `arch: conv` is a simpler form of guyueshui/InfoCatGAN's nets, which no suite plays yet.

The known pitfall: nothing ties a category to a class. With K = 10 some digits share a category and others fill two, hence
the paper's K = 20. Batches must be large against K, and D needs its noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.blocks import Mean
from baselines.losses import conditional_entropy, descend
from models.method import Batch, Method, Spec
from models.nets import conv, fan_in_, linear, mlp, running_statistics_kept
from models.noise import Noise


@dataclass(frozen=True)
class CatGANConfig:
    """Knobs of CatGAN; defaults are those of smayru/catgan unless said otherwise."""

    components: int = 20  # K, the paper's and Table 1's
    arch: Literal["mlp", "conv"] = "mlp"  # conv, after guyueshui/InfoCatGAN, needs sides divisible by 4, of at least 8
    hidden: int = 1000  # mlp: widest layer; D has hidden, 1/2, and three of 1/4 of it, G 1/2, 1/2 and hidden
    channels: int = 32  # conv: of D's first layer; its others have 2, 2 and 4 times as many, G's 3, 2 and 2 times
    z_dim: int = 128  # dimensions of z, uniform in [0, 1)
    noise: float = 0.3  # std of the Gaussian noise on D's input and on its hidden layers before batch normalisation
    slope: float = 0.1  # of the leaky ReLU
    d_learning_rate: float = 2e-4
    g_learning_rate: float = 2e-4  # guyueshui/InfoCatGAN has twice that, see the suite
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 1e-5  # added to the gradients of both players


class CatGAN(Method):
    """Each step plays two phases: D, then G against what it has become."""

    Config = CatGANConfig

    def __init__(self, config: CatGANConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        if c.arch == "conv" and (min(spec.shape[1:]) < 8 or spec.shape[1] % 4 or spec.shape[2] % 4):
            raise ValueError(
                f"CatGAN's arch: conv needs sides divisible by 4, at least 8; {spec.data} has {spec.shape}"
            )
        self.discriminator, self.generator = (_conv_nets if c.arch == "conv" else _mlp_nets)(c, spec)
        fan_in_(self, noise)  # N(0, 1 / fan in), the default of Chainer

        self.d_parameters = list(self.discriminator.parameters())
        self.g_parameters = list(self.generator.parameters())
        betas, decay = (c.beta1, c.beta2), c.weight_decay
        self.d_adam = torch.optim.Adam(self.d_parameters, c.d_learning_rate, betas, weight_decay=decay, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, c.g_learning_rate, betas, weight_decay=decay, fused=True)

    def judge(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """D's logits [B, K] of images [B, C, H, W]."""
        h = self._blur(x, noise)
        for layer in self.discriminator:
            h = layer(self._blur(h, noise) if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) else h)
        return h

    def _blur(self, h: Tensor, noise: Noise | None) -> Tensor:
        return h if noise is None else h + self.config.noise * noise.normal(*h.shape)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of both players on examples [B, C, H, W] and as many generated images."""
        noise = batch.noise
        x = self.generator(noise.uniform(len(batch.x), self.config.z_dim))
        real = self.judge(batch.x, noise)
        with running_statistics_kept(self.discriminator):
            generated = self.judge(x.detach(), noise)
        d = discriminator_loss(real, generated)
        descend(d, self.d_parameters, self.d_adam)

        with running_statistics_kept(self.discriminator):
            g = generator_loss(self.judge(x, noise))
        descend(g, self.g_parameters, self.g_adam)
        terms = {"marginal": marginal_entropy(real), "real": conditional_entropy(real), "d": d, "g": g}
        return {name: value.detach() for name, value in terms.items()}

    def predict(self, x: Tensor) -> Tensor:
        """D's most probable category, without noise, int64 [B]."""
        return self.judge(x).argmax(1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Eq. 6: H of the batch's mean of p(y | x), in nats, from logits [B, K]; never below the conditional entropy."""
    log_p = torch.logsumexp(F.log_softmax(logits.float(), 1), 0) - math.log(len(logits))
    return -(log_p.exp() * log_p).sum()


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Eq. 7, upper line, negated, from D's logits [B, K] of examples and of generated images."""
    return conditional_entropy(real) - marginal_entropy(real) - conditional_entropy(generated)


def generator_loss(generated: Tensor) -> Tensor:
    """Eq. 7, lower line, from D's logits [B, K] of generated images."""
    return conditional_entropy(generated) - marginal_entropy(generated)


def _mlp_nets(c: CatGANConfig, spec: Spec) -> tuple[nn.Sequential, nn.Sequential]:
    pixels, h, leaky = math.prod(spec.shape), c.hidden, lambda: nn.LeakyReLU(c.slope)
    down = mlp((pixels, h, h // 2, h // 4, h // 4, h // 4, c.components), leaky, batchnorm=True, bias=False)
    up = mlp((c.z_dim, h // 2, h // 2, h, pixels), leaky, batchnorm=True, bias=False)
    return nn.Sequential(nn.Flatten(), *down), nn.Sequential(*up, nn.Sigmoid(), nn.Unflatten(1, spec.shape))


def _conv_nets(c: CatGANConfig, spec: Spec) -> tuple[nn.Sequential, nn.Sequential]:
    """Padded to keep the size; batch normalisation stands where the MLP has it, in G too."""
    n, (colours, height, width), leaky = c.channels, spec.shape, nn.LeakyReLU(c.slope)
    maps = (3 * n, height // 4, width // 4)

    def block(inputs: int, outputs: int, size: int) -> list[nn.Module]:
        return [conv(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), leaky]

    down = [*block(colours, n, 5), nn.MaxPool2d(3, 2), *block(n, 2 * n, 3), *block(2 * n, 2 * n, 3), nn.MaxPool2d(3, 2)]
    down += [*block(2 * n, 4 * n, 3), conv(4 * n, c.components, 1), Mean()]
    up = [linear(c.z_dim, math.prod(maps), bias=False), nn.BatchNorm1d(math.prod(maps)), leaky, nn.Unflatten(1, maps)]
    up += [nn.Upsample(scale_factor=2), *block(3 * n, 2 * n, 5), nn.Upsample(scale_factor=2), *block(2 * n, 2 * n, 5)]
    return nn.Sequential(*down), nn.Sequential(*up, conv(2 * n, colours, 5, padding=2), nn.Sigmoid())
