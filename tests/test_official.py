"""Datasets in files: stored bytes are checked and parsed as they are, nothing half-written stays, nothing is replaced."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.io import savemat

from bench import data, official, readers
from bench.errors import UserError
from bench.official import Stored
from models.noise import Noise

Files = dict[str, bytes]
Patch = pytest.MonkeyPatch
MNIST_MIRROR = "torchvision.datasets.mnist.download_and_extract_archive"
SVHN_MIRROR = "torchvision.datasets.utils.download_url"
COUNTS = {"train": (4, 11, 8, 7, 6, 6, 5, 5, 4, 4), "test": (2, 4, 3, 2, 2, 2, 2, 1, 1, 1)}
SIZES = {"train": 60, "test": 20, "extra": 30}
NAMES = {"train": "train_32x32.mat", "test": "test_32x32.mat", "extra": "extra_32x32.mat"}


class Shut(socket.socket):
    """No socket."""

    def __init__(self, *_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")


@pytest.fixture(autouse=True)
def alone(monkeypatch: Patch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Neither network nor, unless the test is about real files, a data root in the environment."""
    monkeypatch.setattr(socket, "socket", Shut)
    monkeypatch.chdir(tmp_path)
    if "data" not in request.keywords:
        monkeypatch.delenv("AMM_DATA_ROOT", raising=False)


def _refused(read: Callable[[], object]) -> str:
    """The one line that tells a user what is wrong."""
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# MNIST


def _idx(*shape: int) -> bytes:
    """Made-up pixels or, with one dimension, the classes 0 to 9 in turn, in the IDX format of bytes."""
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(shape[0]))
    x = (pixels if len(shape) > 1 else torch.arange(*shape) % 10).to(torch.uint8)
    return bytes([0, 0, 8, x.ndim]) + b"".join(n.to_bytes(4, "big") for n in shape) + x.numpy().tobytes()


@pytest.fixture
def fake(monkeypatch: Patch) -> Files:
    """Tiny files that pass for MNIST's."""
    contents: Files = {}
    for part, n in (("train", 40), ("t10k", 10)):
        contents |= {f"{part}-images-idx3-ubyte": _idx(n, 28, 28), f"{part}-labels-idx1-ubyte": _idx(n)}
    known = {name: (len(contents[name]), hashlib.sha256(contents[name]).hexdigest()) for name in official.MNIST_FILES}
    monkeypatch.setattr(official, "MNIST_FILES", known)
    monkeypatch.setitem(readers.SOURCES, "mnist", replace(readers.SOURCES["mnist"], n_train=40, n_test=10))
    return contents


def _mnist(root: Path | None) -> Stored:
    return readers.read("mnist", root, False)


def _write(root: Path, contents: Files) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    return raw


@pytest.mark.fault(17)
def test_present_files_need_no_socket(fake: Files, tmp_path: Path) -> None:
    _write(tmp_path / "here", fake)
    found = _mnist(tmp_path / "here")
    assert found.x.shape == (40, 1, 28, 28) and found.x_test.shape == (10, 1, 28, 28) and found.x.dtype == torch.uint8
    assert found.x.numpy().tobytes() == fake["train-images-idx3-ubyte"][16:]
    assert found.x_test.numpy().tobytes() == fake["t10k-images-idx3-ubyte"][16:]
    assert found.y.tolist() == list(range(10)) * 4 and found.y_test.tolist() == list(range(10))
    assert found.variant == {} and found.x_extra is None


