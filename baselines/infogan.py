"""InfoGAN as a clustering method (Chen et al., 2016): the generator's category is what Q must read from its images.

min_{G,Q} max_D V(D, G) - λ L_I(G, Q), Eq. 6, where L_I = E log Q(c | G(z, c)) + H(c), Eq. 5, bounds I(c; G(z, c)) from below;
the code is a category y and continuous c. Q shares all but its last layers, the trunk, with D; its likeliest y is the cluster.

Follows openai/InfoGAN: L_I is in both losses, so that one optimiser moves D, Q and the trunk, another G, each with codes
drawn afresh; D and Q normalise real and generated images as two batches. Departures: no biases before batch normalisation,
which removes them; its scales start at 1, not N(1, 0.02²); logits for log(ρ + 1e-8); H(c) is that of the uniform density.
That code never evaluates Q on data. Here the running statistics of trunk and Q are those of real images alone: the real
batch updates them (momentum 0.1) and goes through Q for that only; generated batches never do.
The pitfall: nothing ties a category to a class. Categories mix 4 with 9, or split a digit by its style, and differ from
seed to seed; the authors show codes picked from several runs (openai/InfoGAN, issue 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from baselines.losses import descend
from models.adversarial import discriminator_loss, synthesis_loss
from models.latent import one_hot
from models.method import Batch, Method, Spec
from models.nets import conv, linear, normal_, running_statistics_kept, transposed
from models.noise import Noise


@dataclass(frozen=True)
class InfoGANConfig:
    """Knobs of InfoGAN; defaults are those of openai/InfoGAN on MNIST (launchers/run_mnist_exp.py)."""

    components: int = 10  # K, categories of y
    codes: int = 2  # dimensions of c, uniform in [-1, 1]; Q is normal with variance 1
    noise_dim: int = 62  # dimensions of z, uniform in [-1, 1], which Q does not read
    arch: Literal["conv", "mlp"] = "conv"  # conv takes sides divisible by 4; mlp is ours, for all others
    channels: int = 64  # conv: of the 14x14 maps; those of 7x7 have twice as many
    hidden: int = 1024  # width of the fully connected layers of G and of the trunk
    q_hidden: int = 128  # width of Q's own layer
    slope: float = 0.01  # of the leaky ReLU of D and Q
    mi_weight: float = 1.0  # λ, the same for y and c
    g_learning_rate: float = 1e-3
    d_learning_rate: float = 2e-4  # of D, Q and the trunk
    beta1: float = 0.5
    beta2: float = 0.999
    init_std: float = 0.02  # weights ~ N(0, init_std²), those of D's convolutions cut at 2 std; biases 0


class InfoGAN(Method):
    """Each step plays two phases: D with Q and the trunk, then G against what they have become."""

    Config = InfoGANConfig

    def __init__(self, config: InfoGANConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        self.generator, self.trunk = _nets(c, spec)
        q = _dense(c.hidden, c.q_hidden, nn.LeakyReLU(c.slope))
        self.q_head = nn.Sequential(*q, linear(c.q_hidden, c.components + c.codes))  # logits of y, means of c
        self.d_head = linear(c.hidden, 1)  # logit that an image is real
        _start(self, noise, c.init_std)
        self.g_parameters = list(self.generator.parameters())
        self.d_parameters = [p for net in (self.trunk, self.d_head, self.q_head) for p in net.parameters()]
        self.g_adam = torch.optim.Adam(self.g_parameters, c.g_learning_rate, (c.beta1, c.beta2), fused=True)
        self.d_adam = torch.optim.Adam(self.d_parameters, c.d_learning_rate, (c.beta1, c.beta2), fused=True)

    def generate(self, y: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] of categories y, int64 [B], and the continuous codes [B, codes] drawn for them."""
        drawn = 2 * noise.uniform(len(y), self.config.codes + self.config.noise_dim) - 1
        code = torch.cat([one_hot(y, self.config.components), drawn], 1)
        return torch.sigmoid(self.generator(code)), drawn[:, : self.config.codes]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players on real images [B, C, H, W]."""
        real = self.trunk(batch.x)
        self.q_head(real)  # for its running statistics alone: no loss reads Q on real images
        fake, mi_y, mi_c = self._play(batch)
        d = discriminator_loss(self.d_head(real).flatten().float(), fake)
        descend(d - self.config.mi_weight * (mi_y + mi_c), self.d_parameters, self.d_adam)

        fake, mi_y, mi_c = self._play(batch)
        g = synthesis_loss(fake)
        descend(g - self.config.mi_weight * (mi_y + mi_c), self.g_parameters, self.g_adam)
        return {name: value.detach() for name, value in {"d": d, "g": g, "mi_y": mi_y, "mi_c": mi_c}.items()}

    def _play(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """D's logits [B] of new generated images, and L_I of their y and c."""
        y = batch.noise.integers(self.config.components, len(batch.x))
        x, c = self.generate(y, batch.noise)
        with running_statistics_kept(self):
            features = self.trunk(x)
            logits, mean = self.q_head(features).split([self.config.components, self.config.codes], 1)
        return self.d_head(features).flatten().float(), category_bound(logits, y), code_bound(mean, c)

    def predict(self, x: Tensor) -> Tensor:
        """Q's most probable category, int64 [B]."""
        return self.q_head(self.trunk(x))[:, : self.config.components].argmax(1)

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Images of the categories y, int64 [B]."""
        return self.generate(y, noise)[0]


def category_bound(logits: Tensor, y: Tensor) -> Tensor:
    """Eq. 5 of a uniform category: E log Q(y | x) + log K, from Q's logits [B, K] and y, int64 [B]; at most log K."""
    return math.log(logits.shape[1]) - nn.functional.cross_entropy(logits.float(), y)


