"""Graph-based activity regularisation (Kilinc & Uysal, 2018), which LALNets learns under; this module holds no method."""

from __future__ import annotations

from torch import Tensor


def gar(z: Tensor) -> dict[str, Tensor]:
    """Affinity, balance and coactivity of outputs z [B, k, P], each a mean over the P pseudo classes.

    With U = BᵀB, [k, k], of one class and B = max(z, 0): affinity is how far the duplicates are active on the same images,
    in [0, 1]; balance says the same of v vᵀ, v = diag U, and is 1 when all are equally active; coactivity is Σ U - tr U.
    """
    b = z.clamp_min(0).permute(2, 1, 0)
    u = b @ b.mT
    v = u.diagonal(dim1=1, dim2=2)
    affinity, coactivity = _spread(u)
    return {"affinity": affinity, "balance": _spread(v[:, :, None] * v[:, None])[0], "coactivity": coactivity}


def _spread(u: Tensor) -> tuple[Tensor, Tensor]:
    """Means over matrices [P, k, k] of (Σ U - tr U) / ((k - 1) tr U), with Keras' epsilon, and of Σ U - tr U."""
    trace = u.diagonal(dim1=1, dim2=2).sum(1)
    off = u.sum((1, 2)) - trace
    return (off / ((u.shape[1] - 1) * trace + 1e-7)).mean(), off.mean()