def test_root_is_the_argument_then_the_environment_then_data(fake: Files, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(MNIST_MIRROR, _unreachable)
    _write(tmp_path / "data", fake)
    assert len(_mnist(None).y) == 40
    monkeypatch.setenv("AMM_DATA_ROOT", str(tmp_path / "empty"))
    assert str(tmp_path / "empty" / "MNIST" / "raw") in _refused(lambda: _mnist(None))
    assert str(tmp_path / "none" / "MNIST" / "raw") in _refused(lambda: _mnist(tmp_path / "none"))
    assert len(_mnist(tmp_path / "data").y) == 40
    monkeypatch.setenv("AMM_DATA_ROOT", "")
    assert len(_mnist(None).y) == 40


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", list(official.MNIST_FILES))
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "page"])
def test_damaged_file_is_named(fake: Files, tmp_path: Path, name: str, damage: str) -> None:
    good = fake[name]
    bad = {"empty": b"", "cut": good[:-1], "flipped": good[:-1] + bytes([good[-1] ^ 1]), "page": b"<html>403</html>"}
    raw = _write(tmp_path, fake | {name: bad[damage]})
    message = _refused(lambda: _mnist(tmp_path))
    assert str(raw / name) in message and f"{len(bad[damage])} bytes" in message and f"{len(good)} bytes" in message
    assert hashlib.sha256(good).hexdigest()[:12] in message and "delete it" in message
    assert (raw / name).read_bytes() == bad[damage]


