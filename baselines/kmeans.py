"""k-means on pixels, the plainest clustering: what any learned method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.kmeans import fit_centres, nearest
from models.method import Data, Method, Spec
from models.noise import Noise


@dataclass(frozen=True)
class KMeansConfig:
    """Knobs of k-means."""

    components: int = 10  # number of centres
    n_init: int = 10  # k-means++ starts, the best is kept; LALNets' code takes as many


class KMeans(Method):
    """Lloyd's algorithm from k-means++ starts, on all training examples at once."""

    Config = KMeansConfig
    iterative = False
    centres: Tensor

    def __init__(self, config: KMeansConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        pixels = torch.Size(spec.shape).numel()
        self.register_buffer("centres", torch.zeros(config.components, pixels, device=noise.device))

    def finish(self, data: Data) -> None:
        """Fits the centres, [K, pixels]."""
        pixels = torch.cat([x.flatten(1) for x in data.batches()])
        c = self.config
        self.centres.copy_(fit_centres(pixels, c.components, c.n_init, data.noise.seed()))

    def predict(self, x: Tensor) -> Tensor:
        """The nearest centre of each example, int64 [B]."""
        return nearest(x.flatten(1), self.centres)
