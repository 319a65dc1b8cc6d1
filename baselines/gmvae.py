"""GMVAE, the Gaussian-mixture variational autoencoder (Dilokthanakul et al., 2016, arXiv 1611.02648).

w ~ N(0, I) and z ~ Cat(1/K) choose a Gaussian N(μ_z(w), σ²_z(w)) of codes h, and h makes the image x (the paper's x and y).
q(h | x), q(w | x) are Gaussians, and p(z | h, w) ∝ N(h; μ_z(w), σ²_z(w)) / K is Bayes' rule. The bound, in section 3's terms:

    E_q(h) log p(x | h)                                         reconstruction
    - E_q(h)q(w) Σ_k p(z=k | h, w) KL(q(h | x) || p(h | w, k))  conditional prior, Eq. 5
    - KL(q(w | x) || N(0, I))                                   w-prior
    - E_q(h)q(w) KL(p(z | h, w) || Cat(1/K))                    z-prior, at least λ an example (free bits)

Without λ this is a lower bound of log p(x), if not the tightest of this q: Eq. 5's KL forgets the h that weighs it.
The equations, with sizes and optimiser of the authors' code (Nat-D/GMVAE, main.lua). That code applies λ to the batch's mean and,
where it is exceeded, gives p(z | h, w) the gradient of Eq. 5 with the other sign; its master branch learns q(z | x). Here weights
are normal with the variance of Torch's uniform ones, biases start at 0, scales from 1, the means of h and w answer.
Known pitfall: the z-prior makes components merge early, and they hardly ever part again, so results vary widely with the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.losses import descend, log_odds
from models.latent import component_log_density, exp_n
from models.method import Batch, Method, Spec
from models.nets import conv, fan_in_, linear, mlp, transposed
from models.noise import Noise


@dataclass(frozen=True)
class GMVAEConfig:
    """Knobs of GMVAE; defaults are those of Nat-D/GMVAE unless said otherwise."""

    components: int = 30  # K; Table 1 of AMM takes 30, the paper's first version has 10 and 16
    arch: Literal["mlp", "conv"] = "mlp"  # conv: images of 28x28 only, for MNIST
    hidden: int = 500  # width of the hidden layers of every net
    h_dim: int = 200  # dimensions of the code h, the paper's x
    w_dim: int = 150  # dimensions of w
    mc_samples: int = 1  # M draws of (h, w) an example and step; the paper has 1 and 10: 74 and 87 % right with K = 10
    free_bits: float = 0.5  # λ, in nats
    learning_rate: float = 1e-4  # of Adam, the rest of which is at Torch's defaults
    init_gain: float = 3**-0.5  # weights ~ N(0, init_gain² / fan in): the variance of Torch's U(±1 / sqrt(fan in))


def gaussian_kl(mean: Tensor, log_variance: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) || N(mean_p, e^log_variance_p)), diagonal: broadcast [..., d] to [...]."""
    ratio = ((mean - mean_p).square() + log_variance.exp()) * torch.exp(-log_variance_p)
    return 0.5 * (ratio + log_variance_p - log_variance - 1).sum(-1)