def test_files_may_be_compressed_as_they_are_published(fake: Files, tmp_path: Path) -> None:
    name, *others = fake
    packed = {f"{other}.gz": gzip.compress(fake[other]) for other in others}
    raw = _write(tmp_path, packed | {name: fake[name], f"{name}.gz": b"not looked at"})
    found = _mnist(tmp_path)
    assert found.x_test.numpy().tobytes() == fake["t10k-images-idx3-ubyte"][16:]
    assert found.y.tolist() == list(range(10)) * 4
    path = raw / f"{others[0]}.gz"
    good = packed[path.name]
    longer, flipped = gzip.compress(fake[others[0]] + bytes(1000)), good[:20] + bytes([good[20] ^ 255]) + good[21:]
    for bad in (b"", good[:-1], good[: len(good) // 2], flipped, longer, b"<html>403</html>", good + good):
        path.write_bytes(bad)
        message = _refused(lambda: _mnist(tmp_path))
        assert f"{path} is not the official file" in message and path.read_bytes() == bad


def _unreachable(url: str, download_root: str, filename: str, md5: str) -> None:
    raise URLError("Name or service not known")


def _breaks_off(url: str, download_root: str, filename: str, md5: str) -> None:
    (Path(download_root) / filename.removesuffix(".gz")).write_bytes(b"half")
    raise TimeoutError("timed out")


@pytest.mark.parametrize(("serve", "reason"), [(_unreachable, "Name or service"), (_breaks_off, "timed out")])
def test_no_network(fake: Files, tmp_path: Path, monkeypatch: Patch, serve: object, reason: str) -> None:
    monkeypatch.setattr(MNIST_MIRROR, serve)
    message = _refused(lambda: _mnist(tmp_path / "root"))
    assert str(tmp_path / "root" / "MNIST" / "raw") in message and reason in message
    assert "https://" in message and "--data-root" in message and "AMM_DATA_ROOT" in message
    assert not (tmp_path / "root").exists() and socket.getdefaulttimeout() is None


def test_root_that_cannot_be_written_or_read(fake: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be fetched" in _refused(lambda: _mnist(tmp_path / "file" / "root"))
    raw = _write(tmp_path, {name: content for name, content in fake.items() if "t10k-l" not in name})
    (raw / "t10k-labels-idx1-ubyte").mkdir()
    assert "cannot be read" in _refused(lambda: _mnist(tmp_path))


def test_download_lands_whole_and_silently(
    fake: Files, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(url: str, download_root: str, filename: str, md5: str) -> None:
        print("100%", filename)
        (Path(download_root) / filename).write_bytes(b"compressed")
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(fake[filename.removesuffix(".gz")])

    monkeypatch.setattr(MNIST_MIRROR, serve)
    raw = _write(tmp_path, {"t10k-labels-idx1-ubyte": b"the user's own"})
    assert str(raw / "t10k-labels-idx1-ubyte") in _refused(lambda: _mnist(tmp_path))  # checked, not replaced
    (raw / "t10k-labels-idx1-ubyte").unlink()
    assert len(_mnist(tmp_path).y) == 40
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(fake)
    assert capsys.readouterr().out == ""


# SVHN: made-up files that pass for the official ones


def _images(n: int, first: int = 0) -> Any:
    """uint8 [N, H, W, C] in which no two axes can be confused."""
    i, h, w, c = np.ogrid[first : first + n, :32, :32, :3]
    return ((7 * i + 5 * h + 3 * w + 101 * c) % 251).astype(np.uint8)


def _labels(split: str) -> Any:
    """The digits of a split, as often as COUNTS says, mixed; uint8 [N]."""
    counts = COUNTS.get(split, (3,) * 10)
    return np.random.default_rng(len(counts)).permutation(np.repeat(np.arange(10), counts)).astype(np.uint8)


def _mat(images: Any, digits: Any, **more: Any) -> bytes:
    """A file as SVHN's authors write it: X [H, W, C, N], y [N, 1] with 10 for the digit 0; `more` takes their place."""
    file = io.BytesIO()
    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels, **more}, do_compression=True)
    return file.getvalue()


def _entry(images: Any) -> dict[str, Any]:
    """What a manifest says about images [N, H, W, C]."""
    return {"images": len(images), "sha256_images_nhwc": hashlib.sha256(images.tobytes()).hexdigest(), "note": "ours"}


@pytest.fixture
def bodies(monkeypatch: Patch) -> Files:
    """By split, small files whose sizes, digests and counts are taken for SVHN's."""
    contents = {split: _mat(_images(n), _labels(split)) for split, n in SIZES.items()}
    md5 = {split: hashlib.md5(content, usedforsecurity=False).hexdigest() for split, content in contents.items()}
    monkeypatch.setattr(official, "SVHN_FILES", {split: (NAMES[split], md5[split], SIZES[split]) for split in SIZES})
    monkeypatch.setattr(official, "SVHN_COUNTS", COUNTS)
    counts = {"n_train": SIZES["train"], "n_test": SIZES["test"], "n_extra": SIZES["extra"]}
    monkeypatch.setitem(readers.SOURCES, "svhn", replace(readers.SOURCES["svhn"], **counts))
    return contents


@pytest.fixture
def root(bodies: Files, tmp_path: Path) -> Path:
    """A folder with the three files."""
    folder = tmp_path / "root"
    folder.mkdir()
    for split, content in bodies.items():
        (folder / NAMES[split]).write_bytes(content)
    return folder


def _replace(root: Path, split: str, content: bytes, declared: dict[str, Any] | None = None) -> Path:
    """Other bytes in the place of a split's file, and a manifest for them if anything is declared."""
    (root / NAMES[split]).write_bytes(content)
    if declared is not None:
        (root / "SVHN.json").write_text(json.dumps({"name": "rebuilt", split: declared}))
    return root / NAMES[split]


def _svhn(root: Path, extra: bool = False) -> Stored:
    return readers.read("svhn", root, extra)


def test_official_svhn_is_accepted_and_every_pixel_is_in_its_place(root: Path) -> None:
    found = _svhn(root, extra=True)
    i, c, h, w = torch.meshgrid(torch.arange(60), torch.arange(3), torch.arange(32), torch.arange(32), indexing="ij")
    expected = ((7 * i + 5 * h + 3 * w + 101 * c) % 251).to(torch.uint8)
    assert found.x.dtype == torch.uint8 and found.x.is_contiguous() and torch.equal(found.x, expected)
    assert torch.equal(found.x_test, expected[:20])
    assert found.x_extra is not None and torch.equal(found.x_extra, expected[:30])
    assert found.y.dtype == found.y_test.dtype == torch.int64 and found.variant == {}
    assert found.y.tolist() == _labels("train").tolist() and found.y_test.tolist() == _labels("test").tolist()


def test_extra_file_is_read_only_when_asked_for(root: Path) -> None:
    (root / NAMES["extra"]).write_bytes(b"anything")
    assert _svhn(root).x_extra is None
    assert NAMES["extra"] in _refused(lambda: _svhn(root, extra=True))
    (root / NAMES["extra"]).unlink()
    assert len(_svhn(root).y) == 60  # and is not fetched


def test_files_reach_the_trial_with_their_variant(root: Path) -> None:
    _replace(root, "test", _mat(_images(10, 5), _labels("test")[:10]), _entry(_images(10, 5)))
    noise = Noise.seeded(0)
    found = data.load("svhn", split_seed=1, validation=20, noise=noise, root=root, labels=10, split="extra")
    assert found.train.x.shape == (40 + 30, 3, 32, 32) and found.x_test.shape == (10, 3, 32, 32)
    assert found.y_validation.tolist() == _labels("train")[40:].tolist()
    assert found.variant == {"name": "rebuilt", "test": _entry(_images(10, 5))}


def test_other_bytes_are_refused_without_a_manifest(root: Path) -> None:
    path = _replace(root, "train", _mat(_images(60, 1), _labels("train")))
    message = _refused(lambda: _svhn(root))
    assert f"{path} is not the official file: {path.stat().st_size} bytes" in message and "SVHN.json" in message
    assert official.SVHN_FILES["train"][1][:12] in message and "delete it and rerun with network" in message


def test_manifest_speaks_for_its_own_splits_alone(root: Path) -> None:
    _replace(root, "test", _mat(_images(20), _labels("test"), more=1), _entry(_images(20)))
    path = _replace(root, "train", _mat(_images(60, 1), _labels("train")))
    assert f"{path} is not the official file" in _refused(lambda: _svhn(root))


def test_declared_variant_is_accepted_and_told(root: Path) -> None:
    _replace(root, "train", _mat(_images(60, 9), _labels("train")), _entry(_images(60, 9)))
    found = _svhn(root)
    assert torch.equal(found.x[:51], torch.from_numpy(_images(60)[9:]).permute(0, 3, 1, 2))
    assert found.variant == {"name": "rebuilt", "train": _entry(_images(60, 9))}  # of test, the official file, nothing


def test_part_of_the_test_set_is_accepted(root: Path) -> None:
    n = min(7, len(_labels("test")))
    declared = _entry(_images(n))
    _replace(root, "test", _mat(_images(n), _labels("test")[:n]), {**declared, "of": 60})
    found = _svhn(root)
    assert len(found.x_test) == n and found.y_test.tolist() == _labels("test")[:n].tolist()
    assert found.variant["test"] == declared  # what the bench does not know is left out


def test_part_of_the_training_set_is_refused(root: Path) -> None:
    """A plan counts the official number of training images."""
    path = _replace(root, "train", _mat(_images(25), _labels("train")[:25]), _entry(_images(25)))
    assert _refused(lambda: _svhn(root)) == f"{path}: 25 images, expected 60; delete it and rerun with network"


def test_manifest_beside_official_files_says_nothing(root: Path) -> None:
    (root / "SVHN.json").write_text(json.dumps({"name": "rebuilt", "train": _entry(_images(3))}))
    assert _svhn(root).variant == {}


@pytest.mark.parametrize("change", [{"images": 59}, {"sha256_images_nhwc": "0" * 64}])
def test_manifest_that_does_not_match_its_file(root: Path, change: dict[str, Any]) -> None:
    declared = {**_entry(_images(60, 9)), **change}
    path = _replace(root, "train", _mat(_images(60, 9), _labels("train")), declared)
    message = _refused(lambda: _svhn(root))
    assert f"{path} is not what SVHN.json declares: 60 images with sha256 " in message
    assert _entry(_images(60, 9))["sha256_images_nhwc"][:12] in message
    assert f"expected {declared['images']} with {declared['sha256_images_nhwc'][:12]}" in message


WHOLE = {"images": 60, "sha256_images_nhwc": "0" * 64, "note": "ours"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ('{"name": "rebuilt",}', "is not JSON"),
        (b"\xff\xfe\xfa", "is not JSON"),
        ("[]", 'an object with the name of the variant under "name"'),
        ('"rebuilt"', 'an object with the name of the variant under "name"'),
        ({"train": WHOLE}, 'an object with the name of the variant under "name"'),
        ({"name": 3, "train": WHOLE}, 'an object with the name of the variant under "name"'),
        ({"name": "rebuilt", "train": []}, "must give train.images as int"),
        ({"name": "rebuilt", "train": {**WHOLE, "images": "60"}}, "must give train.images as int"),
        ({"name": "rebuilt", "test": {"images": 60, "note": ""}}, "must give test.sha256_images_nhwc as str"),
        ({"name": "rebuilt", "extra": {**WHOLE, "note": None}}, "must give extra.note as str"),
    ],
)
def test_malformed_manifest_is_named(root: Path, text: str | bytes | dict[str, Any], words: str) -> None:
    content = json.dumps(text) if isinstance(text, dict) else text
    (root / "SVHN.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = _refused(lambda: _svhn(root))
    assert message.startswith(f"{root / 'SVHN.json'} ") and words in message


def _swapped(counts: tuple[int, ...]) -> Any:
    """As many digits as `counts` says, one 1 turned into a 2."""
    return np.repeat(np.arange(10), np.array(counts) - np.eye(10, dtype=int)[1] + np.eye(10, dtype=int)[2])


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": _images(60)}, "X is uint8 (60, 32, 32, 3), expected uint8 (32, 32, 3, N)"),
        ({"X": _images(60).transpose(3, 1, 2, 0)}, "X is uint8 (3, 32, 32, 60), expected"),
        ({"X": _images(60).transpose(1, 2, 3, 0) / 255}, "X is float64 (32, 32, 3, 60), expected uint8"),
        ({"X": _images(1)[0]}, "X is uint8 (32, 32, 3), expected"),
        ({"y": _labels("train")[:, None]}, "labels from 0 to 9, expected 1 to 10"),
        ({"y": _labels("train")[:, None] + 2}, "labels from 2 to 11, expected 1 to 10"),
        ({"y": _labels("train")[:59, None] + 1}, "59 labels (uint8) for 60 images"),
        ({"y": _labels("train")[:, None] + 1.0}, "60 labels (float64) for 60 images; expected one integer for each"),
        ({"y": _labels("train")[:, None] + 1}, f"official train set has {list(COUNTS['train'])}"),
    ],
)
def test_arrays_that_cannot_be_svhn(root: Path, arrays: dict[str, Any], words: str) -> None:
    path = _replace(root, "train", _mat(_images(60), _labels("train"), **arrays), _entry(_images(60)))
    message = _refused(lambda: _svhn(root))
    assert message.startswith(f"{path}: ") and words in message


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("split", "digits", "words"),
    [
        (
            "train",
            _swapped(COUNTS["train"]),
            "0 to 9: [4, 10, 9, 7, 6, 6, 5, 5, 4, 4]; the official train set has [4, 11, 8",
        ),
        ("test", np.array([9, 1, 9]), "0 to 9: [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]; the official test set has [2, 4, 3"),
        ("train", np.arange(61) % 10, "61 images, expected 60"),
        ("extra", np.arange(31) % 10, "31 images, expected at most 30"),
    ],
)
def test_counts_that_cannot_be_of_this_split(root: Path, split: str, digits: Any, words: str) -> None:
    images = _images(len(digits))
    path = _replace(root, split, _mat(images, digits), _entry(images))
    message = _refused(lambda: _svhn(root, extra=True))
    assert message.startswith(f"{path}: ") and words in message


