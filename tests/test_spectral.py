"""Spectral clustering: rings that k-means cannot tell apart, few examples, landmarks that are a part."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from baselines.kmeans import KMeans, KMeansConfig
from baselines.spectral import Spectral, SpectralConfig
from models.method import Data, Spec
from models.noise import Noise

SPEC = Spec("toy", (2, 1, 1), 2)


def _rings(n: int, seed: int = 0) -> tuple[Data, Tensor]:
    """Two rings around (1/2, 1/2), one in the other."""
    y = torch.arange(n) % 2
    noise = Noise.seeded(seed)
    angle = 2 * math.pi * noise.uniform(n)
    radius = torch.tensor([0.1, 0.4])[y] + 0.01 * noise.normal(n)
    x = 0.5 + torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return Data(x.view(n, 2, 1, 1), 1.0, Noise.seeded(1)), y


def _agrees(clusters: Tensor, y: Tensor) -> bool:
    return bool((clusters == y).all() or (clusters == 1 - y).all())


@pytest.mark.parametrize("landmarks", [300, 200, 450])  # all examples, a part of them, more than there are
def test_rings_within_rings_are_found_where_k_means_cuts_them(landmarks: int) -> None:
    data, _ = _rings(300)
    x, y = _rings(200, seed=2)
    method = Spectral(SpectralConfig(components=2, landmarks=landmarks), SPEC, Noise.seeded(0))
    method.finish(data)
    clusters = method.predict(x.x)
    assert clusters.dtype == torch.int64
    assert _agrees(clusters, y)
    floor = KMeans(KMeansConfig(components=2), SPEC, Noise.seeded(0))
    floor.finish(data)
    assert not _agrees(floor.predict(x.x), y)


def test_an_example_takes_the_cluster_of_the_landmark_nearest_to_it() -> None:
    data, _ = _rings(100)
    method = Spectral(SpectralConfig(components=3, landmarks=60), SPEC, Noise.seeded(0))
    method.finish(data)
    distance = torch.cdist(data.x.flatten(1), method.points)
    assert torch.equal(method.predict(data.x), method.clusters[distance.argmin(1)])
    assert len(method.points.unique(dim=0)) == 60 and set(method.clusters.tolist()) == {0, 1, 2}
    within = (data.x.flatten(1)[:, None] == method.points).all(2).any(0)
    assert bool(within.all())  # every landmark is a training example


def test_neighbours_are_fewer_than_landmarks() -> None:
    with pytest.raises(ValueError, match="n_neighbors must be below landmarks, got 10 and 10"):
        SpectralConfig(landmarks=10)