def log_posterior(h: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log p(z | h, w) by Bayes' rule, [B, K], from codes h [B, d] and the components at w, each [B, K, d]."""
    return F.log_softmax(component_log_density(h, mean, log_variance), 1)  # 1 / K cancels


def conditional_prior(log_p: Tensor, kl: Tensor) -> Tensor:
    """Eq. 5: the mean over the samples of Σ_k p_k KL_k, [B], from log p and KL [M, B, K]."""
    return (log_p.exp() * kl).sum(-1).mean(0)


def z_prior(log_p: Tensor, floor: float) -> Tensor:
    """max(λ, the mean over the samples of KL(p || Cat(1/K))), [B], from log p [M, B, K]; no gradient at the floor λ."""
    kl = (log_p.exp() * log_p).sum(-1).mean(0) + math.log(log_p.shape[-1])
    return torch.where(kl > floor, kl, floor)


class GMVAE(Method):
    """One net of q(h, w | x), one of p(x | h), one of the K components at w; a step descends the negative bound."""

    Config = GMVAEConfig

    def __init__(self, config: GMVAEConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        self.encoder, self.decoder = (_conv if c.arch == "conv" else _mlp)(c, spec.shape)
        self.prior = mlp((c.w_dim, c.hidden, 2 * c.components * c.h_dim), nn.Tanh)
        fan_in_(self, noise, c.init_gain)
        self.adam = torch.optim.Adam(self.parameters(), c.learning_rate, fused=True)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Mean and log-variance of h, each [B, h_dim], then of w, each [B, w_dim], of examples [B, C, H, W]."""
        h, w = self.config.h_dim, self.config.w_dim
        return self.encoder(x).float().split([h, h, w, w], 1)

    def mixture(self, w: Tensor) -> tuple[Tensor, ...]:
        """Means and log-variances of p(h | w, z), each [B, K, h_dim], of w [B, w_dim]."""
        return self.prior(w).float().view(len(w), 2, self.config.components, -1).unbind(1)

    def terms(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """What is taken from the bound, each [B], in nats, of examples [B, C, H, W]."""
        h_mean, h_log_variance, w_mean, w_log_variance = self.encode(x)
        m, n = self.config.mc_samples, len(x)
        h = (h_mean + exp_n(h_log_variance.expand(m, -1, -1), noise)).flatten(0, 1)  # [M B, h_dim]
        w = (w_mean + exp_n(w_log_variance.expand(m, -1, -1), noise)).flatten(0, 1)
        mixture = self.mixture(w)
        log_p = log_posterior(h, *mixture).view(m, n, -1)
        kl = gaussian_kl(h_mean[:, None], h_log_variance[:, None], *(t.unflatten(0, (m, n)) for t in mixture))
        logits, pixels = self.decoder(h).float().view(m, n, -1), x.flatten(1).expand(m, -1, -1)
        return {
            "reconstruction": F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(-1).mean(0),
            "conditional": conditional_prior(log_p, kl),
            "w": gaussian_kl(w_mean, w_log_variance, torch.zeros_like(w_mean), torch.zeros_like(w_mean)),
            "z": z_prior(log_p, self.config.free_bits),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on examples [B, C, H, W]; the losses are the terms' means over examples."""
        terms = self.terms(batch.x, batch.noise)
        descend(torch.stack(list(terms.values())).sum(0).mean(), None, self.adam)
        return {name: value.detach().mean() for name, value in terms.items()}

    def predict(self, x: Tensor) -> Tensor:
        """The most probable category, int64 [B]."""
        return self.log_odds(x).argmax(1)

    def log_odds(self, x: Tensor) -> Tensor:
        """Of p(z | h, w) at the means of h and w, [B, K]: the paper names a cluster by the example that maximises it."""
        h, _, w, _ = self.encode(x)
        return log_odds(log_posterior(h, *self.mixture(w)))


def _mlp(c: GMVAEConfig, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of models/FullyConnected.lua."""
    pixels, wide = torch.Size(shape).numel(), (c.hidden, c.hidden)
    encoder = mlp((pixels, *wide, 2 * (c.h_dim + c.w_dim)), batchnorm=True, bias=False)
    return nn.Sequential(nn.Flatten(), encoder), mlp((c.h_dim, *wide, pixels))


def _conv(c: GMVAEConfig, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of models/ConvAE.lua, mirror images by way of 28, 23, 18, 9 and 1 pixels a side."""
    if shape[1:] != (28, 28):
        raise ValueError(f"arch: conv is for images of 28x28, not {shape[1]}x{shape[2]}; take arch: mlp")
    kernels = (6, 1, 0), (6, 1, 0), (4, 2, 1), (9, 1, 0)  # width, stride, padding
    pairs = list(zip(pairwise((shape[0], 16, 32, 64, c.hidden)), kernels, strict=True))
    down = _normed(*(conv(a, b, *kernel, bias=False) for (a, b), kernel in pairs))
    up = (transposed(b, a, *kernel, bias=False) for (a, b), kernel in reversed(pairs[1:]))
    encoder = nn.Sequential(*down, nn.Flatten(), linear(c.hidden, 2 * (c.h_dim + c.w_dim)))
    decoder = nn.Unflatten(1, (c.h_dim, 1, 1)), *_normed(transposed(c.h_dim, c.hidden, 1, bias=False), *up)
    return encoder, nn.Sequential(*decoder, transposed(16, shape[0], *kernels[0]))


def _normed(*layers: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """Batch normalisation and ReLU after each layer."""
    return [part for layer in layers for part in (layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())]
