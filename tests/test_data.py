"""Datasets: splits depend on the split seed alone, stored bytes are checked, nothing half-written stays."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from bench import data
from bench.data import SOURCES, Dataset
from bench.errors import UserError
from models.noise import Noise

Files = dict[str, bytes]
Patch = pytest.MonkeyPatch
MIRROR = "torchvision.datasets.mnist.download_and_extract_archive"
SMALL = ["digits", "plane", "synthetic"]


def _load(name: str, seed: int = 1, validation: int = 60, labels: int = 0, **more: object) -> Dataset:
    noise = more.pop("noise", None) or Noise.seeded(0)
    return data.load(name, split_seed=seed, validation=validation, labels=labels, noise=noise, **more)  # type: ignore


def _rows(x: Tensor) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in x)


def _stripe(x: Tensor) -> Tensor:
    """The classes of synthetic images, read off the images."""
    return x.sum(dim=(1, 3)).argmax(dim=1) // 2


def _idx(x: Tensor) -> bytes:
    """A tensor in the IDX format of bytes."""
    x = x.to(torch.uint8)
    return bytes([0, 0, 8, x.ndim]) + b"".join(n.to_bytes(4, "big") for n in x.shape) + x.numpy().tobytes()


def _write(root: Path, contents: Files) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    return raw


@pytest.fixture
def fake(monkeypatch: Patch, tmp_path: Path) -> Files:
    """Tiny files that pass for the official ones, no data root in the environment, and no network."""
    contents: Files = {}
    for part, n in (("train", 40), ("t10k", 10)):
        pixels = torch.randint(256, (n, 28, 28), generator=torch.Generator().manual_seed(n))
        contents |= {f"{part}-images-idx3-ubyte": _idx(pixels), f"{part}-labels-idx1-ubyte": _idx(torch.arange(n) % 10)}
    known = {name: (len(contents[name]), hashlib.sha256(contents[name]).hexdigest()) for name in data.MNIST_FILES}
    monkeypatch.setattr(data, "MNIST_FILES", known)
    monkeypatch.delenv("AMM_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", None)
    return contents


def _message(**arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        _load("mnist", validation=5, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SMALL)
def test_sets_are_what_their_source_says(name: str) -> None:
    source, found = SOURCES[name], _load(name, validation=0)
    lengths = {source.n_train: found.train.x, source.n_test: found.x_test, 0: found.x_validation}
    assert all(x.shape == (n, *source.shape) for n, x in lengths.items())
    assert found.y_test.dtype == torch.int64 and set(found.y_test.tolist()) == set(range(source.n_classes))
    assert found.train.x.dtype == (torch.float32 if name == "plane" else torch.uint8) == found.x_test.dtype
    assert (found.spec.data, found.spec.shape, found.spec.n_classes) == (name, source.shape, source.n_classes)
    assert found.scale == found.train.scale == source.scale
    assert found.train.x_labelled is None and found.train.y_labelled is None


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


def test_labelled_examples_come_with_their_own_classes_from_outside_validation() -> None:
    found = _load("synthetic", labels=24)
    x, y = found.train.x_labelled, found.train.y_labelled
    assert x is not None and y is not None and x.dtype == torch.uint8 and x.shape == (24, 1, 8, 8)
    assert set(_rows(x)) <= set(_rows(found.train.x)) - set(_rows(found.x_validation))
    assert torch.equal(_stripe(x), y) and torch.equal(_stripe(found.x_validation), found.y_validation)


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


@pytest.mark.parametrize(("validation", "labels"), [(-1, 0), (300, 0), (200, 101), (0, -1)])
def test_numbers_out_of_range(validation: int, labels: int) -> None:
    with pytest.raises(UserError, match=f"{'labels' if labels else 'validation'}: .*synthetic.* from 0 to"):
        _load("synthetic", validation=validation, labels=labels)
    assert len(_load("synthetic", validation=200, labels=100).train) == 100
    with pytest.raises(UserError, match="'mnits'.*mnist, digits"):
        _load("mnits")


def test_present_files_need_no_socket(fake: Files, tmp_path: Path) -> None:
    _write(tmp_path / "here", fake)
    found = _load("mnist", validation=15, root=tmp_path / "here")
    assert found.train.x.shape == (25, 1, 28, 28) and found.x_test.shape == (10, 1, 28, 28)
    assert found.x_test.numpy().tobytes() == fake["t10k-images-idx3-ubyte"][16:]
    assert found.y_test.tolist() == list(range(10))


def test_root_is_the_argument_then_the_environment_then_data(fake: Files, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(MIRROR, _unreachable)
    _write(tmp_path / "data", fake)
    assert len(_load("mnist", validation=0).train) == 40
    monkeypatch.setenv("AMM_DATA_ROOT", str(tmp_path / "empty"))
    assert str(tmp_path / "empty" / "MNIST" / "raw") in _message()
    assert str(tmp_path / "none" / "MNIST" / "raw") in _message(root=tmp_path / "none")
    assert len(_load("mnist", validation=0, root=tmp_path / "data").train) == 40
    monkeypatch.setenv("AMM_DATA_ROOT", "")
    assert len(_load("mnist", validation=0).train) == 40


@pytest.mark.parametrize("name", list(data.MNIST_FILES))
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "page"])
def test_damaged_file_is_named(fake: Files, tmp_path: Path, name: str, damage: str) -> None:
    good = fake[name]
    bad = {"empty": b"", "cut": good[:-1], "flipped": good[:-1] + bytes([good[-1] ^ 1]), "page": b"<html>403</html>"}
    raw = _write(tmp_path, fake | {name: bad[damage]})
    message = _message(root=tmp_path)
    assert str(raw / name) in message and f"{len(bad[damage])} bytes" in message and f"{len(good)} bytes" in message
    assert hashlib.sha256(good).hexdigest()[:12] in message and "delete it" in message
    assert (raw / name).read_bytes() == bad[damage]


def _unreachable(url: str, download_root: str, **more: object) -> None:
    raise URLError("Name or service not known")


def _breaks_off(url: str, download_root: str, filename: str, **more: object) -> None:
    (Path(download_root) / filename.removesuffix(".gz")).write_bytes(b"half")
    raise TimeoutError("timed out")


@pytest.mark.parametrize(("serve", "reason"), [(_unreachable, "Name or service"), (_breaks_off, "timed out")])
def test_no_network(fake: Files, tmp_path: Path, monkeypatch: Patch, serve: object, reason: str) -> None:
    monkeypatch.setattr(MIRROR, serve)
    message = _message(root=tmp_path / "root")
    assert str(tmp_path / "root" / "MNIST" / "raw") in message and reason in message
    assert "https://" in message and "--data-root" in message and "AMM_DATA_ROOT" in message
    assert list((tmp_path / "root").rglob("*")) == [] and socket.getdefaulttimeout() is None


def test_root_that_cannot_be_written_or_read(fake: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be fetched" in _message(root=tmp_path / "file" / "root")
    raw = _write(tmp_path, {name: content for name, content in fake.items() if "t10k-l" not in name})
    (raw / "t10k-labels-idx1-ubyte").mkdir()
    assert "cannot read" in _message(root=tmp_path)


def test_download_lands_whole_and_silently(
    fake: Files, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(url: str, download_root: str, filename: str, md5: str) -> None:
        print("100%", filename)
        (Path(download_root) / filename).write_bytes(b"compressed")
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(fake[filename.removesuffix(".gz")])

    monkeypatch.setattr(MIRROR, serve)
    raw = _write(tmp_path, {"t10k-labels-idx1-ubyte": b"the user's own"})
    assert str(raw / "t10k-labels-idx1-ubyte") in _message(root=tmp_path)  # checked, not replaced
    (raw / "t10k-labels-idx1-ubyte").unlink()
    assert len(_load("mnist", validation=5, root=tmp_path).train) == 35
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(fake)
    assert capsys.readouterr().out == ""


@pytest.mark.data
@pytest.mark.skipif("AMM_DATA_ROOT" not in os.environ, reason="AMM_DATA_ROOT names no folder with MNIST")
def test_official_mnist() -> None:
    found = _load("mnist", validation=10_000, labels=50_000)
    assert len(found.train) == 50_000 and found.x_test.shape == (10_000, 1, 28, 28)
    assert found.train.y_labelled is not None
    every = torch.cat([found.train.y_labelled, found.y_validation])
    assert every.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert found.y_test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
