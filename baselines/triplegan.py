"""Triple-GAN (Li et al., 2017): a classifier C and a generator G, two players against one discriminator D of pairs (x, y).

D tells true pairs from pairs (G(y, z), y) and from pairs (x, C(x)), C(x) being C's most probable class. One step plays

    D   -E log D(x, y) - 1/2 E log(1 - D(G(y, z), y)) - 1/2 E log(1 - D(x, C(x)))                       (Eq. 3)
    G   -1/2 E log D(G(y, z), y)
    C   R_L + 0.3 E H[p(y | x)] + 0.001 B + 0.01 * 1/2 E p(C(x) | x) (-log D(x, C(x))) + 0.03 R_P        (Eq. 3, section 3.2)

with R_L the cross-entropy of labelled examples, B that of the uniform distribution to the batch's mean of p(y | x), R_P that
of generated pairs, from epoch 200 on. A tenth of D's true pairs are labelled; the others are unlabelled x with C(x), taken as if
they were true. Classes are those of an average of C's weights, from zero on, and of its statistics, from the net's own.

Follows zhenxuan00/triple-gan, x2y_yz2x_xy2p_ssl_svhn.py and components/objectives.py. Departures: C's pass on a batch serves D
and C alike, one set of generated images serves all three players, and D's true and false pairs with C(x) come from one batch,
there from fresh passes and other shuffles; generated images do not move C's running statistics; batch normalisation has
PyTorch's ε and running variances, there 1e-4 (C), 1e-6 (G) and running 1/σ, and G's has a scale; no probability is clipped in
a loss, there to [1e-6, 1 - 1e-6]; the average of C's statistics starts at 0 there; C's game with D is weighted example by
example, as Eq. 3 has it, there by the product of two means; C has one Adam, there a new one at epoch 200; labels and unlabelled
examples are the suite's, there 100 of each class and all 73,257. The L2 of 1e-4 there names its softmax, which has no weights,
so there is none here. It has no validation split, and scores 26,000 of the 26,032 test images.

Pitfalls: on a few labels C's own entropy and balance decide first, and one wrong cluster stays wrong; the result rests on the
average of weights, which is useless before some hundred steps. Its seed is fixed, so the published std is of label draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import losses, pair_nets, pairs
from baselines.pair_nets import Backbone
from models.latent import one_hot
from models.method import Batch, Method, Spec
from models.nets import Averaged, normal_
from models.noise import Noise


@dataclass(frozen=True)
class TripleGANConfig:
    """Knobs of Triple-GAN; defaults are those of zhenxuan00/triple-gan on SVHN (x2y_yz2x_xy2p_ssl_svhn.py)."""

    components: int = 10  # classes, K
    backbone: Backbone = "conv_large"  # dense is ours, for images that are not 32x32
    hidden: int = 256  # dense: units of the hidden layers of C and G; ours
    d_width: int = 32  # conv_large: of D's first layers, the others have 2, 4 times as many; dense: units of D's layers
    z_dim: int = 100  # dimensions of z, uniform in [0, 1)
    input_dropout: float = 0.2  # of C
    dropout: float = 0.5  # of C's hidden layers
    d_dropout: float = 0.2  # of D, its input and after each stride
    labelled_share: float = 0.1  # of D's true pairs: 20 of 200
    entropy_weight: float = 0.3
    balance_weight: float = 1e-3
    adversarial_weight: float = 0.01  # of C's game with D
    generated_weight: float = 0.03  # of R_P
    generated_from: int = 200  # first epoch with R_P
    learning_rate: float = 3e-4  # of all players
    beta1: float = 0.5
    beta2: float = 0.999  # Lasagne's default
    decay_from: int = 300  # last epoch with the full learning rate
    decay: float = 0.995  # of the learning rate, each epoch
    epoch: int = 366  # steps of what the schedules call an epoch: 73,257 images in batches of 200
    average_rate: float = 0.01  # by which the average moves each step
    init_std: float = 0.05  # kernels ~ N(0, init_std²)


class TripleGAN(Method):
    """Each step plays three phases: D, G, then C, each against what the ones before it have become."""

    Config = TripleGANConfig
    needs_labels = True
    steps: Tensor
    rate: Tensor

    def __init__(self, config: TripleGANConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        self.classifier = pair_nets.classifier(c.backbone, spec, c.components, c.hidden, (c.input_dropout, c.dropout))
        self.generator = pair_nets.conditional_generator(c.backbone, spec, c.components, c.hidden, c.z_dim)
        self.discriminator = pair_nets.pair_discriminator(c.backbone, spec.shape, c.components, c.d_width, c.d_dropout)
        normal_(self, noise, c.init_std)
        self.average = Averaged(self.classifier, c.average_rate, "zero", average_buffers=True)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=noise.device))
        self.register_buffer("rate", torch.tensor(c.learning_rate, device=noise.device))

        nets = self.classifier, self.generator, self.discriminator
        self.c_parameters, self.g_parameters, self.d_parameters = (
            [p for p in net.parameters() if p.requires_grad] for net in nets
        )
        betas = (c.beta1, c.beta2)
        self.c_adam = torch.optim.Adam(self.c_parameters, self.rate, betas, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, self.rate, betas, fused=True)
        self.d_adam = torch.optim.Adam(self.d_parameters, self.rate, betas, fused=True)

    def judge(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """D's logits [B] of images in [-1, 1] and classes int64 [B]."""
        return self.discriminator(x, noise, one_hot(y, self.config.components)).flatten().float()

    def generate(self, y: Tensor, noise: Noise) -> Tensor:
        """G's images in [-1, 1] of classes int64 [B]."""
        z = noise.uniform(len(y), self.config.z_dim)
        return self.generator(z, None, one_hot(y, self.config.components)).float()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players on examples [M, C, H, W], labelled ones of classes int64 [L], and M generated ones."""
        assert batch.x_labelled is not None and batch.y_labelled is not None, "a step needs labelled examples"
        c, noise, y, n = self.config, batch.noise, batch.y_labelled, len(batch.x)
        x, given = 2 * batch.x - 1, 2 * batch.x_labelled - 1
        epoch = self._count()
        labelled, logits = self.classifier(given, noise), self.classifier(x, noise).float()
        sure, guess = F.softmax(logits, 1).max(1)
        chosen = pairs.even_classes(n, c.components, x.device)
        images = self.generate(chosen, noise)

        few = min(max(1, round(c.labelled_share * n)), len(y))  # labelled ones among D's true pairs
        true = self.judge(torch.cat([given[:few], x[few:]]), torch.cat([y[:few], guess[few:]]), noise)
        generated = self.judge(images.detach(), chosen, noise)
        d = pairs.real(true) + 0.5 * pairs.fake(generated) + 0.5 * pairs.fake(self.judge(x, guess, noise))
        pairs.descend(d, self.d_parameters, self.d_adam, self.rate)

        g = 0.5 * pairs.real(self.judge(images, chosen, noise))
        pairs.descend(g, self.g_parameters, self.g_adam, self.rate)

        with torch.no_grad():
            doubt = F.softplus(-self.judge(x, guess, noise))
        named = pairs.named(self.classifier, images.detach(), chosen, noise)
        own = pairs.classifier_loss(labelled, y, logits, c.entropy_weight, c.balance_weight)
        fooling = 0.5 * (sure * doubt).mean()
        late = c.generated_weight * (epoch >= c.generated_from)
        pairs.descend(own + c.adversarial_weight * fooling + late * named, self.c_parameters, self.c_adam, self.rate)
        self.average.update(self.classifier)
        told = {"d": d, "g": g, "c": own, "c_fooling": fooling, "c_generated": named}
        told["train_error"] = losses.error_rate(labelled, y)
        return {name: value.detach() for name, value in told.items()}

    def _count(self) -> Tensor:
        """The epoch of this step, from 1, after setting the learning rate that belongs to it."""
        c, epoch = self.config, pairs.epoch_of(self.steps, self.config.epoch)
        self.rate.copy_(c.learning_rate * pairs.decay(epoch, c.decay_from, c.decay))
        self.steps += 1
        return epoch

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class of the averaged C, int64 [B]."""
        return self.average(2 * x - 1).argmax(1)

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Images of the classes y, int64 [B]."""
        return (self.generate(y, noise) + 1) / 2
