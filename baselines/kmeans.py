"""k-means on pixels or on their principal components, the plainest clustering: what any learned method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.pca import principal_axes
from models.kmeans import fit_centres, nearest
from models.method import Data, Method, Spec
from models.noise import Noise


@dataclass(frozen=True)
class KMeansConfig:
    """Knobs of k-means."""

    components: int = 10  # number of centres
    n_init: int = 10  # k-means++ starts, the best is kept; LALNets' code takes as many
    dimensions: int = 0  # principal components that are kept; 0: the pixels themselves

    def __post_init__(self) -> None:
        if self.dimensions < 0:
            raise ValueError(f"dimensions must be at least 0, got {self.dimensions}")


class KMeans(Method):
    """Lloyd's algorithm from k-means++ starts, on all training examples at once."""

    Config = KMeansConfig
    iterative = False
    centres: Tensor
    mean: Tensor
    axes: Tensor

    def __init__(self, config: KMeansConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        pixels = torch.Size(spec.shape).numel()
        d = config.dimensions or pixels
        self.register_buffer("centres", torch.zeros(config.components, d, device=noise.device))
        if config.dimensions:
            self.register_buffer("mean", torch.zeros(pixels, device=noise.device))
            self.register_buffer("axes", torch.zeros(pixels, d, device=noise.device))

    def finish(self, data: Data) -> None:
        """Fits the axes, if any, then the centres, [K, d]."""
        c = self.config
        if c.dimensions:
            mean, axes = principal_axes(torch.cat([x.flatten(1) for x in data.batches()]).double(), c.dimensions)
            self.mean.copy_(mean)
            self.axes.copy_(axes)
        features = torch.cat([self.embed(x) for x in data.batches()])
        self.centres.copy_(fit_centres(features, c.components, c.n_init, data.noise.seed()))

    def predict(self, x: Tensor) -> Tensor:
        """The nearest centre of each example, int64 [B]."""
        return nearest(self.embed(x), self.centres)

    def embed(self, x: Tensor) -> Tensor:
        """What is clustered, [B, d]: pixels, or their principal components."""
        pixels = x.flatten(1)
        return (pixels - self.mean) @ self.axes if self.config.dimensions else pixels
