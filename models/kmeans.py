"""k-means on any features: scikit-learn fits the centres, torch answers.

Fitting happens on the CPU, once before scoring; answering stays on the device of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fit_centres(features: Tensor, k: int, n_init: int, seed: int) -> Tensor:
    """Centres float [k, D] of features float [N, D], on their device.

    Args:
        n_init: number of k-means++ starts, of which the one with the least inertia is kept.
        seed: of scikit-learn's random state.

    Raises:
        ValueError: fewer features than centres, or a feature that is not finite.
    """
    from sklearn.cluster import KMeans  # here, because it takes a second to import and a table needs none of it

    # float64, so that the order in which threads add up does not show in the labels
    points = features.detach().cpu().double().numpy()
    fitted = KMeans(k, init="k-means++", n_init=n_init, random_state=seed).fit(points)
    return torch.from_numpy(fitted.cluster_centers_).to(features.device, features.dtype)


def nearest(features: Tensor, centres: Tensor) -> Tensor:
    """Id of the nearest centre, int64 [N], of features [N, D] among centres [k, D]; the smaller id wins a tie.

    ‖f - c‖² without its term ‖f‖², which is the same for every centre: one matrix product.
    """
    return (centres.square().sum(1) - 2 * features @ centres.T).argmin(1)
