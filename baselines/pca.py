"""Principal components of pixels, for the floors that cluster them."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_axes(pixels: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Mean [P] of pixels double [N, P], and their principal axes, orthonormal columns [P, dimensions], most variance first.

    ValueError: there are fewer pixels than dimensions.
    """
    if dimensions > pixels.shape[1]:
        raise ValueError(f"{dimensions} principal components of {pixels.shape[1]} pixels; lower dimensions")
    mean = pixels.mean(0)
    centred = pixels - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # by growing variance
    return mean, vectors[:, -dimensions:].flip(1)
