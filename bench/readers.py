"""How each dataset is read as it is stored; `bench.official` fetches files, `bench.data` splits what is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import official
from bench.errors import UserError, told
from bench.official import Stored
from bench.sources import SOURCES, Source, data_root


def read(name: str, root: Path | None, extra: bool) -> Stored:
    """The dataset `name` on the CPU, with its further examples if `extra`.

    `root` is as for `data_root`. UserError: files that are damaged or can be neither found nor fetched, or a reader that gives
    other than the Source says.
    """
    folder = data_root(root)
    if name not in _READERS:
        raise UserError(f"data {name}: there is no reader; add one to _READERS in bench/readers.py")
    try:
        stored = _READERS[name](folder, extra)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data {name}: its reader failed: {told(error)}") from None
    for wrong in _wrong(SOURCES[name], stored):
        raise UserError(
            f"data {name}: its reader gave {wrong}; mend it in bench/readers.py, or its Source in bench/sources.py"
        )
    return stored


def _wrong(source: Source, stored: Any) -> Iterator[str]:
    """Where a reader does not keep what `source` promises; of a declared variant the counts may be its own."""
    if not isinstance(stored, Stored):
        yield f"a {type(stored).__name__}, not a Stored"
        return
    sets = [
        ("x", stored.x, "y", stored.y, source.n_train),
        ("x_test", stored.x_test, "y_test", stored.y_test, source.n_test),
    ]
    for images, x, classes, y, n in sets:
        yield from _not_examples(source, images, x, None if stored.variant else n)
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (len(x),):
            yield f"{classes} that are not {len(x)} classes in int64"
        elif not stored.variant and y.unique().tolist() != list(range(source.n_classes)):
            yield f"{classes} with the classes {y.unique().tolist()}, not 0 to {source.n_classes - 1}"
    if stored.x_extra is not None:
        yield from _not_examples(source, "x_extra", stored.x_extra, None if stored.variant else source.n_extra)


def _not_examples(source: Source, name: str, x: Any, n: int | None) -> Iterator[str]:
    if not isinstance(x, Tensor) or x.dtype not in (torch.uint8, torch.float32):
        yield f"{name} that is not a tensor of uint8 or float32"
    elif x.shape[1:] != source.shape or n not in (None, len(x)):
        yield f"{name} of shape {list(x.shape)}, not {['N' if n is None else n, *source.shape]}"


def _mnist14(root: Path, extra: bool) -> Stored:
    """MNIST at half the resolution, still of 256 grey levels."""
    whole = official.mnist(root, extra)
    x, x_test = (F.avg_pool2d(images.float(), 2).round().to(torch.uint8) for images in (whole.x, whole.x_test))
    return replace(whole, x=x, x_test=x_test)


def _digits(root: Path, extra: bool) -> Stored:
    """scikit-learn's digits, grey levels 0..16, with a test set drawn at random (not stratified) once for all."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1), torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(y), generator=torch.Generator("cpu").manual_seed(1797))
    n_test = SOURCES["digits"].n_test
    test, train = order[:n_test].sort().values, order[n_test:].sort().values
    return Stored(x[train], y[train], x[test], y[test])


def _plane(root: Path, extra: bool) -> Stored:
    """Equally many points around each mean, the same ones in every trial; point i has class i mod 6."""
    source = SOURCES["plane"]
    y = torch.arange(source.n_train + source.n_test) % source.n_classes
    angle = y.double() * (2 * math.pi / source.n_classes)
    # drawn in double and rounded once, so that a CPU's vector unit cannot change the last bit
    noise = 0.3 * torch.randn(len(y), 2, dtype=torch.double, generator=torch.Generator("cpu").manual_seed(6))
    x = (3.0 * torch.stack([angle.cos(), angle.sin()], dim=1) + noise).float().view(-1, *source.shape)
    return _divided(x, y, source.n_train)


def _synthetic(root: Path, extra: bool) -> Stored:
    """A bright stripe of two rows on dark noise; class c, which is i mod 3, lights rows 2c and 2c + 1."""
    source = SOURCES["synthetic"]
    y = torch.arange(source.n_train + source.n_test) % source.n_classes
    bright = torch.arange(8) // 2 == y[:, None]
    dark = torch.randint(64, (len(y), *source.shape), generator=torch.Generator("cpu").manual_seed(3))
    return _divided((dark + 160 * bright[:, None, :, None]).to(torch.uint8), y, source.n_train)


def _divided(x: Tensor, y: Tensor, n_train: int) -> Stored:
    return Stored(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


_READERS: dict[str, Callable[[Path, bool], Stored]] = {
    "mnist": official.mnist,
    "mnist14": _mnist14,
    "svhn": official.svhn,
    "digits": _digits,
    "plane": _plane,
    "synthetic": _synthetic,
}
