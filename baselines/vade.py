"""VaDE, variational deep embedding (Jiang et al., IJCAI 2017, arXiv 1611.05148).

c ~ Cat(π) chooses a Gaussian N(μ_c, σ²_c) of codes z, and z makes the image x. q(z | x) = N(μ, σ²) is a net, and q(c | x) = γ_c
is Bayes' rule p(c | z) at the one z drawn, Eq. 16. A step descends the negative of Eq. 12, a bound whatever γ is:
    -E log p(x | z) + Σ_c γ_c KL(q(z | x) || p(z | c)) + KL(γ || π)
Nets, loss and optimiser follow the authors' code (slim1017/VaDE). It starts from the weights of an autoencoder whose making is
not published, so `prepare` pretrains one, with loss, epochs and rate of GuHongyang/VaDE-pytorch, and fits a mixture to its codes.
Departures: Eq. 16 as printed, where that code has π_c to the power of z's dimensions and adds 1e-10, beside which densities in
ten dimensions may vanish; π by logits and σ²_c by its logarithm, where they move the values; He et al.'s normal weights, not
Glorot's uniform ones, so that codes start smaller; Adam's ε added after its bias correction; answers at z = μ, where its
training script draws z; training examples alone, where they learn from the test set too.
Known pitfalls: without pretraining all examples fall into one cluster (slim1017/VaDE, issues 2 and 8), and all rests on the
pretraining: the paper reports its best run, others with their own get 70-80 % right on MNIST. σ² can overflow, so it is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.losses import decayed, descend, set_rate
from baselines.pretraining import fit_autoencoder, fit_mixture
from models.latent import component_log_density, exp_n
from models.method import Batch, Data, Method, Spec
from models.nets import fan_in_, mlp
from models.noise import Noise


@dataclass(frozen=True)
class VaDEConfig:
    """Knobs of VaDE; defaults are those of slim1017/VaDE on MNIST unless said otherwise."""

    components: int = 10  # K
    hidden: int = 500  # width of the two hidden layers next to the image
    last: int = 2000  # width of the hidden layer next to the code
    z_dim: int = 10  # dimensions of z
    pretraining_epochs: int = 50  # GuHongyang/VaDE-pytorch
    pretraining_batch: int = 256  # ClustPy
    pretraining_learning_rate: float = 1e-3  # GuHongyang/VaDE-pytorch
    n_init: int = 1  # starts of the Gaussian mixture, of which the likeliest is kept
    variance_floor: float = 1e-3  # added to the variances of the Gaussian mixture; scikit-learn's bound in their day
    log_variance_limit: float = 10.0  # ours: |log σ²| of q(z | x) stays below
    learning_rate: float = 2e-3
    decay: float = 0.9  # of the learning rate, every `decay_epochs`
    decay_epochs: int = 10
    least_learning_rate: float = 2e-4
    epsilon: float = 1e-4  # of Adam, whose other knobs are the usual ones
    init_gain: float = 2**0.5  # weights ~ N(0, init_gain² / fan in)


def code_term(gamma: Tensor, mean: Tensor, log_variance: Tensor, mean_c: Tensor, log_variance_c: Tensor) -> Tensor:
    """Σ_c γ_c KL(N(μ, σ²) || N(μ_c, σ²_c)), [B], of Eq. 12: γ [B, K], q(z | x) [B, d] and the components [K, d]."""
    squares = (mean[:, None] - mean_c).square() + log_variance.exp()[:, None]
    cross = (log_variance_c + squares * torch.exp(-log_variance_c)).sum(-1)
    return 0.5 * ((gamma * cross).sum(1) - (1 + log_variance).sum(1))


def category_term(log_g: Tensor, log_pi: Tensor) -> Tensor:
    """KL(γ || π), [B], of Eq. 12, from log γ [B, K] and log π [K]."""
    return (log_g.exp() * (log_g - log_pi)).sum(1)


class VaDE(Method):
    """An autoencoder and a Gaussian mixture of its codes, moved together by one optimiser after both have been fitted."""

    Config = VaDEConfig
    step: Tensor
    examples: Tensor

    def __init__(self, config: VaDEConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c, pixels = config, torch.Size(spec.shape).numel()
        self.encoder = mlp((pixels, c.hidden, c.hidden, c.last, 2 * c.z_dim))  # heads: mean of z, then log-variance
        self.decoder = mlp((c.z_dim, c.last, c.hidden, c.hidden, pixels))
        fan_in_(self, noise, c.init_gain)
        zeros = torch.zeros(c.components, c.z_dim, device=noise.device)
        self.mean, self.log_variance = nn.Parameter(zeros), nn.Parameter(zeros.clone())  # of the components
        self.logits = nn.Parameter(zeros[:, 0].clone())  # of π
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("examples", torch.ones((), dtype=torch.int64))  # in an epoch
        self.adam = torch.optim.Adam(self.parameters(), c.learning_rate, eps=c.epsilon, fused=True)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each [B, z_dim], of examples [B, C, H, W]."""
        mean, raw = self.encoder(x.flatten(1)).float().chunk(2, 1)
        limit = self.config.log_variance_limit
        return mean, limit * torch.tanh(raw / limit)  # smooth, so that no gradient is cut off

    def log_gamma(self, z: Tensor) -> Tensor:
        """Eq. 16: log p(c | z), [B, K], of codes [B, z_dim]."""
        return F.log_softmax(component_log_density(z, self.mean, self.log_variance) + F.log_softmax(self.logits, 0), 1)

    def prepare(self, data: Data) -> None:
        """Pretrains encoder and decoder, then starts the components where a Gaussian mixture of the codes has its own."""
        self.examples.fill_(len(data))
        c, nets = self.config, [*self.encoder.parameters(), *self.decoder.parameters()]
        how = c.pretraining_epochs, c.pretraining_batch, c.pretraining_learning_rate
        fit_autoencoder(self.reconstruct, nets, data, *how)
        with torch.no_grad():
            codes = torch.cat([self.embed(x) for x in data.batches()])
            mean, variance = fit_mixture(codes, c.components, c.variance_floor, c.n_init, data.noise.seed())
            self.mean.copy_(mean)
            self.log_variance.copy_(variance.log())

    def terms(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """The three terms of the negative bound, each [B] in nats, of examples [B, C, H, W]."""
        mean, log_variance = self.encode(x)
        z = mean + exp_n(log_variance, noise)
        log_g = self.log_gamma(z)
        pixels = F.binary_cross_entropy_with_logits(self.decoder(z).float(), x.flatten(1), reduction="none")
        return {
            "reconstruction": pixels.sum(1),
            "code": code_term(log_g.exp(), mean, log_variance, self.mean, self.log_variance),
            "category": category_term(log_g, F.log_softmax(self.logits, 0)),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on examples [B, C, H, W]; the losses are means over examples, in nats."""
        c = self.config
        epoch = self.step // (self.examples // len(batch.x)).clamp(min=1)  # the incomplete last batch is left out
        rate = decayed(c.learning_rate, c.decay, c.decay_epochs, epoch)  # a tensor, from the checkpointed step alone
        set_rate(rate.clamp(min=c.least_learning_rate), self.adam)
        terms = self.terms(batch.x, batch.noise)
        descend(torch.stack(list(terms.values())).sum(0).mean(), None, self.adam)
        self.step += 1
        return {name: value.detach().mean() for name, value in terms.items()}

    def predict(self, x: Tensor) -> Tensor:
        """argmax_c γ_c at z = μ, int64 [B]."""
        return self.log_gamma(self.embed(x)).argmax(1)

    def embed(self, x: Tensor) -> Tensor:
        """The mean of z, [B, z_dim]."""
        return self.encode(x)[0]

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Pixel probabilities [B, C, H, W] of the clusters y, int64 [B], with z drawn."""
        return self._image(self.mean[y] + exp_n(self.log_variance[y], noise))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixel probabilities at the mean of z, shaped like x."""
        return self._image(self.embed(x))

    def _image(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(z).float()).view(-1, *self.spec.shape)
