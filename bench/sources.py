"""What is known of the datasets without loading one; `bench.readers` reads them, `bench.data` splits them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError


@dataclass(frozen=True)
class Source:
    """A dataset; `label` and `note` are its name and footnote in tables.

    `splits` are the ways in which `bench.data` may split it; `n_extra` the further examples of the split "extra".
    """

    name: str
    shape: tuple[int, int, int]
    n_classes: int
    n_train: int
    n_test: int
    scale: float
    label: str
    note: str = ""
    splits: tuple[str, ...] = ("random",)
    n_extra: int = 0


_DRAWN_ONCE = "scikit-learn's 1,797 digits; the 500 test examples were drawn at random once, with a constant seed"
_AVERAGED = "MNIST, each pixel the mean of 2x2 of the original's, rounded"
_CIRCLE = "points in the plane: six Gaussians of std 0.3 whose means lie evenly on a circle of radius 3"
_SVHN = (3, 32, 32), 10, 73_257, 26_032, 1 / 255
_KNOWN = (
    Source("mnist", (1, 28, 28), 10, 60_000, 10_000, 1 / 255, "MNIST", splits=("random", "whole")),
    Source("svhn", *_SVHN, "SVHN", splits=("ali", "train", "extra"), n_extra=531_131),
    Source("digits", (1, 8, 8), 10, 1_297, 500, 1 / 16, "digits 8x8", _DRAWN_ONCE),
    Source("mnist14", (1, 14, 14), 10, 60_000, 10_000, 1 / 255, "MNIST 14x14", _AVERAGED),
    Source("plane", (2, 1, 1), 6, 6_000, 1_000, 1.0, "six Gaussians", _CIRCLE),
    Source("synthetic", (1, 8, 8), 3, 300, 90, 1 / 255, "synthetic stripes", "made-up images for tests"),
)
SOURCES: dict[str, Source] = {source.name: source for source in _KNOWN}


def data_root(root: Path | None) -> Path:
    """The folder of downloaded datasets: `root`, else the environment's AMM_DATA_ROOT, else ./data; absolute."""
    folder = Path(root or os.environ.get("AMM_DATA_ROOT") or "data")
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"data root {folder}: {error}; write it without ~") from None
