"""Where VaDE starts: an autoencoder trained by itself, and a Gaussian mixture of its codes; this module holds no method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.losses import descend
from models.method import Data


def fit_autoencoder(
    reconstruct: Callable[[Tensor], Tensor], nets: Sequence[Tensor], data: Data, epochs: int, batch: int, rate: float
) -> None:
    """Adam on the mean squared error of `reconstruct`, whose parameters are `nets`; the last batch of an epoch may be small."""
    adam = torch.optim.Adam(nets, rate, fused=True)
    for _ in range(epochs):
        for index in data.noise.permutation(len(data)).split(batch):
            x = data.take(index)
            descend(F.mse_loss(reconstruct(x), x), nets, adam)


def fit_mixture(codes: Tensor, k: int, floor: float, n_init: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means and variances, each [K, d], of a diagonal Gaussian mixture of codes [N, d], by scikit-learn on the CPU.

    `floor` is added to the variances; of `n_init` starts the likeliest is kept.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    how = {"reg_covar": floor, "n_init": n_init, "random_state": seed}
    model = GaussianMixture(k, covariance_type="diag", **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is only a start
        model.fit(codes.cpu().double().numpy())
    return torch.from_numpy(model.means_).to(codes), torch.from_numpy(model.covariances_).to(codes)
