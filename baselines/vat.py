"""VAT, virtual adversarial training (Miyato et al., 2018), semi-supervised, with entropy minimisation or without.

A classifier minimises cross-entropy on labelled examples + KL(p(y | x) || p(y | x + r)) on unlabelled ones, where r of
length ε moves x in the direction that changes the answer most, and, as VAT + EntMin, + H(p(y | x)). Rewritten after
takerum/vat_tf (train_semisup.py, vat.py, cnn.py, layers.py, test.py), whose settings for SVHN without augmentation are the
defaults. As there, p(y | x) is held fixed in the KL, all passes over unlabelled examples see the same dropout masks (that
code seeds them alike) and leave the running statistics alone; labelled batches give those anew before testing.
Published: 6.83 with conv_small is VAT, 4.28 with conv_large is VAT + EntMin.

Departures: that estimate is a mean over its batches alone (there a moving average that keeps 0.37 of what training left), so
it does not depend on how often it is made; normal weights, not truncated ones; ε of batch normalisation 1e-5, not 1e-6;
no bias of the logits, which are normalised; labelled examples come in rounds. The code of conv_small was not published: the
paper's halves by maxima, and has the style of conv_large here.
Pitfall: ξ = 1e-6 is near the resolution of 32-bit pixels, so r is made of rounding errors more than of the
gradient: at the start its cosine with the direction that ξ = 0.01 finds is far from 1 (0.5 and less), though the KL there is
about as large, and several times that of a random direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.adam import Adam
from baselines.losses import conditional_entropy
from baselines.nets import Classifier, Style, conv_large, conv_small, dense
from baselines.perturbation import Repeated, kl_divergence, worst_direction
from models.method import Batch, Data, Method, Spec
from models.nets import fan_in_, refit_statistics, running_statistics_kept
from models.noise import Noise


@dataclass(frozen=True)
class VATConfig:
    """Knobs of VAT; defaults are those of vat_tf for SVHN without augmentation, method vat."""

    backbone: Literal["conv_large", "conv_small", "dense"] = "conv_large"  # dense is ours, for small images
    components: int = 10  # classes, K
    hidden: int = 256  # dense: width of both hidden layers
    entropy_weight: float = 0.0  # of H(p(y | x)); 1 in method vatent
    radius: float = 2.5  # ε, length of r
    xi: float = 1e-6  # ξ, length of the step at which the power iteration takes its gradient
    power_iterations: int = 1
    dropout: float = 0.5
    slope: float = 0.1  # of the leaky ReLU
    norm_logits: bool = True  # batch normalisation of the logits (--top_bn)
    momentum: float = 0.01  # of running statistics
    refits: int = 100  # batches of labelled examples that statistics are estimated from before testing
    refit_batch: int = 100  # examples in each
    input_scale: float = 1.0  # the net sees x * input_scale + input_shift: pixels in [-0.5, 0.5]
    input_shift: float = -0.5
    learning_rate: float = 1e-3
    beta1: float = 0.9
    late_beta1: float = 0.5  # from `decay_start` on
    beta2: float = 0.999
    steps: int = 48_000  # at which the rate would be 0: 120 epochs of 400
    decay_start: int = 32_000  # 80 epochs
    decay_every: int = 400  # the rate goes down once an epoch


class VAT(Method):
    """Each step: a pass over labelled examples, three over unlabelled ones, and Adam."""

    Config = VATConfig
    needs_labels = True
    step: Tensor

    def __init__(self, config: VATConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        self.net = fan_in_(_backbone(config, spec), noise, 2**0.5)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=noise.device))
        self.adam = Adam(self.net.parameters(), config.beta2)

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self.config.input_scale + self.config.input_shift

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on unlabelled examples [B, C, H, W] and labelled ones [L, C, H, W] with classes int64 [L]."""
        assert batch.x_labelled is not None and batch.y_labelled is not None, "a step needs labelled examples"
        c = self.config
        supervised = F.cross_entropy(self.net(self._scaled(batch.x_labelled), batch.noise).float(), batch.y_labelled)
        vat, entropy = self.unlabelled_losses(self._scaled(batch.x), batch.noise)
        self.adam.zero_grad()
        (supervised + vat + c.entropy_weight * entropy).backward()
        rate, beta1 = schedule(c, self.step)
        self.step += 1
        self.adam.step_with(rate, beta1, self.step)
        return {"supervised": supervised.detach(), "vat": vat.detach(), "entropy": entropy.detach()}

    def unlabelled_losses(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """KL(p(y | x) || p(y | x + r)) and H(p(y | x)) in nats, means over scaled examples [B, C, H, W]."""
        c, rows, same = self.config, x.flatten(1), Repeated(noise)
        start = noise.normal(*rows.shape)

        def logits(moved: Tensor) -> Tensor:
            found: Tensor = self.net(moved.view_as(x), same.again())
            return found

        with running_statistics_kept(self.net):
            plain = logits(rows)
            target = plain.detach()
            d = worst_direction(logits, rows, target, start, c.xi, c.power_iterations)
            return kl_divergence(target, logits(rows + c.radius * d)), conditional_entropy(plain)

    def finish(self, data: Data) -> None:
        """The running statistics, from labelled examples with dropout."""
        x, noise, c = data.x_labelled, data.noise, self.config
        assert x is not None, "the statistics are those of labelled examples"
        chosen = (noise.permutation(len(x))[: c.refit_batch] for _ in range(c.refits))
        batches = (self._scaled(x[index].float() * data.scale) for index in chosen)
        refit_statistics(self.net, lambda batch: self.net(batch, noise), batches)

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class, int64 [B]."""
        logits: Tensor = self.net(self._scaled(x))
        return logits.argmax(1)


def schedule(c: VATConfig, step: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's rate and β1 after `step` steps: from `decay_start` on the rate falls to 0, once every `decay_every`."""
    left = c.steps - step // c.decay_every * c.decay_every
    rate = c.learning_rate * (left / (c.steps - c.decay_start)).clamp(0, 1)
    return rate, torch.where(step < c.decay_start, c.beta1, c.late_beta1)


def _backbone(c: VATConfig, spec: Spec) -> Classifier:
    last: dict[str, Any] = {"last_norm": "batch"} if c.norm_logits else {}
    style = Style(slope=c.slope, dropout=c.dropout, pool="max", momentum=c.momentum, **last)
    if c.backbone == "dense":
        return dense(style, spec.shape, (c.hidden, c.hidden), c.components)
    if spec.shape[1:] != (32, 32):
        raise ValueError(f"backbone: {c.backbone} is for images of 32x32, {spec.data} has {spec.shape}; use dense")
    return (conv_large if c.backbone == "conv_large" else conv_small)(style, spec.shape[0], c.components)
