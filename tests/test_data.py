"""Datasets: what the embedded ones hold, and splits that depend on the split seed alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import data, official, readers
from bench.data import Dataset
from bench.errors import UserError
from bench.official import Stored
from bench.sources import SOURCES
from models.noise import Noise

FROM_FILES = ("mnist", "mnist14", "svhn")
SMALL = [name for name in SOURCES if name not in FROM_FILES]
FIXED = ["ali", "train", "extra"]
N, HELD_OUT = 150, 50  # of the house numbers below


def _load(name: str, seed: int = 1, validation: int = 60, labels: int = 0, **more: object) -> Dataset:
    noise = more.pop("noise", None) or Noise.seeded(0)
    return data.load(name, split_seed=seed, validation=validation, labels=labels, noise=noise, **more)  # type: ignore


def _rows(x: Tensor) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in x)


def _stripe(x: Tensor) -> Tensor:
    """The classes of synthetic images, read off the images."""
    return x.sum(dim=(1, 3)).argmax(dim=1) // 2


# the embedded sets


def test_mnist14_is_the_mean_of_four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(2 * 784).view(2, 1, 28, 28).remainder(256).to(torch.uint8)
    y = torch.tensor([3, 4])
    monkeypatch.setattr(official, "mnist", lambda root, extra: Stored(x, y, x.flip(0), y, variant={"name": "made up"}))
    got = readers.read("mnist14", None, False)
    by_hand = x.double().view(2, 1, 14, 2, 14, 2).mean((3, 5)).round().to(torch.uint8)
    assert got.x.dtype == torch.uint8 and torch.equal(got.x, by_hand) and torch.equal(got.x_test, by_hand.flip(0))
    assert torch.equal(got.y, y) and SOURCES["mnist14"].shape == tuple(got.x.shape[1:])


X, Y = torch.zeros(300, 1, 8, 8, dtype=torch.uint8), torch.arange(300) % 3
GOOD = Stored(X, Y, X[:90], Y[:90])


@pytest.mark.parametrize(
    ("stored", "part"),
    [
        (None, "a NoneType, not a Stored"),
        (replace(GOOD, x=X.numpy()), "x that is not a tensor of uint8 or float32"),
        (replace(GOOD, x_test=X[:90].double()), "x_test that is not a tensor of uint8 or float32"),
        (replace(GOOD, x=X[:150], y=Y[:150]), r"x of shape \[150, 1, 8, 8\], not \[300, 1, 8, 8\]"),
        (replace(GOOD, x=X.view(300, 64)), r"x of shape \[300, 64\], not \[300, 1, 8, 8\]"),
        (replace(GOOD, y=Y[:299]), "y that are not 300 classes in int64"),
        (replace(GOOD, y_test=Y[:90].int()), "y_test that are not 90 classes in int64"),
        (replace(GOOD, y=0 * Y), r"y with the classes \[0\], not 0 to 2"),
        (replace(GOOD, y=Y + 1), r"y with the classes \[1, 2, 3\], not 0 to 2"),
        (replace(GOOD, x_extra=X), r"x_extra of shape \[300, 1, 8, 8\], not \[0, 1, 8, 8\]"),
    ],
)
def test_a_reader_that_gives_other_than_its_source_says(
    stored: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(readers._READERS, "synthetic", lambda root, extra: GOOD)
    assert readers.read("synthetic", None, False) is GOOD
    monkeypatch.setitem(readers._READERS, "synthetic", lambda root, extra: stored)
    with pytest.raises(
        UserError, match=f"^data synthetic: its reader gave {part}; mend it in bench/readers.py, or its Source"
    ):
        readers.read("synthetic", None, False)


def test_a_reader_that_fails_or_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readers._READERS, "synthetic", lambda root, extra: (root / "absent/file").read_bytes())
    with pytest.raises(UserError, match=r"data synthetic: its reader failed: FileNotFoundError: .*absent/file"):
        readers.read("synthetic", None, False)
    monkeypatch.delitem(readers._READERS, "synthetic")
    with pytest.raises(UserError, match="data synthetic: there is no reader; add one to _READERS"):
        readers.read("synthetic", None, False)


def test_every_source_has_a_reader() -> None:
    assert set(readers._READERS) == set(SOURCES)


@pytest.mark.parametrize("name", SMALL)
def test_sets_are_what_their_source_says(name: str) -> None:
    source, found = SOURCES[name], _load(name, validation=0)
    lengths = {source.n_train: found.train.x, source.n_test: found.x_test, 0: found.x_validation}
    assert all(x.shape == (n, *source.shape) for n, x in lengths.items())
    assert found.y_test.dtype == torch.int64 and set(found.y_test.tolist()) == set(range(source.n_classes))
    assert found.train.x.dtype == (torch.float32 if source.scale == 1 else torch.uint8) == found.x_test.dtype
    assert (found.spec.data, found.spec.shape, found.spec.n_classes) == (name, source.shape, source.n_classes)
    assert found.scale == found.train.scale == source.scale
    assert found.train.x_labelled is None and found.train.y_labelled is None
    assert found.variant == {} and source.splits == ("random",) and source.n_extra == 0


def test_class_counts() -> None:
    digits, plane = _load("digits", labels=1237), _load("plane", labels=5940)
    assert digits.train.y_labelled is not None and plane.train.y_labelled is not None
    every = torch.cat([digits.train.y_labelled, digits.y_validation, digits.y_test])
    assert digits.train.x.max() == 16
    assert every.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.cat([plane.train.y_labelled, plane.y_validation]).bincount().tolist() == [1000] * 6
    assert plane.y_test.bincount().tolist() == [167] * 4 + [166] * 2


def test_plane_is_six_gaussians_on_a_circle() -> None:
    found = _load("plane", validation=5999)
    for c in range(6):
        points = found.x_validation[found.y_validation == c].flatten(1)
        mean = 3 * torch.polar(torch.ones(()), torch.tensor(c * torch.pi / 3))
        assert torch.allclose(points.mean(0), torch.view_as_real(mean), atol=0.05)
        assert torch.allclose(points.std(0), torch.tensor(0.3), atol=0.03)


@pytest.mark.parametrize("name", SMALL)
def test_digest_is_stable_and_of_this_set(name: str) -> None:
    assert _load(name, 1).digest == _load(name, 2, validation=3, labels=4).digest
    assert len({_load(other).digest for other in SMALL}) == len(SMALL)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_take_and_batches_give_floats_in_the_unit_interval(name: str) -> None:
    train = _load(name).train
    some = train.take(torch.tensor([2, 0]))
    assert some.dtype == torch.float32 and some.shape == (2, 1, 8, 8)
    assert torch.allclose(some[1], train.x[0].float() * SOURCES[name].scale)
    everything = torch.cat(list(train.batches(100)))
    assert len(everything) == len(train) and everything.min() >= 0 and 0.5 < everything.max() <= 1
    assert train.x.dtype == torch.uint8


# the split "random"


@pytest.mark.parametrize("name", SMALL)
def test_split_is_a_partition_of_the_training_examples(name: str) -> None:
    whole, found = _load(name, validation=0), _load(name, validation=60)
    assert len(found.x_validation) == len(found.y_validation) == 60 and len(whole.y_validation) == 0
    together = torch.cat([found.x_validation, found.train.x])
    assert _rows(together) == _rows(whole.train.x)
    assert not set(_rows(together)) & set(_rows(found.x_test))


def test_split_depends_on_the_seed_alone() -> None:
    worn, before = Noise.seeded(5), torch.get_rng_state()
    worn.normal(1000)
    first, same, other = _load("digits", 3, labels=9), _load("digits", 3, labels=9, noise=worn), _load("digits", 4)
    assert same.train.noise is worn and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x_validation, same.x_validation) and torch.equal(first.train.x, same.train.x)
    assert first.train.x_labelled is not None and same.train.x_labelled is not None
    assert torch.equal(first.train.x_labelled, same.train.x_labelled)
    assert first.split_digest == same.split_digest != other.split_digest
    assert not torch.equal(first.x_validation, other.x_validation)
    assert first.digest == other.digest and torch.equal(first.x_test, other.x_test)


def test_split_digest_tells_validation_from_labelled() -> None:
    assert len({_load("digits", 1, v, n).split_digest for v, n in ((0, 0), (10, 0), (0, 10), (5, 5))}) == 4


def _hashed(name: str, *indices: Tensor) -> str:
    """A split digest, written out."""
    text = name.encode()
    for index in indices:
        text += f"|torch.int64({len(index)},)|".encode() + index.numpy().astype("<i8").tobytes()
    return hashlib.sha256(text).hexdigest()


def test_random_split_is_the_head_of_a_permutation() -> None:
    """Records that were made before there were other splits carry this digest."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(7))
    held_out, labelled, rest = order[:60].sort()[0], order[60:84].sort()[0], order[60:].sort()[0]
    every, found = _load("synthetic", validation=0).train.x, _load("synthetic", 7, labels=24)
    assert found.split_digest == _hashed("split", held_out, labelled)
    assert torch.equal(found.x_validation, every[held_out]) and torch.equal(found.train.x, every[rest])
    assert found.train.x_labelled is not None and torch.equal(found.train.x_labelled, every[labelled])


