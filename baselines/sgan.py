"""SGAN, structured generative adversarial networks (Deng et al., 2017): y and z are disentangled by two discriminators.

A classifier C infers y, a net I infers z, a generator G(y, z) makes x; D_xy judges pairs (x, y), D_xz pairs (x, z). With true
pairs (x, y) mixed as `composition` says, one step plays

    C           R_L + 0.3 E H[p(y | x)] + 0.001 B + w E -log p_C(y | G(y, z))                               (section 3.3)
    D_xy        -E log D_xy(x, y) - E log(1 - D_xy(G(y, z), y))                                             (Eq. 3)
    D_xz        -E log D_xz(x, I(x)) - E log(1 - D_xz(G(y, z), z))                                          (Eq. 2)
    I           -E log(1 - D_xz(x, I(x))) + R_z
    G           -E log D_xy(G(y, z), y) - E log D_xz(G(y, z), z) + R_z + R_y                                (Eqs. 4, 5)

R_z = 0.1 * ‖z - I(G(y, z))‖² / 2 and R_y = -log p_C(y | G(y, z)), means over the batch; B is the cross-entropy of the uniform
distribution to the batch's mean of p(y | x). For 50 epochs C moves alone. Classes are those of an average of C's weights.

Follows thudzj/StructuredGAN, sgan_svhn.py and components/objectives.py (a fork of Triple-GAN's). Departures are Triple-GAN's
(baselines/triplegan.py), those of its passes, images, running statistics, logs, data and scoring, and: a step moves all players,
there an epoch of C's steps comes before one of the others'; C's pass serves D_xy; I and G move at once; C's pretraining keeps β1
at 0.5 and one Adam (0.9, and a new one after it, there), and all else is computed meanwhile at rate 0, so that all steps are the
same program and Adam's moments of D, G and I are those of nets at rest when they first move; C's generated pairs are of every
class alike, there of classes drawn at random.

Pitfalls: as Triple-GAN's; early generated pairs are wrong, so w stays 0 for 100 epochs and then grows to 0.02 at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines import losses, pair_nets, pairs
from baselines.pair_nets import Backbone
from models.latent import one_hot
from models.method import Batch, Method, Spec
from models.nets import Averaged, normal_
from models.noise import Noise


@dataclass(frozen=True)
class SGANConfig:
    """Knobs of SGAN; defaults are those of thudzj/StructuredGAN on SVHN (sgan_svhn.py)."""

    components: int = 10  # classes, K
    backbone: Backbone = "conv_large"  # dense is ours, for images that are not 32x32
    hidden: int = 256  # dense: units of the hidden layers of C, G, I and D_xz; ours
    d_width: int = 32  # conv_large: of D_xy's first layers, others 2, 4 times as many; dense: units of its layers
    z_dim: int = 100  # dimensions of z, uniform in [0, 1)
    input_dropout: float = 0.2  # of C
    dropout: float = 0.5  # of C's hidden layers
    d_dropout: float = 0.2  # of D_xy, its input and after each stride
    entropy_weight: float = 0.3
    balance_weight: float = 1e-3
    z_weight: float = 0.1  # of R_z
    generated_from: int = 100  # w = (epoch - generated_from) / generated_over, from 0 to generated_most
    generated_over: float = 30_000.0
    generated_most: float = 0.02
    learning_rate: float = 3e-4  # of all players
    beta1: float = 0.5
    beta2: float = 0.999  # Lasagne's default
    decay_from: int = 300  # last epoch with the full learning rate
    decay: float = 0.995  # of the learning rate, each epoch
    pretraining: int = 50  # epochs, before epoch 1, in which C alone moves
    epoch: int = 366  # steps of what the schedules call an epoch: 73,257 images in batches of 200
    average_rate: float = 0.01  # by which the average moves each step
    init_std: float = 0.05  # kernels ~ N(0, init_std²)


class SGAN(Method):
    """Each step plays three phases: C, both discriminators, then I and G against what these have become."""

    Config = SGANConfig
    needs_labels = True
    steps: Tensor
    rate: Tensor
    others_rate: Tensor

    def __init__(self, config: SGANConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        self.classifier = pair_nets.classifier(c.backbone, spec, c.components, c.hidden, (c.input_dropout, c.dropout))
        self.generator = pair_nets.conditional_generator(c.backbone, spec, c.components, c.hidden, c.z_dim)
        self.inference = pair_nets.inference_net(c.backbone, spec.shape, c.hidden, c.z_dim)
        self.d_xy = pair_nets.pair_discriminator(c.backbone, spec.shape, c.components, c.d_width, c.d_dropout)
        self.d_xz = pair_nets.JointDiscriminator(c.backbone, spec.shape, c.hidden, c.z_dim)
        normal_(self, noise, c.init_std)
        self.average = Averaged(self.classifier, c.average_rate, "zero", average_buffers=True)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=noise.device))
        self.register_buffer("rate", torch.tensor(c.learning_rate, device=noise.device))
        self.register_buffer("others_rate", torch.zeros((), device=noise.device))

        self.c_parameters = list(self.classifier.parameters())
        self.d_parameters = [p for net in (self.d_xy, self.d_xz) for p in net.parameters() if p.requires_grad]
        self.g_parameters = [*self.generator.parameters(), *self.inference.parameters()]
        betas = (c.beta1, c.beta2)
        self.c_adam = torch.optim.Adam(self.c_parameters, self.rate, betas, fused=True)
        self.d_adam = torch.optim.Adam(self.d_parameters, self.others_rate, betas, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, self.others_rate, betas, fused=True)  # of G and I

    def judge(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """D_xy's logits [B] of images in [-1, 1] and classes int64 [B]."""
        return self.d_xy(x, noise, one_hot(y, self.config.components)).flatten().float()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players on examples [M, C, H, W], labelled ones of classes int64 [L], and M generated ones."""
        assert batch.x_labelled is not None and batch.y_labelled is not None, "a step needs labelled examples"
        c, noise, y, n = self.config, batch.noise, batch.y_labelled, len(batch.x)
        x, given = 2 * batch.x - 1, 2 * batch.x_labelled - 1
        epoch = self._count()
        chosen, z = pairs.even_classes(n, c.components, x.device), noise.uniform(n, c.z_dim)
        images = self.generator(z, None, one_hot(chosen, c.components)).float()
        made = images.detach()

        labelled, logits = self.classifier(given, noise), self.classifier(x, noise)
        named = pairs.named(self.classifier, made, chosen, noise)
        own = pairs.classifier_loss(labelled, y, logits, c.entropy_weight, c.balance_weight)
        weight = ((epoch - c.generated_from) / c.generated_over).clamp(0, c.generated_most)
        pairs.descend(own + weight * named, self.c_parameters, self.c_adam, self.rate)
        self.average.update(self.classifier)

        source, at = pairs.composition(epoch, n), torch.arange(n, device=x.device)
        turn = at % len(y)  # the labelled ones over again where the batch has fewer
        pool, classes = torch.stack([given[turn], x, made]), torch.stack([y[turn], logits.argmax(1), chosen])
        code = self.inference(x, noise)
        xy_real = pairs.real(self.judge(pool[source, at], classes[source, at], noise))
        d_xy = xy_real + pairs.fake(self.judge(made, chosen, noise))
        d_xz = pairs.real(self.d_xz(x, code.detach())) + pairs.fake(self.d_xz(made, z))
        pairs.descend(d_xy + d_xz, self.d_parameters, self.d_adam, self.others_rate)

        r_z = c.z_weight * 0.5 * (z - self.inference(images, noise)).square().sum(1).mean()
        r_y = pairs.named(self.classifier, images, chosen, noise)
        i = pairs.fake(self.d_xz(x, code))
        g = pairs.real(self.judge(images, chosen, noise)) + pairs.real(self.d_xz(images, z))
        # I's part and G's touch no parameter of the other, but for R_z, which both minimise
        pairs.descend(i + g + r_z + r_y, self.g_parameters, self.g_adam, self.others_rate)
        told = {"c": own, "c_generated": named, "d_xy": d_xy, "d_xz": d_xz, "i": i, "g": g, "r_z": r_z, "r_y": r_y}
        told["train_error"] = losses.error_rate(labelled, y)
        return {name: value.detach() for name, value in told.items()}

    def _count(self) -> Tensor:
        """The epoch of this step, from 1 after pretraining, after setting the learning rates that belong to it."""
        c = self.config
        epoch = pairs.epoch_of(self.steps, c.epoch) - c.pretraining
        self.rate.copy_(c.learning_rate * pairs.decay(epoch, c.decay_from, c.decay))
        self.others_rate.copy_(self.rate * (epoch > 0))
        self.steps += 1
        return epoch

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class of the averaged C, int64 [B]."""
        return self.average(2 * x - 1).argmax(1)

    def embed(self, x: Tensor) -> Tensor:
        """I(x), [B, z_dim]."""
        return self.inference(2 * x - 1)

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Images of the classes y, int64 [B]."""
        z = noise.uniform(len(y), self.config.z_dim)
        return (self.generator(z, None, one_hot(y, self.config.components)) + 1) / 2