@pytest.mark.parametrize("damage", ["page", "empty", "cut", "other names"])
def test_declared_file_that_is_no_mat_file_with_x_and_y(root: Path, bodies: Files, damage: str) -> None:
    other = io.BytesIO()
    savemat(other, {"images": _images(2)})
    bad = {
        "page": b"<html>403</html>" * 40,
        "empty": b"",
        "cut": bodies["train"][:-50],
        "other names": other.getvalue(),
    }
    path = _replace(root, "train", bad[damage], _entry(_images(60)))
    assert _refused(lambda: _svhn(root)).startswith(f"{path} holds no arrays X and y (")


def test_svhn_that_cannot_be_read(root: Path) -> None:
    (root / "SVHN.json").mkdir()
    assert f"{root / 'SVHN.json'}: cannot be read (Is a directory)" in _refused(lambda: _svhn(root))
    (root / "SVHN.json").rmdir()
    (root / NAMES["test"]).unlink()
    (root / NAMES["test"]).mkdir()
    assert f"{root / NAMES['test']}: cannot be read (Is a directory)" in _refused(lambda: _svhn(root))


# SVHN: fetching


def _left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize(("serve", "reason"), [(_unreachable, "Name or service"), (_breaks_off, "timed out")])
@pytest.mark.parametrize("missing", [["train"], ["train", "test"], ["test", "extra"]])
def test_svhn_without_network(root: Path, monkeypatch: Patch, serve: object, reason: str, missing: list[str]) -> None:
    monkeypatch.setattr(SVHN_MIRROR, serve)
    for split in missing:
        (root / NAMES[split]).unlink()
    message, names = _refused(lambda: _svhn(root, extra=True)), {NAMES[split] for split in missing}
    assert f"SVHN is not in {root} and cannot be fetched from http" in message and reason in message
    assert all(f"/housenumbers/{name}" in message for name in names)
    assert f"put {', '.join(NAMES[split] for split in missing)} there" in message
    assert "--data-root or AMM_DATA_ROOT" in message and socket.getdefaulttimeout() is None
    assert _left(root) == set(NAMES.values()) - names