def test_labelled_examples_come_with_their_own_classes_from_outside_validation() -> None:
    found = _load("synthetic", labels=24)
    x, y = found.train.x_labelled, found.train.y_labelled
    assert x is not None and y is not None and x.dtype == torch.uint8 and x.shape == (24, 1, 8, 8)
    assert set(_rows(x)) <= set(_rows(found.train.x)) - set(_rows(found.x_validation))
    assert torch.equal(_stripe(x), y) and torch.equal(_stripe(found.x_validation), found.y_validation)


@pytest.mark.parametrize(("validation", "labels"), [(-1, 0), (300, 0), (200, 101), (0, -1)])
def test_numbers_out_of_range(validation: int, labels: int) -> None:
    with pytest.raises(UserError, match=f"{'labels' if labels else 'validation'}: .*synthetic.* from 0 to"):
        _load("synthetic", validation=validation, labels=labels)
    assert len(_load("synthetic", validation=200, labels=100).train) == 100
    with pytest.raises(UserError, match="'mnits'.*mnist, svhn, digits"):
        _load("mnits")


# the fixed splits, on made-up house numbers


def _numbers(first: int, n: int) -> Tensor:
    """Images that tell their index: every pixel of image i is first + i."""
    return torch.arange(first, first + n).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()


def _classes(n: int) -> Tensor:
    """Class 0 most often; 5 only among the first ones, 9 but three times before the last HELD_OUT."""
    y = torch.arange(n) % 9 * (torch.arange(n) % 4 > 0)
    y[y == 5] = 0
    y[:12] = 5
    y[[20, 40, 60]] = 9
    y[n - HELD_OUT :: 2] = 9
    return y


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stands in for SVHN's files; notes of each reading whether the further images were asked for."""
    asked: list[bool] = []

    def reader(root: object, extra: bool) -> Stored:
        asked.append(extra)
        further = _numbers(200, 30) if extra else None
        return Stored(_numbers(0, N), _classes(N), _numbers(240, 10), torch.arange(10), further, {"name": "made up"})

    monkeypatch.setitem(readers._READERS, "svhn", reader)
    return asked


