"""Improved GAN with feature matching (Salimans et al., 2016), the semi-supervised classifier of Table 2.

D has K logits; that of class K + 1, "generated", is 0, so that log Z, their log-sum-exp, is the logit that x is real (section 5).
D: -E log p(y | x, y <= K) over labelled examples - E log σ(log Z(x)) / 2 - E log σ(-log Z(G(z))) / 2;
G: |E f(x) - E f(G(z))|, mean over the features f, those that D's last layer reads (section 3.1).
D moves, then G against what it has become, on z drawn afresh. Classes are those of an average of D's weights that runs along.

Follows openai/improved-gan, mnist_svhn_cifar10/train_svhn_feature_matching.py: nets, initialisation by data, Adam, schedule
and average. Departures: Adam's ε is added to the root of the second moment, there 1e-8 to the moment itself, which slows G's
inner layers and is like 1e-4 here; the unlabelled examples of G's step are those of D's, there a second shuffle of the same; G
is fitted to as many z as D to examples, there to a batch of 100; the rate falls with every step, there once an epoch; G's
batch normalisation has a trained scale, which the next layer could take up, and an ε of 1e-5, there 1e-6; labels and
unlabelled examples are the suite's, there 100 labels of each class and all 73,257 images. That code prints the test error of
every epoch and has no validation split.

Pitfalls: the average starts at zero and is not corrected, as in that code: early answers are those of a net whose biases are
too small, so its rate must fit the number of steps. G's batch normalisation uses its batch's statistics. On CIFAR, users saw
32 % error after 48 epochs: without the whole schedule it is no result (openai/improved-gan, issue 23).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baselines.feature_matching import annealing, discriminator_losses, feature_matching, fit_players_, players
from baselines.losses import descend, set_rate
from baselines.nets import Style
from models.method import Batch, Data, Method, Spec
from models.nets import Averaged, normal_
from models.noise import Noise


@dataclass(frozen=True)
class ImprovedGANConfig:
    """Knobs of Improved GAN; defaults are those of openai/improved-gan on SVHN (train_svhn_feature_matching.py)."""

    components: int = 10  # classes, K
    nets: Literal["svhn", "digits", "plane"] = "svhn"  # svhn: conv_small and its generator; else MLPs, which are ours
    hidden: int = 256  # units of each layer of the MLPs: three of D, two of G
    z_dim: int = 100  # dimensions of z, uniform in [0, 1)
    input_dropout: float = 0.2  # of D's input
    dropout: float = 0.5  # of D's hidden layers
    learning_rate: float = 3e-4  # of both players
    beta1: float = 0.5
    beta2: float = 0.999
    epsilon: float = 1e-8  # of Adam, PyTorch's; their code's is like 1e-4, see above
    slope: float = 0.2  # of D's leaky ReLU
    init_std: float = 0.05  # weights ~ N(0, init_std²) before the initialisation by data
    schedule: int = 658_800  # steps T, 900 epochs of 732: at step t the rate is multiplied by min(3 (1 - t / T), 1)
    average_rate: float = 1e-4  # by which the average of D's weights moves to them each step
    init_examples: int = 500  # labelled ones by which weight normalisation is set before the first step


class ImprovedGAN(Method):
    """Each step plays two phases: D, then G against what it has become."""

    Config = ImprovedGANConfig
    needs_labels = True
    steps: Tensor
    rate: Tensor

    def __init__(self, config: ImprovedGANConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        style = Style("weight", "weight", slope=c.slope, input_dropout=c.input_dropout, dropout=c.dropout)
        small = None if c.nets == "svhn" else c.hidden
        self.discriminator, self.generator = players(style, spec.shape, c.components, c.z_dim, small)
        normal_(self, noise, c.init_std)
        self.average = Averaged(self.discriminator, c.average_rate, start="zero")
        self.register_buffer("steps", torch.zeros((), device=noise.device))
        self.register_buffer("rate", torch.tensor(c.learning_rate, device=noise.device))
        self.d_parameters = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.g_parameters = [p for p in self.generator.parameters() if p.requires_grad]
        betas = (c.beta1, c.beta2)
        self.d_adam = torch.optim.Adam(self.d_parameters, self.rate, betas, c.epsilon, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, self.rate, betas, c.epsilon, fused=True)

    def prepare(self, data: Data) -> None:
        """Weight normalisation by some labelled examples and as many generated ones."""
        fit_players_(self.discriminator, self.generator, data, self.config.init_examples, self.config.z_dim)
        for mine, other in zip(self.average.net.parameters(), self.discriminator.parameters(), strict=True):
            if not other.requires_grad:  # a scale that stays as it is from here on, so that its average is itself
                mine.copy_(other)

    def generate(self, n: int, noise: Noise) -> Tensor:
        """G's images in [-1, 1], [n, C, H, W]."""
        return self.generator(noise.uniform(n, self.config.z_dim))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of both players on examples [M, C, H, W] and labelled ones of classes int64 [L]."""
        n, noise = len(batch.x), batch.noise
        self._anneal()
        with torch.no_grad():
            images = self.generate(n, noise)
        supervised, unlabelled, error, _ = discriminator_losses(self.discriminator, batch, images)
        descend(supervised + unlabelled, self.d_parameters, self.d_adam)
        self.average.update(self.discriminator)

        with torch.no_grad():
            features = self.discriminator.features(2 * batch.x - 1, noise)
        g = feature_matching(features, self.discriminator.features(self.generate(n, noise), noise))
        descend(g, self.g_parameters, self.g_adam)
        named = {"supervised": supervised, "unlabelled": unlabelled, "g": g, "train_error": error}
        return {name: value.detach() for name, value in named.items()}

    def _anneal(self) -> None:
        """Sets the rate of both players for this step."""
        self.rate.copy_(self.config.learning_rate * annealing(self.steps, self.config.schedule))
        set_rate(self.rate, self.d_adam, self.g_adam)
        self.steps += 1

    def predict(self, x: Tensor) -> Tensor:
        """The class with the largest logit of the averaged D, int64 [B]."""
        return self.average(2 * x - 1).argmax(1)

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """As many images as y has entries; G knows no classes, so its values do not matter."""
        return (self.generate(len(y), noise) + 1) / 2
