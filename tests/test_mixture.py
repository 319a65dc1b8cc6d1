"""The Gaussian mixture: densities against torch's distributions, axes against the singular value decomposition, blobs found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from baselines.mixture import Mixture, MixtureConfig
from models.method import Data, Spec
from models.noise import Noise

SPEC = Spec("toy", (1, 2, 3), 3)
MEANS = torch.tensor([[0.1, 0.9, 0.1, 0.1, 0.5, 0.1], [0.9, 0.1, 0.1, 0.9, 0.5, 0.1], [0.1, 0.1, 0.9, 0.9, 0.5, 0.9]])


def _images(n: int = 300) -> tuple[Data, Tensor]:
    """Three blobs, of which the second is long in one direction."""
    y = torch.arange(n) % 3
    noise = Noise.seeded(0)
    x = MEANS[y] + 0.03 * noise.normal(n, 6)
    x[y == 1] += 0.2 * noise.normal(n // 3, 1) * torch.tensor([1.0, 0, 0, -1.0, 0, 0])
    return Data(x.view(n, 1, 2, 3), 1.0, Noise.seeded(1)), y


def _fitted(**config: object) -> Mixture:
    method = Mixture(MixtureConfig(components=3, **config), SPEC, Noise.seeded(0))  # type: ignore[arg-type]
    method.finish(_images()[0])
    return method


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("dimensions", [0, 4])
def test_three_blobs_are_found(covariance: str, dimensions: int) -> None:
    data, y = _images()
    clusters = _fitted(covariance=covariance, dimensions=dimensions).predict(data.x)
    assert clusters.dtype == torch.int64
    assert {(int(c), int(k)) for c, k in zip(clusters, y, strict=True)} == {(int(clusters[i]), i) for i in range(3)}


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_log_joint_is_that_of_torch(covariance: str) -> None:
    method = _fitted(covariance=covariance, dimensions=3)
    f = method.embed(_images()[0].x)
    for k in range(3):
        root = method.scale[k] if covariance == "full" else torch.diag(method.scale[k])
        normal = MultivariateNormal(method.means[k], precision_matrix=root @ root.T)
        assert torch.allclose(method.log_joint(f)[:, k], method.log_weights[k] + normal.log_prob(f))
    assert method.log_weights.exp().sum().item() == pytest.approx(1)


def test_axes_are_the_first_right_singular_vectors() -> None:
    data, _ = _images()
    pixels = data.x.flatten(1).double()
    centred = pixels - pixels.mean(0)
    _, _, vectors = torch.linalg.svd(centred, full_matrices=False)
    method = _fitted(dimensions=2)
    assert torch.allclose((method.axes.T @ vectors[:2].T).abs(), torch.eye(2).double(), atol=1e-6)
    assert torch.allclose(method.embed(data.x).mean(0), torch.zeros(2).double(), atol=1e-9)


def test_fewer_than_no_dimensions() -> None:
    with pytest.raises(ValueError, match="dimensions must be at least 0"):
        MixtureConfig(dimensions=-1)