class Response(io.BytesIO):
    """What a server sends."""

    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url, self.length = url, len(content)


def _serve(monkeypatch: Patch, bodies: Files) -> list[str]:
    """Answers torchvision's requests; the list fills with the names of the files that were asked for."""
    asked: list[str] = []

    def urlopen(request: Any, *_: object, **__: object) -> Response:
        asked.append(request.full_url.rpartition("/")[2])
        return Response(request.full_url, bodies[asked[-1].partition("_")[0]])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def test_svhn_is_fetched_whole_and_silently(
    bodies: Files, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, root = _serve(monkeypatch, bodies), tmp_path / "new" / "root"
    assert torch.equal(_svhn(root).x, torch.from_numpy(_images(60)).permute(0, 3, 1, 2))
    assert _left(root) == {NAMES["train"], NAMES["test"]} == set(asked)
    asked.clear()
    assert _svhn(root, extra=True).x_extra is not None and set(asked) == {NAMES["extra"]}
    assert {split: (root / name).read_bytes() for split, name in NAMES.items()} == bodies
    asked.clear()
    assert len(_svhn(root, extra=True).y) == 60 and asked == []
    assert capsys.readouterr().out == "" and _left(root) == set(NAMES.values())


@pytest.mark.fault(16)
def test_svhn_that_comes_damaged_is_not_kept(bodies: Files, tmp_path: Path, monkeypatch: Patch) -> None:
    _serve(monkeypatch, {**bodies, "test": bodies["test"][:-1]})
    message = _refused(lambda: _svhn(tmp_path / "root"))
    assert "cannot be fetched" in message and "corrupted" in message
    assert _left(tmp_path / "root") <= {NAMES["train"]}


def test_file_of_the_user_is_checked_not_replaced(root: Path, bodies: Files, monkeypatch: Patch) -> None:
    asked = _serve(monkeypatch, bodies)
    path = _replace(root, "train", b"the user's own")
    (root / NAMES["test"]).unlink()
    assert f"{path} is not the official file: 14 bytes" in _refused(lambda: _svhn(root))
    assert path.read_bytes() == b"the user's own" and set(asked) == {NAMES["test"]}


def test_file_that_appears_during_the_download_is_kept(bodies: Files, tmp_path: Path, monkeypatch: Patch) -> None:
    """Another process may be quicker, or a user put a variant there meanwhile."""
    root = tmp_path / "root"

    def serve(url: str, folder: str, filename: str, md5: str) -> None:
        (Path(folder) / filename).write_bytes(bodies[filename.partition("_")[0]])
        _replace(root, "train", _mat(_images(60, 9), _labels("train")), _entry(_images(60, 9)))

    monkeypatch.setattr(SVHN_MIRROR, serve)
    assert _svhn(root).variant["train"] == _entry(_images(60, 9))
    assert _left(root) == {NAMES["train"], NAMES["test"], "SVHN.json"}


def test_two_processes_may_fetch_at_once(bodies: Files, tmp_path: Path, monkeypatch: Patch) -> None:
    root, asked, others = tmp_path / "root", list[str](), list[Stored]()

    def serve(url: str, folder: str, filename: str, md5: str) -> None:
        (Path(folder) / filename).write_bytes(bodies[filename.partition("_")[0]])
        asked.append(filename)
        assert Path(folder).parent == root  # on the same disk, so that a file moves at once
        if len(asked) == 1:
            others.append(_svhn(root))  # begins and ends while the first one downloads

    monkeypatch.setattr(SVHN_MIRROR, serve)
    mine = _svhn(root)
    assert torch.equal(mine.x, others[0].x) and torch.equal(mine.y_test, others[0].y_test) and len(mine.y) == 60
    assert _left(root) == {NAMES["train"], NAMES["test"]} and len(asked) == 4


# the real files


def _is_there(name: str) -> bool:
    return bool(os.environ.get("AMM_DATA_ROOT")) and Path(os.environ["AMM_DATA_ROOT"], name).exists()


@pytest.mark.data
@pytest.mark.skipif(not _is_there("MNIST"), reason="AMM_DATA_ROOT names no folder with MNIST")
def test_real_mnist() -> None:
    found = readers.read("mnist", None, False)
    assert found.x.shape == (60_000, 1, 28, 28) and found.x_test.shape == (10_000, 1, 28, 28)
    assert found.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert found.y_test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.data
@pytest.mark.skipif(not _is_there("train_32x32.mat"), reason="AMM_DATA_ROOT names no folder with SVHN")
def test_real_svhn() -> None:
    """Counts as SVHN's authors give them; channel means over 255 as they are widely quoted."""
    found = readers.read("svhn", None, False)
    assert found.x.shape == (73_257, 3, 32, 32) and found.x_test.shape[1:] == (3, 32, 32)
    digits = found.y.bincount().tolist()
    assert [*digits[1:], digits[0]] == [13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659, 4948]
    means = [found.x[:, c].sum(dtype=torch.int64).item() / (73_257 * 1024 * 255) for c in range(3)]
    assert [round(mean, 4) for mean in means] == [0.4377, 0.4438, 0.4728]
    assert found.variant == {} or {"name", "train"} <= found.variant.keys()


def test_file_without_images(root: Path) -> None:
    path = _replace(root, "train", _mat(_images(0), _labels("train")[:0]), _entry(_images(0)))
    assert _refused(lambda: _svhn(root)).startswith(f"{path}: ")


@pytest.mark.parametrize("error", [BadStatusLine("x"), IncompleteRead(b"")])
def test_server_that_speaks_no_http(bodies: Files, tmp_path: Path, monkeypatch: Patch, error: Exception) -> None:
    def serve(*_: object) -> None:
        raise error

    monkeypatch.setattr(SVHN_MIRROR, serve)
    assert "cannot be fetched" in _refused(lambda: _svhn(tmp_path / "root"))


def test_home_of_nobody() -> None:
    assert "~nobody_such" in _refused(lambda: _svhn(Path("~nobody_such/data")))


def test_little_memory_is_not_blamed_on_the_file(root: Path, monkeypatch: Patch) -> None:
    def loadmat(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("scipy.io.loadmat", loadmat)
    with pytest.raises((UserError, MemoryError)) as caught:
        _svhn(root)
    assert "delete it" not in str(caught.value)
