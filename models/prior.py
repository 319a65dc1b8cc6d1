"""p(y) p(z | y), the mixture that Eq. 11 puts on the latent space, and the classifier that follows from it (Eq. 19)."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from models.latent import bayes_classify, one_hot, separated_means
from models.layers import Layer, Net
from models.noise import Noise

Kind = Literal["learned", "learned_variance", "separated", "fixed", "standard"]


class MixturePrior(nn.Module):
    """A mixture of K Gaussians with unit or learned variance.

    Args:
        net: Gz(y) of Table 4 or 8, a network with rows zμ, zσ and z; or the means, float [K, d], fixed or a parameter.
        k: number of components; p(y) is uniform until `p_y` is overwritten (SAMM sets the label frequencies).
    """

    p_y: Tensor
    fixed_mean: Tensor

    def __init__(self, net: Net | Tensor, k: int) -> None:
        super().__init__()
        self.k = k
        self.net = net if isinstance(net, Net) else None
        self.register_buffer("p_y", torch.full((k,), 1 / k))
        self.mean = net if isinstance(net, nn.Parameter) else None
        self.register_buffer("fixed_mean", net if type(net) is Tensor else torch.empty(0))

    def sample_y(self, n: int, noise: Noise) -> Tensor:
        """y ~ p(y), int64 [n]."""
        return noise.categorical(self.p_y, n)

    def sample_z(self, y: Tensor, noise: Noise) -> Tensor:
        """Eq. 12, z = μ(y) + σ(y) ⊙ ε, [B, d, 1, 1], for categories int64 [B]."""
        if self.net is not None:
            return self.net(noise, y=one_hot(y, self.k))["z"]
        mean = (self.fixed_mean if self.mean is None else self.mean)[y]
        return (mean + noise.normal(*mean.shape))[:, :, None, None]

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor]:
        """Means and log-variances of the components, each [K, d], with the running statistics of Table 4.

        While it learns, Table 4's dropout and batch normalisation move the means from draw to draw, so that p(z | y) is wider.
        """
        if self.net is None:
            mean = self.fixed_mean if self.mean is None else self.mean.detach()
            return mean, torch.zeros_like(mean)
        was_training = self.net.training
        eye = torch.eye(self.k, device=self.p_y.device)
        mean = self.net.eval()(None, y=eye)["zμ"].flatten(1)
        row = cast(Layer, self.net.layers["zσ"])
        learned = row.weight is not None  # Table 4 feeds zeros to ExpN: unit variance
        log_variance = row.linear(eye[:, :, None, None]).flatten(1) if learned else torch.zeros_like(mean)
        self.net.train(was_training)
        return mean, log_variance

    def classify(self, z: Tensor) -> Tensor:
        """Eq. 19 on embeddings z [B, d], int64 [B]."""
        mean, log_variance = self.moments()
        return bayes_classify(z, mean, log_variance, self.p_y)


def build_prior(kind: Kind, nets: object, k: int, separation: float, noise: Noise, **options: Any) -> MixturePrior:
    """The prior that a Config names.

    Args:
        kind: "learned" (Table 4, unit variance), "learned_variance" (Table 8), "fixed" (means of ours, `separation` apart
            from the origin, unit variance; section 2.2 allows a known prior), "separated" (learned, unit variance, from these
            means on) or "standard" (N(0, I) for every y, Eq. 16).
        nets: module of layer tables with PRIOR, PRIOR_VARIANCE and DECODER.
        options: passed on to `Net`.
    """
    if kind in ("learned", "learned_variance"):
        table = vars(nets)["PRIOR" if kind == "learned" else "PRIOR_VARIANCE"]
        prior = MixturePrior(Net(table, k, noise, **options), k)
    else:
        dimensions = next(row.channels for row in vars(nets)["DECODER"].rows(k) if row.name == "z")
        mean = torch.zeros(k, dimensions) if kind == "standard" else separated_means(k, dimensions, separation)
        prior = MixturePrior(nn.Parameter(mean) if kind == "separated" else mean, k)
    return prior.to(noise.device)
