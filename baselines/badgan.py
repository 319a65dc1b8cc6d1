"""Bad GAN (Dai et al., 2017), the semi-supervised classifier of Table 2: feature matching, pull-away term, entropy.

A generator that matched the data would not help D; one whose images fill the gaps between the classes makes D lay its
boundaries there (section 3). D has K logits; that of class K + 1, "generated", is 0, so that log Z, their log-sum-exp, is the
logit that x is real.
D: -E log p(y | x, y <= K) over labelled examples - E log σ(log Z(x)) / 2 - E log σ(-log Z(G(z))) / 2 + 0.1 E H[p(y | x)];
G: |E f(x) - E f(G(z))|, mean over the features f that D's last layer reads, + 0.8 PT, where PT, the mean squared cosine of the
features of two generated images, stands for -H[p(G(z))] (section 5.1). The low-density term is for MNIST alone.
D moves, then G against what it has become, on z drawn afresh.

Follows kimiyoung/ssl_bad_gan, svhn_trainer.py, config.py and model.py: weights, nets, initialisation by data, Adam, schedule.
Departures: the rate falls with every step, there once an epoch; all weights start from N(0, 0.05²), there those of
weight-normalised layers alone and PyTorch's default in G's others; G's batch normalisation starts from scales of 1, those of
PyTorch then from U(0, 1); labels and unlabelled examples are the suite's, there 100 labels of each class and all 73,257
images.

Pitfalls: that code never stops and prints the lowest test error so far, so the published 4.25 ± 0.03 may be picked on the
test set; nothing says how many seeds. Here the last step counts. The entropy term makes D sure of its mistakes too, hence its
small weight. Features that are all 0 have no direction: their cosine is 0 here, nan there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.feature_matching import annealing, discriminator_losses, feature_matching, fit_players_, players
from baselines.losses import conditional_entropy, descend, set_rate
from baselines.nets import Style
from models.method import Batch, Data, Method, Spec
from models.nets import normal_
from models.noise import Noise


@dataclass(frozen=True)
class BadGANConfig:
    """Knobs of Bad GAN; defaults are those of kimiyoung/ssl_bad_gan on SVHN (config.py, model.py, svhn_trainer.py)."""

    components: int = 10  # classes, K
    nets: Literal["svhn", "digits", "plane"] = "svhn"  # svhn: conv_small and its generator; else MLPs, which are ours
    hidden: int = 256  # units of each layer of the MLPs: three of D, two of G
    z_dim: int = 100  # dimensions of z, uniform in [0, 1)
    input_noise: float = 0.05  # std of the Gaussian noise on D's input
    input_dropout: float = 0.15  # of whole colours of D's input
    dropout: float = 0.5  # of whole maps of D's hidden layers
    entropy_weight: float = 0.1  # of H[p(y | x)] on unlabelled examples
    pull_away_weight: float = 0.8
    learning_rate: float = 1e-3  # of both players
    d_beta1: float = 0.5
    g_beta1: float = 0.0
    beta2: float = 0.999
    slope: float = 0.2  # of D's leaky ReLU
    init_std: float = 0.05  # weights ~ N(0, init_std²) before the initialisation by data
    schedule: int = 1_030_500  # steps T, 900 epochs of 1,145: at step t the rate is multiplied by min(3 (1 - t / T), 1)
    least_rate: float = 1e-4  # below which the rate does not fall
    init_examples: int = 448  # labelled ones by which weight normalisation is set: 7 batches of 64


class BadGAN(Method):
    """Each step plays two phases: D, then G against what it has become."""

    Config = BadGANConfig
    needs_labels = True
    steps: Tensor
    rate: Tensor

    def __init__(self, config: BadGANConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        style = Style("weight", "weight", slope=c.slope, dropout=c.dropout, whole_channels=True)
        style = replace(style, input_noise=c.input_noise, input_dropout=c.input_dropout)
        small = None if c.nets == "svhn" else c.hidden
        self.discriminator, self.generator = players(style, spec.shape, c.components, c.z_dim, small)
        normal_(self, noise, c.init_std)
        self.register_buffer("steps", torch.zeros((), device=noise.device))
        self.register_buffer("rate", torch.tensor(c.learning_rate, device=noise.device))
        self.d_parameters = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.g_parameters = [p for p in self.generator.parameters() if p.requires_grad]
        self.d_adam = torch.optim.Adam(self.d_parameters, self.rate, (c.d_beta1, c.beta2), fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, self.rate, (c.g_beta1, c.beta2), fused=True)

    def prepare(self, data: Data) -> None:
        """Weight normalisation by some labelled examples and as many generated ones."""
        fit_players_(self.discriminator, self.generator, data, self.config.init_examples, self.config.z_dim)

    def generate(self, n: int, noise: Noise) -> Tensor:
        """G's images in [-1, 1], [n, C, H, W]."""
        return self.generator(noise.uniform(n, self.config.z_dim))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of both players on examples [M, C, H, W] and labelled ones of classes int64 [L]."""
        c, n, noise = self.config, len(batch.x), batch.noise
        self._anneal()
        with torch.no_grad():
            images = self.generate(n, noise)
        supervised, unlabelled, _, free = discriminator_losses(self.discriminator, batch, images)
        entropy = conditional_entropy(free)
        descend(supervised + unlabelled + c.entropy_weight * entropy, self.d_parameters, self.d_adam)

        with torch.no_grad():
            features = self.discriminator.features(2 * batch.x - 1, noise)
        found = self.discriminator.features(self.generate(n, noise), noise)
        matching, pull = feature_matching(features, found), pull_away(found)
        descend(matching + c.pull_away_weight * pull, self.g_parameters, self.g_adam)
        losses = {
            "supervised": supervised,
            "unlabelled": unlabelled,
            "entropy": entropy,
            "g": matching,
            "pull_away": pull,
        }
        return {name: value.detach() for name, value in losses.items()}

    def _anneal(self) -> None:
        """Sets the rate of both players for this step."""
        c = self.config
        self.rate.copy_((c.learning_rate * annealing(self.steps, c.schedule)).clamp(min=c.least_rate))
        set_rate(self.rate, self.d_adam, self.g_adam)
        self.steps += 1

    def predict(self, x: Tensor) -> Tensor:
        """The class with D's largest logit, int64 [B]."""
        return self.discriminator(2 * x - 1).argmax(1)


def pull_away(features: Tensor) -> Tensor:
    """PT of section 5.1: mean of the squared cosines of all pairs of different rows of [B, F]; from 0 to 1."""
    unit, n = F.normalize(features.float(), dim=1), len(features)
    cosine = unit @ unit.T
    return (cosine.square().sum() - cosine.diagonal().square().sum()) / (n * (n - 1))
