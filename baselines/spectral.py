"""Spectral clustering of pixels (normalised cuts, Shi and Malik, 2000), by scikit-learn: a floor that follows the data's shape.

The graph joins each landmark, a training example, with its nearest neighbours; k-means clusters the first K eigenvectors of
the graph's normalised Laplacian, divided by the root of each degree. The eigenvectors say nothing of an example outside the
graph: it takes the cluster of the nearest landmark. Departure: landmarks are a random part of a large training set, since the
eigenvectors of all of it take hours.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from models.kmeans import nearest
from models.method import Data, Method, Spec
from models.noise import Noise


@dataclass(frozen=True)
class SpectralConfig:
    """Knobs of spectral clustering; the numbers are scikit-learn's defaults where nothing else is said."""

    components: int = 10  # K, clusters and eigenvectors
    n_neighbors: int = 10  # of each landmark in the graph, itself counted
    n_init: int = 10  # starts of k-means on the eigenvectors
    landmarks: int = 10_000  # training examples in the graph, all where there are fewer; ours

    def __post_init__(self) -> None:
        if self.n_neighbors >= self.landmarks:
            raise ValueError(f"n_neighbors must be below landmarks, got {self.n_neighbors} and {self.landmarks}")


class Spectral(Method):
    """Fitted at once; what it knows are the landmarks, [L, pixels], and their clusters, int64 [L]."""

    Config = SpectralConfig
    iterative = False
    points: Tensor
    clusters: Tensor

    def __init__(self, config: SpectralConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        n, pixels = config.landmarks, torch.Size(spec.shape).numel()
        self.register_buffer("points", torch.zeros(n, pixels, device=noise.device))
        self.register_buffer("clusters", torch.zeros(n, dtype=torch.int64, device=noise.device))

    def finish(self, data: Data) -> None:
        """Draws the landmarks and clusters them; of fewer examples than landmarks all are taken, over and over."""
        from sklearn.cluster import SpectralClustering  # here, because it takes a second to import

        c = self.config
        index = data.noise.permutation(len(data))[: c.landmarks]
        points = data.take(index).flatten(1)
        clustering = SpectralClustering(
            c.components, affinity="nearest_neighbors", n_neighbors=c.n_neighbors, n_init=c.n_init,
            random_state=data.noise.seed(),
        )  # fmt: skip
        with warnings.catch_warnings():  # parts of a graph in pieces have eigenvectors of their own, which are wanted
            warnings.filterwarnings("ignore", "Graph is not fully connected")
            clustering.fit(points.cpu().double().numpy())
        clusters = torch.from_numpy(clustering.labels_).to(points.device, torch.int64)
        again = torch.arange(c.landmarks, device=points.device) % len(points)
        self.points.copy_(points[again])
        self.clusters.copy_(clusters[again])

    def predict(self, x: Tensor) -> Tensor:
        """The cluster of the nearest landmark, int64 [B]."""
        return self.clusters[nearest(x.flatten(1), self.points)]
