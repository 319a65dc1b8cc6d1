"""Datasets split by seed and moved whole to the device.

Examples are stored as they come, images as uint8; a float example is the stored one times `Source.scale`. Two digests
say where a number came from: one of all stored bytes, one of the indices of the split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UserError
from bench.readers import read
from bench.sources import SOURCES
from bench.suite import Trial
from models.method import Data, Spec
from models.noise import Noise


@dataclass(frozen=True)
class Dataset:
    """One trial's view of a dataset, all tensors on the device of the trial's noise.

    Attributes:
        train: the unlabelled training examples, the labelled subset among them.
        x_validation, x_test: stored examples [N, C, H, W]; float example = x * scale.
        y_validation, y_test: true classes, int64 [N].
        digest: sha256 of the name and of all stored bytes: training, test, and extra where the split uses them.
        split_digest: sha256 of the indices of the validation and labelled examples, and of a fixed split's name.
        variant: name, digests and notes of files that are not the official ones; empty for the official bytes.
    """

    spec: Spec
    train: Data
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor
    scale: float
    digest: str
    split_digest: str
    variant: dict[str, Any]


def load_for(trial: Trial, noise: Noise, root: Path | None = None) -> Dataset:
    """The dataset of a trial, as `load`."""
    return load(
        trial.data,
        split_seed=trial.split_seed,
        validation=trial.validation,
        noise=noise,
        root=root,
        labels=trial.labels,
        split=trial.split,
        balanced=trial.balanced,
    )


def load(
    name: str,
    *,
    split_seed: int,
    validation: int,
    noise: Noise,
    root: Path | None = None,
    labels: int = 0,
    split: str = "random",
    balanced: bool = False,
) -> Dataset:
    """The dataset `name`, split by `split_seed` alone, on the device of `noise`, which is only handed on.

    Args:
        validation: number of training examples held out.
        labels: number of labelled examples, drawn at random from the other training examples.
        root: folder of downloaded datasets; default the environment's AMM_DATA_ROOT, else ./data.
        split: "random" holds out examples at random; "whole" draws the same ones, but all training and test images are
            learned from without labels and are the test set, as IMSAT and VaDE were published. The others hold out the
            last ones and never label those: "ali" as Dumoulin et al. (2016) did, "train" with the images of all training
            examples among the unlabelled ones, "extra" with the dataset's further images among them.
        balanced: draw equally many labels of every class.

    Raises:
        UserError: unknown name or split, a number out of range, files that are damaged or can be neither found nor fetched.
    """
    source, device = SOURCES.get(name), noise.device
    if source is None:
        raise UserError(f"unknown data {name!r}: choose one of {', '.join(SOURCES)}")
    if split not in source.splits:
        raise UserError(f"split: data {name} has no split {split!r}: choose one of {', '.join(source.splits)}")
    if split == "whole" and labels:
        raise UserError("labels: the split whole scores every example, those with labels too: use another split")
    stored = read(name, root, split == "extra")
    n = len(stored.y)
    for what, value, most in (("validation", validation, n - 1), ("labels", labels, n - validation)):
        if not 0 <= value <= most:
            raise UserError(f"{what}: {value} does not fit data {name}: give a number from 0 to {most}")
    held_out, order = _held_out(n, split_seed, validation, split in ("random", "whole"))
    labelled = _drawn(order, stored.y, labels, source.n_classes, balanced)
    rest = torch.arange(n) if split == "train" else order.sort().values
    x = stored.x[rest] if stored.x_extra is None else torch.cat([stored.x[rest], stored.x_extra])
    x_test, y_test = stored.x_test, stored.y_test
    if split == "whole":
        x = x_test = torch.cat([stored.x, stored.x_test])
        y_test = torch.cat([stored.y, stored.y_test])
    subset = (stored.x[labelled].to(device), stored.y[labelled].to(device)) if labels else (None, None)
    further = [] if stored.x_extra is None else [stored.x_extra]
    return Dataset(
        spec=Spec(name, source.shape, source.n_classes),
        train=Data(x.to(device), source.scale, noise, *subset),
        x_validation=stored.x[held_out].to(device),
        y_validation=stored.y[held_out].to(device),
        x_test=x_test.to(device),
        y_test=y_test.to(device),
        scale=source.scale,
        digest=_digest(name, stored.x, stored.y, stored.x_test, stored.y_test, *further),
        split_digest=_digest("split" if split == "random" else f"split {split}", held_out, labelled),
        variant=stored.variant,
    )


def _held_out(n: int, seed: int, validation: int, at_random: bool) -> tuple[Tensor, Tensor]:
    """Sorted indices of the held-out examples, and those of the others in random order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    if at_random:
        order = torch.randperm(n, generator=generator)
        return order[:validation].sort().values, order[validation:]
    return torch.arange(n - validation, n), torch.randperm(n - validation, generator=generator)


def _drawn(order: Tensor, y: Tensor, labels: int, n_classes: int, balanced: bool) -> Tensor:
    """Sorted indices of the first `labels` examples of `order`, or of the first ones of each class."""
    if not balanced:
        return order[:labels].sort().values
    each, over = divmod(labels, n_classes)
    chosen = [order[y[order] == c][:each] for c in range(n_classes)]
    if over or any(len(index) < each for index in chosen):
        fewest = int(torch.bincount(y[order], minlength=n_classes).min())
        raise UserError(
            f"labels: {labels} cannot be balanced over {n_classes} classes: give a multiple of {n_classes}, at most "
            f"{fewest * n_classes}"
        )
    return torch.cat(chosen).sort().values


def _digest(name: str, *tensors: Tensor) -> str:
    """sha256 of a name and of dtype, shape and bytes of some tensors."""
    sha = hashlib.sha256(name.encode())
    for tensor in tensors:
        sha.update(f"|{tensor.dtype}{tuple(tensor.shape)}|".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()