def _svhn(split: str = "ali", seed: int = 1, labels: int = 0, **more: object) -> Dataset:
    return _load("svhn", seed, HELD_OUT, labels, split=split, **more)


def _ids(x: Tensor | None) -> list[int]:
    assert x is not None and x.dtype == torch.uint8 and x.shape[1:] == (3, 32, 32)
    assert torch.equal(x, x[:, :1, :1, :1].expand_as(x))
    return x[:, 0, 0, 0].tolist()


def test_whole_learns_from_and_is_scored_on_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.arange(170, dtype=torch.uint8).view(170, 1, 1, 1).expand(170, 1, 28, 28), torch.arange(170) % 10
    stored = Stored(x[:150], y[:150], x[150:], y[150:], None, {"name": "made up"})
    monkeypatch.setitem(readers._READERS, "mnist", lambda root, extra: stored)
    random, whole = (_load("mnist", 1, 60, split=split) for split in ("random", "whole"))
    assert torch.equal(whole.train.x, x) and torch.equal(whole.x_test, x) and torch.equal(whole.y_test, y)
    assert len(random.train.x) == 90 and torch.equal(random.x_test, x[150:])
    assert torch.equal(whole.x_validation, random.x_validation) and torch.equal(whole.y_validation, random.y_validation)
    assert whole.digest == random.digest and whole.split_digest != random.split_digest
    with pytest.raises(UserError, match="labels: the split whole scores every example, those with labels too"):
        _load("mnist", 1, 60, 20, split="whole")


