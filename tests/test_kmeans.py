"""k-means: the nearest centre by brute force, recovered blobs, the method itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines.kmeans import KMeans
from models.kmeans import fit_centres, nearest
from models.method import Data, Spec
from models.noise import Noise

MEANS = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
SPEC = Spec("toy", (1, 2, 2), 3)


def blobs() -> tuple[Tensor, Tensor]:
    """Four blobs of 50 points around MEANS, and where each point belongs."""
    y = torch.arange(200) % 4
    return MEANS[y] + 0.1 * Noise.seeded(0).normal(200, 2), y


def images(seed: int = 0) -> Data:
    """90 images with one of three bright pixels, stored as bytes."""
    y = torch.arange(90) % 3
    x = (20 * Noise.seeded(1).uniform(90, 4)).to(torch.uint8)
    x[torch.arange(90), y] += 200
    return Data(x.view(90, 1, 2, 2), 1 / 255, Noise.seeded(seed))


def fitted(data: Data, **config: int) -> KMeans:
    method = KMeans(KMeans.Config(**config), SPEC, Noise.seeded(0))
    method.finish(data)
    return method


def test_of_several_starts_the_best_is_kept() -> None:
    noise = Noise.seeded(3)
    features = noise.normal(300, 2) + 8 * noise.normal(30, 2).repeat(10, 1)
    inertia = lambda n, seed: float(torch.cdist(features, fit_centres(features, 30, n, seed)).amin(1).square().sum())
    assert all(inertia(10, seed) <= inertia(1, seed) for seed in range(3))
    assert any(inertia(10, seed) < 0.99 * inertia(1, seed) for seed in range(3))


def test_nearest_is_the_brute_force_answer() -> None:
    noise = Noise.seeded(2)
    features, centres = noise.normal(500, 7), noise.normal(13, 7)
    answer = nearest(features, centres)
    assert answer.dtype == torch.int64
    assert torch.equal(answer, torch.cdist(features, centres).argmin(1))


def test_nearest_gives_a_tie_to_the_smaller_id() -> None:
    assert nearest(torch.zeros(1, 2), torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist() == [1]


def test_fit_centres_finds_separated_blobs() -> None:
    x, y = blobs()
    centres = fit_centres(x, 4, 3, seed=0)
    assert centres.shape == (4, 2)
    assert centres.dtype == torch.float32
    order = nearest(MEANS, centres)
    expected = torch.stack([x[y == i].mean(0) for i in range(4)])
    torch.testing.assert_close(centres[order], expected)


def test_fit_centres_depends_on_nothing_but_its_arguments() -> None:
    x = Noise.seeded(3).normal(100, 5)
    first = fit_centres(x, 8, 1, seed=4)
    torch.manual_seed(99)
    assert torch.equal(first, fit_centres(x, 8, 1, seed=4))
    assert not torch.equal(first, fit_centres(x, 8, 1, seed=5))


def test_fit_centres_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="n_clusters=4"):
        fit_centres(torch.zeros(3, 2), 4, 1, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        fit_centres(torch.full((9, 2), torch.nan), 4, 1, seed=0)


def test_method_groups_images_that_share_a_pixel() -> None:
    data = images()
    method = fitted(data, components=3)
    predicted = method.predict(data.take(torch.arange(90)))
    assert len(set(predicted[:3].tolist())) == 3
    assert torch.equal(predicted, predicted[:3].repeat(30))


def test_centres_are_pixels_in_the_unit_interval_and_are_saved() -> None:
    method = fitted(images(), components=3)
    assert not KMeans.iterative
    assert method.state_dict()["centres"].shape == (3, 4)
    assert 0.5 < float(method.centres.max()) <= 1


def test_finish_replaces_the_centres() -> None:
    once, data = fitted(images(), components=2), images()
    again = fitted(Data(255 - data.x, data.scale, data.noise), components=2)
    again.finish(images())
    assert torch.equal(once.centres, again.centres)


def test_an_empty_method_counts_its_centres_from_the_config() -> None:
    method = KMeans(KMeans.Config(components=7), SPEC, Noise.seeded(0))
    assert method.centres.shape == (7, 4)
    assert not list(method.parameters())


def test_on_principal_components_it_clusters_what_they_keep() -> None:
    data = images()
    method = fitted(data, components=3, dimensions=2)
    x = data.take(torch.arange(90)).flatten(1)
    u, s, _ = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    assert torch.allclose(method.embed(x).double().abs(), (u * s)[:, :2].abs(), atol=1e-5)
    assert method.state_dict().keys() == {"centres", "mean", "axes"} and method.centres.shape == (3, 2)
    assert torch.equal(method.predict(x), nearest(x, method.centres @ method.axes.T + method.mean))
    assert set(fitted(data, components=3).state_dict()) == {"centres"}  # as before there was a choice


def test_more_components_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="5 principal components of 4 pixels"):
        fitted(images(), components=3, dimensions=5)


def test_a_negative_number_of_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions must be at least 0, got -1"):
        KMeans.Config(dimensions=-1)