def code_bound(mean: Tensor, c: Tensor) -> Tensor:
    """Eq. 5 of c uniform in [-1, 1], [B, codes]: E log N(c; mean, 1) + log 2, summed; at most -0.23 a code."""
    return (-0.5 * (c - mean.float()).square() + math.log(2 / math.sqrt(2 * math.pi))).sum(1).mean()


def _dense(inputs: int, outputs: int, activation: nn.Module) -> list[nn.Module]:
    return [nn.Flatten(), linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), activation]


def _nets(c: InfoGANConfig, spec: Spec) -> tuple[nn.Sequential, nn.Sequential]:
    """Generator and trunk. Padding 1 is TensorFlow's SAME for width 4, stride 2 and an even side."""
    (colours, height, width), thin, wide, leaky = spec.shape, c.channels, 2 * c.channels, nn.LeakyReLU(c.slope)
    if c.arch == "mlp":
        inner, pixels = c.hidden, math.prod(spec.shape)
        up, down = [linear(inner, pixels), nn.Unflatten(1, spec.shape)], [nn.Flatten(), linear(pixels, c.hidden), leaky]
    elif height % 4 or width % 4:
        raise ValueError(f"arch: conv takes sides divisible by 4, not {spec.shape}; arch: mlp takes any")
    else:
        inner, maps = wide * (height // 4) * (width // 4), nn.Unflatten(1, (wide, height // 4, width // 4))
        up = [maps, transposed(wide, thin, 4, 2, 1, bias=False), nn.BatchNorm2d(thin), nn.ReLU()]
        up += [transposed(thin, colours, 4, 2, 1)]
        down = [conv(colours, thin, 4, 2, 1), leaky, conv(thin, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), leaky]
    read = _dense(c.components + c.codes + c.noise_dim, c.hidden, nn.ReLU()) + _dense(c.hidden, inner, nn.ReLU())
    return nn.Sequential(*read, *up), nn.Sequential(*down, *_dense(inner, c.hidden, leaky))


def _start(method: nn.Module, noise: Noise, std: float) -> None:
    """Initial weights: normal, in D's convolutions cut at 2 std, as in openai/InfoGAN."""
    low = 0.5 * math.erfc(math.sqrt(2))  # P(N(0, 1) < -2)
    for layer in normal_(method, noise, std).modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = std * torch.special.ndtri(low + (1 - 2 * low) * noise.uniform(*layer.weight.shape))
