"""IMSAT with virtual adversarial training (Hu et al., 2017, Information Maximizing Self-Augmented Training).

A classifier p(y | x) without labels: it minimises R_VAT + λ (H(Y | X) - μ H(Y)). The entropies are -I(X; Y) with more weight
on clusters of equal size; R_VAT = KL(p(y | x) || p(y | x + r)), the target p(y | x) held fixed, keeps the answer where r moves x
in the worst direction, by 0.25 times the distance from x to its 10th nearest neighbour. The formulas are named by functions of
weihua916/imsat (imsat_cluster.py, Chainer 1.21), whose settings are the defaults.

Departures: epochs go through all examples, the code draws 250 anew for each step; log-softmax instead of log(p + 1e-8); no bias
before batch normalisation, whose ε is 1e-5, not 2e-5. The code's file of distances holds the 11th neighbour (an index from 0,
the example itself put last), as a comparison with MNIST shows; `neighbour: 11` repeats it.
Pitfall: the passes of VAT normalise with the statistics of their batch and must not move the running ones that `predict` uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.losses import descend
from baselines.perturbation import kl_divergence, worst_direction
from models.method import Batch, Data, Method, Spec
from models.nets import fan_in_, mlp, running_statistics_kept
from models.noise import Noise


@dataclass(frozen=True)
class IMSATConfig:
    """Knobs of IMSAT; defaults are those of imsat_cluster.py for MNIST."""

    components: int = 10  # K
    hidden: int = 1200  # width of both hidden layers
    information_weight: float = 0.1  # λ
    marginal_weight: float = 4.0  # μ, of H(Y) against H(Y | X)
    radius: float = 0.25  # ‖r‖ over the distance to the neighbour
    neighbour: int = 10  # which one, the example itself not counted; 11 in the code's file
    xi: float = 10.0  # ξ, length of the step at which the power iteration takes its gradient
    power_iterations: int = 1
    hidden_wscale: float = 0.1  # Chainer 1's: weights ~ N(0, wscale / fan in)
    output_wscale: float = 1e-4  # of the last layer
    input_scale: float = 255 / 128  # the nets see x * input_scale + input_shift: grey levels / 128 - 1
    input_shift: float = -1.0
    learning_rate: float = 0.002
    beta1: float = 0.9
    beta2: float = 0.999


class IMSAT(Method):
    """Each step: a plain pass, one or more to find the worst direction, one at x + r, and Adam."""

    Config = IMSATConfig
    radii: Tensor

    def __init__(self, config: IMSATConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        self.net = mlp((torch.Size(spec.shape).numel(), c.hidden, c.hidden, c.components), batchnorm=True, bias=False)
        fan_in_(self.net[:-1], noise, c.hidden_wscale**0.5)
        fan_in_(self.net[-1], noise, c.output_wscale**0.5)
        self.register_buffer("radii", torch.empty(0, device=noise.device))  # [N] after `prepare`
        self.adam = torch.optim.Adam(self.parameters(), c.learning_rate, (c.beta1, c.beta2), fused=True)

    def prepare(self, data: Data) -> None:
        """The radius of each training example, [N]; ValueError if there are not enough of them."""
        x = torch.cat([self._scaled(x) for x in data.batches()])
        self.radii = self.config.radius * neighbour_distances(x, self.config.neighbour)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint may hold the radii of examples that this object has not been shown."""
        if f"{prefix}radii" in state_dict:
            self.radii = self.radii.new_empty(state_dict[f"{prefix}radii"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _scaled(self, x: Tensor) -> Tensor:
        """What the net sees, [B, pixels], of [B, C, H, W]."""
        return x.flatten(1) * self.config.input_scale + self.config.input_shift

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on examples [B, C, H, W], whose places in the training set, `batch.index`, name their radii."""
        assert batch.index is not None, "the radius of each example was computed beforehand"
        c, x = self.config, self._scaled(batch.x)
        logits = self.net(x)
        conditional, marginal = entropies(logits)
        with running_statistics_kept(self.net):
            d = worst_direction(self.net, x, logits.detach(), batch.noise.normal(*x.shape), c.xi, c.power_iterations)
            vat = kl_divergence(logits.detach(), self.net(x + self.radii[batch.index, None] * d))
        descend(vat + c.information_weight * (conditional - c.marginal_weight * marginal), None, self.adam)
        return {"vat": vat.detach(), "conditional_entropy": conditional.detach(), "marginal_entropy": marginal.detach()}

    def predict(self, x: Tensor) -> Tensor:
        """The most probable category, int64 [B]."""
        return self.net(self._scaled(x)).argmax(1)


def entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """H(Y | X) and H(Y) in nats over a batch of logits [B, K]; I(X; Y) = H(Y) - H(Y | X) (`loss_equal`)."""
    log_p = F.log_softmax(logits.float(), 1)
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return -(log_p.exp() * log_p).sum(1).mean(), -(log_marginal.exp() * log_marginal).sum()


def neighbour_distances(x: Tensor, k: int, chunk: int = 500) -> Tensor:
    """Distance of each row of x [N, D] to its k-th nearest other row, [N]. ValueError: fewer than k other rows."""
    if len(x) <= k:
        raise ValueError(f"neighbour {k} needs more than {k} examples; there are {len(x)}")
    # k + 1, for a row is itself the nearest of all, at distance 0
    return torch.cat([torch.cdist(rows, x).topk(k + 1, largest=False).values[:, -1] for rows in x.split(chunk)])