@pytest.mark.parametrize("split", FIXED)
def test_fixed_splits_hold_out_the_last_and_label_the_others(reads: list[bool], split: str) -> None:
    found = _svhn(split, labels=40)
    further = {"ali": range(0), "train": range(N - HELD_OUT, N), "extra": range(200, 230)}[split]
    assert _ids(found.train.x) == [*range(N - HELD_OUT), *further]
    assert _ids(found.x_validation) == list(range(N - HELD_OUT, N)) and _ids(found.x_test) == list(range(240, 250))
    assert torch.equal(found.y_validation, _classes(N)[-HELD_OUT:]) and torch.equal(found.y_test, torch.arange(10))
    labelled = _ids(found.train.x_labelled)
    assert len(set(labelled)) == 40 and max(labelled) < N - HELD_OUT and labelled == sorted(labelled)
    assert found.train.y_labelled is not None and found.train.y_labelled.tolist() == _classes(N)[labelled].tolist()
    assert reads == [split == "extra"] and found.variant == {"name": "made up"}


def test_fixed_splits_label_the_same_examples(reads: list[bool]) -> None:
    found = [_ids(_svhn(split, labels=20).train.x_labelled) for split in FIXED]
    assert found[0] == found[1] == found[2]
    order = torch.randperm(N - HELD_OUT, generator=torch.Generator().manual_seed(1))
    assert found[0] == sorted(order[:20].tolist())
    assert found[0] != _ids(_svhn(seed=2, labels=20).train.x_labelled)


def test_digest_is_of_all_that_was_read(reads: list[bool]) -> None:
    ali, train, extra = (_svhn(split, seed) for seed, split in enumerate(FIXED))
    assert ali.digest == train.digest != extra.digest


def test_every_fixed_split_has_a_digest_of_its_own(reads: list[bool]) -> None:
    held_out = torch.arange(N - HELD_OUT, N)
    assert _svhn("train", 3).split_digest == _hashed("split train", held_out, held_out[:0])
    differ: list[dict[str, Any]] = [
        {},
        {"seed": 2},
        {"labels": 30},
        {"balanced": True},
        {"split": "train"},
        {"split": "extra"},
    ]
    found = [_svhn(**{"seed": 1, "labels": 20, **change}).split_digest for change in differ]
    assert len(set(found)) == len(differ)


@pytest.mark.parametrize(
    ("name", "split", "known"), [("digits", "ali", "random"), ("svhn", "random", ", ".join(FIXED))]
)
def test_unknown_split(reads: list[bool], name: str, split: str, known: str) -> None:
    with pytest.raises(UserError, match=f"split: .*{name}.*'{split}': choose one of {known}$"):
        _load(name, split=split)


# equally many of each class


@pytest.mark.parametrize("split", FIXED)
def test_balanced_draws_the_first_of_every_class(reads: list[bool], split: str) -> None:
    found, order = _svhn(split, 4, 30, balanced=True), torch.randperm(100, generator=torch.Generator().manual_seed(4))
    y, taken = _classes(N).tolist(), dict[int, list[int]]()
    for i in order.tolist():
        if len(taken.setdefault(y[i], [])) < 3:
            taken[y[i]].append(i)
    assert found.train.y_labelled is not None and found.train.y_labelled.bincount().tolist() == [3] * 10
    assert _ids(found.train.x_labelled) == sorted(i for several in taken.values() for i in several)


def test_balanced_draws_at_random_where_the_split_is_random() -> None:
    first, other = (_load("synthetic", seed, labels=30, balanced=True) for seed in (1, 2))
    assert first.train.y_labelled is not None and first.train.y_labelled.bincount().tolist() == [10] * 3
    assert first.train.x_labelled is not None and other.train.x_labelled is not None
    assert not torch.equal(first.train.x_labelled, other.train.x_labelled)
    assert set(_rows(first.train.x_labelled)) <= set(_rows(first.train.x))


def test_draws_are_not_balanced_unless_asked(reads: list[bool]) -> None:
    counts = [_svhn(seed=seed, labels=30).train.y_labelled for seed in range(5)]
    assert all(y is not None and y.bincount(minlength=10).tolist() != [3] * 10 for y in counts)
    assert _svhn(labels=0, balanced=True).train.x_labelled is None


@pytest.mark.parametrize("labels", [25, 31, 40])
def test_labels_that_cannot_be_balanced(reads: list[bool], labels: int) -> None:
    """Class 9 has three examples that are not held out, so 40 is a multiple, yet too many."""
    with pytest.raises(UserError, match=f"labels: {labels} .*10 classes: give a multiple of 10, at most 30$"):
        _svhn(labels=labels, balanced=True)


def test_unknown_split_is_refused_before_anything_is_read(reads: list[bool]) -> None:
    with pytest.raises(UserError):
        _load("svhn", split="random")
    assert reads == []
