"""A Gaussian mixture on pixels or on their principal components, by scikit-learn's EM: a floor for mixtures in a learned code.

p(f) = Σ_k π_k N(f; μ_k, Σ_k), where f are the pixels or their first principal components; a cluster is
argmax_k π_k N(f; μ_k, Σ_k), the classifier of Eq. 19 without a learned embedding. docs/add-a-method.md walks through this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baselines.pca import principal_axes
from models.method import Data, Method, Spec
from models.noise import Noise


@dataclass(frozen=True)
class MixtureConfig:
    """Knobs of the mixture; what is not said otherwise is scikit-learn's default."""

    components: int = 10  # K
    dimensions: int = 0  # principal components that are kept; 0: the pixels themselves
    covariance: Literal["full", "diag"] = "diag"  # of each component
    n_init: int = 3  # starts from k-means, the likeliest is kept; ours
    variance_floor: float = 1e-3  # added to variances, so that a pixel that is always black does no harm; ours

    def __post_init__(self) -> None:
        if self.dimensions < 0:
            raise ValueError(f"dimensions must be at least 0, got {self.dimensions}")


class Mixture(Method):
    """Fitted at once to all training examples; what it knows is kept in buffers, in double precision."""

    Config = MixtureConfig
    iterative = False
    centre: Tensor
    axes: Tensor
    means: Tensor
    scale: Tensor
    log_weights: Tensor

    def __init__(self, config: MixtureConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        pixels, k = math.prod(spec.shape), config.components
        d = config.dimensions or pixels
        shapes = {"centre": (pixels,), "axes": (pixels, d), "means": (k, d), "scale": (k, d, d), "log_weights": (k,)}
        if config.covariance == "diag":
            shapes["scale"] = (k, d)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=noise.device))

    def finish(self, data: Data) -> None:
        """Fits the axes, then the mixture."""
        from sklearn.mixture import GaussianMixture  # here, because it takes a second to import

        c = self.config
        pixels = torch.cat([x.flatten(1) for x in data.batches()]).double()
        if c.dimensions:
            centre, axes = principal_axes(pixels, c.dimensions)
            self.centre.copy_(centre)
            self.axes.copy_(axes)
        features = self.features(pixels).cpu().numpy()
        mixture = GaussianMixture(
            c.components, covariance_type=c.covariance, reg_covar=c.variance_floor, n_init=c.n_init,
            random_state=data.noise.seed(),
        ).fit(features)  # fmt: skip
        self.means.copy_(torch.from_numpy(mixture.means_))
        self.scale.copy_(torch.from_numpy(mixture.precisions_cholesky_))
        self.log_weights.copy_(torch.from_numpy(mixture.weights_).log())

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels [B, P], or their principal components [B, d]."""
        return (pixels - self.centre) @ self.axes if self.config.dimensions else pixels

    def log_joint(self, f: Tensor) -> Tensor:
        """log π_k N(f; μ_k, Σ_k), [B, K], of features double [B, d]."""
        if self.config.covariance == "full":
            whitened = torch.einsum("bkd,kde->bke", f[:, None] - self.means, self.scale)  # Σ⁻¹ = scale scaleᵀ
            log_determinant = self.scale.diagonal(dim1=1, dim2=2).log().sum(1)
        else:
            whitened = (f[:, None] - self.means) * self.scale
            log_determinant = self.scale.log().sum(1)
        constant = 0.5 * f.shape[1] * math.log(2 * math.pi)
        return self.log_weights + log_determinant - constant - 0.5 * whitened.square().sum(2)

    def predict(self, x: Tensor) -> Tensor:
        """The likeliest component, int64 [B]."""
        return self.log_joint(self.embed(x).double()).argmax(1)

    def embed(self, x: Tensor) -> Tensor:
        """What the mixture is fitted to, [B, d]."""
        return self.features(x.flatten(1).double())
