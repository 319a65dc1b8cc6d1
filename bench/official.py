"""Datasets in files: found below a root or fetched through torchvision, checked against the official digests, parsed.

The bytes that were checked are the bytes that are parsed. SVHN may also be what a manifest beside its files declares.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError, unread


@dataclass(frozen=True)
class Stored:
    """A dataset as it is stored, on the CPU.

    Attributes:
        x, y: training examples [N, C, H, W] and their classes, int64 [N].
        x_test, y_test: test examples.
        x_extra: further examples without labels, or None.
        variant: what the manifest says about files that are not the official ones; empty for the official bytes.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    x_extra: Tensor | None = None
    variant: dict[str, Any] = field(default_factory=dict)


# fetching, the same for all


def _fetch(
    root: Path,
    folder: Path,
    names: Iterable[str],
    what: str,
    where: str,
    get: Callable[[Path], Path],
    needed: Iterable[str],
) -> None:
    """Downloads some files that are `needed`; a file gets its final name only when it is whole.

    `get` downloads, into a temporary folder, and returns the folder that then holds the files. What the user put there is
    checked, never replaced.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=root) as part, _patience(30.0):
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                came = get(Path(part))
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                if not os.path.exists(folder / name):
                    os.replace(came / name, folder / name)
    # URLError, timeouts and a full or read-only disk are OSErrors; a broken proxy or redirect raises the last two
    except (RuntimeError, OSError, EOFError, HTTPException, ValueError) as error:
        with contextlib.suppress(OSError):  # a mistyped folder does not stay
            for empty in made:
                empty.rmdir()
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # torchvision's last line is the reason
        raise UserError(
            f"{what} is not in {folder} and cannot be fetched from {where} ({reason}): put {', '.join(needed)} there, "
            "or give a folder that holds them with --data-root or AMM_DATA_ROOT"
        ) from error


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """torchvision would wait for a silent server without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _content(path: Path) -> bytearray:
    try:
        return bytearray(path.read_bytes())
    except OSError as error:
        raise unread(error, path, "make it readable, or use another root") from error


# MNIST

MNIST_RAW = Path("MNIST", "raw")  # below the root, where torchvision keeps them
MNIST_FILES: dict[str, tuple[int, str]] = {  # size in bytes, sha256
    "train-images-idx3-ubyte": (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


def mnist(root: Path, extra: bool) -> Stored:
    """MNIST from its official files, compressed or not; no socket is opened if all are there."""
    raw = root / MNIST_RAW
    if not all(os.path.exists(_either(raw / name)) for name in MNIST_FILES):
        from torchvision.datasets import MNIST  # slow to import, and needed for this alone

        def get(part: Path) -> Path:
            MNIST(part, download=True)
            return part / MNIST_RAW

        _fetch(root, raw, MNIST_FILES, "MNIST", " or ".join(MNIST.mirrors), get, MNIST_FILES)
    x, y, x_test, y_test = (_official(_either(raw / name), *expected) for name, expected in MNIST_FILES.items())
    # an IDX header has 4 bytes and 4 more for each dimension
    return Stored(x[16:].view(-1, 1, 28, 28), y[8:].long(), x_test[16:].view(-1, 1, 28, 28), y_test[8:].long())


def _either(path: Path) -> Path:
    """The file, or where that is not there the compressed one, as MNIST is published."""
    compressed = path.with_name(f"{path.name}.gz")
    return compressed if os.path.exists(compressed) and not os.path.exists(path) else path


def _official(path: Path, size: int, sha256: str) -> Tensor:
    """The bytes of an official file, uint8 [size]; raises UserError unless it is exactly that file."""
    content = _content(path)
    if path.suffix == ".gz":
        # what is damaged is told as it lies
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(io.BytesIO(content)) as file:
            content = bytearray(file.read(size + 1))  # no more, whatever it may hold
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path} is not the official file: {len(content)} bytes with sha256 {found[:12]}..., expected {size} bytes "
            f"with sha256 {sha256[:12]}...; delete it and rerun with network, or copy the official file there"
        )
    return torch.frombuffer(content, dtype=torch.uint8)


# SVHN, cropped digits

SVHN_MANIFEST = "SVHN.json"  # beside the files: what they are if they are not the official ones
SVHN_FILES = {  # file, md5, images; torchvision's
    "train": ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", 73_257),
    "test": ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", 26_032),
    "extra": ("extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7", 531_131),
}
SVHN_COUNTS = {  # images of the digits 0 to 9
    "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
    "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
}


def svhn(root: Path, extra: bool) -> Stored:
    """SVHN's cropped digits as RGB, classes 0-9: the official files, or others that SVHN.json beside them declares."""
    splits = [split for split in SVHN_FILES if extra or split != "extra"]
    missing = [split for split in splits if not os.path.exists(root / SVHN_FILES[split][0])]
    for split in missing:
        _fetch_svhn(root, split, [split for split in missing if not os.path.exists(root / SVHN_FILES[split][0])])
    declared = _manifest(root / SVHN_MANIFEST)
    parts = {split: _svhn_split(root, split, declared.get(split)) for split in splits}
    told = {split: declared[split] for split, (_, _, is_official) in parts.items() if not is_official}
    (x, y, _), (x_test, y_test, _) = parts["train"], parts["test"]
    x_extra = parts["extra"][0] if extra else None
    return Stored(x, y, x_test, y_test, x_extra, {"name": declared["name"], **told} if told else {})


def _fetch_svhn(root: Path, split: str, missing: list[str]) -> None:
    """Fetches the file of a split; the message of a failure names all that are missing."""
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    name, md5, _ = SVHN_FILES[split]

    def get(part: Path) -> Path:
        download_url(SVHN.split_list[split][0], str(part), name, md5)
        return part

    addresses = " and ".join(SVHN.split_list[each][0] for each in missing)
    _fetch(root, root, [name], "SVHN", addresses, get, [SVHN_FILES[each][0] for each in missing])


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest's entries; nothing without one. UserError unless it names a variant and describes its splits."""
    if not os.path.exists(path):
        return {}
    try:
        found = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); mend it, or delete it if the files are official") from None
    problem = _manifest_problem(found)
    if problem:
        raise UserError(f"{path} {problem}")
    entries = {split: {key: found[split][key] for key in _DECLARED} for split in SVHN_FILES if split in found}
    return {"name": " ".join(found["name"].split()), **entries}


_DECLARED = {"images": int, "sha256_images_nhwc": str, "note": str}  # of each split


def _manifest_problem(found: Any) -> str:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"].strip():
        return 'must be an object with the name of the variant under "name"'
    for split in SVHN_FILES.keys() & found.keys():
        entry = found[split] if isinstance(found[split], dict) else {}
        for key, kind in _DECLARED.items():
            if type(entry.get(key)) is not kind:
                return f"must give {split}.{key} as {kind.__name__}"
    return ""


def _svhn_split(root: Path, split: str, declared: dict[str, Any] | None) -> tuple[Tensor, Tensor, bool]:
    """Images uint8 [N, 3, 32, 32], classes int64 [N], and whether the file is the official one."""
    from scipy.io import loadmat

    name, md5, _ = SVHN_FILES[split]
    content = _content(root / name)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5 and declared is None:
        raise UserError(
            f"{root / name} is not the official file: {len(content)} bytes with md5 {found[:12]}..., expected md5 "
            f"{md5[:12]}...; delete it and rerun with network, or declare under {split!r} in {SVHN_MANIFEST} what it is"
        )
    try:
        arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        images, labels = arrays.pop("X"), arrays.pop("y")
    except MemoryError:
        raise
    except Exception as error:  # scipy has many ways to stumble over bytes that are no MATLAB file
        raise UserError(f"{root / name} holds no arrays X and y ({error}); delete it and rerun with network") from None
    del content  # each copy of the extra images takes 1.6 GB
    problem = svhn_problem(split, images, labels)
    if problem:
        raise UserError(f"{root / name}: {problem}; delete it and rerun with network")
    if found != md5 and declared is not None:
        _require_declared(root / name, images, declared)
    x = torch.from_numpy(images).permute(3, 2, 0, 1).contiguous()
    return x, torch.from_numpy(labels.ravel().astype(np.int64)) % 10, found == md5


def svhn_problem(split: str, images: Any, labels: Any) -> str:
    """What is wrong with the arrays of a file, or nothing: shape, range of labels, and how often each occurs."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        return f"X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, N): height, width, channel, image"
    if labels.size != images.shape[3] or labels.dtype.kind not in "iu":
        return f"{labels.size} labels ({labels.dtype}) for {images.shape[3]} images; expected one integer for each"
    whole = SVHN_FILES[split][2]
    if not 0 < labels.size <= whole or (split == "train" and labels.size < whole):
        return f"{labels.size} images, expected {'' if split == 'train' else 'at most '}{whole}"
    if labels.min() < 1 or labels.max() > 10:
        return f"labels from {labels.min()} to {labels.max()}, expected 1 to 10, where 10 is the digit 0"
    counts, expected = np.bincount(labels.ravel() % 10, minlength=10), np.array(SVHN_COUNTS.get(split, [whole] * 10))
    if (counts > expected).any():  # so a whole set has exactly these
        return f"images of the digits 0 to 9: {counts.tolist()}; the official {split} set has {expected.tolist()}"
    return ""


def _require_declared(path: Path, images: Any, declared: dict[str, Any]) -> None:
    sha, n = hashlib.sha256(), images.shape[3]
    for first in range(0, n, 10_000):
        sha.update(images[..., first : first + 10_000].transpose(3, 0, 1, 2).tobytes())
    found = sha.hexdigest()
    if (n, found) != (declared["images"], declared["sha256_images_nhwc"].lower()):
        raise UserError(
            f"{path} is not what {SVHN_MANIFEST} declares: {n} images with sha256 {found[:12]}..., expected "
            f"{declared['images']} with {declared['sha256_images_nhwc'][:12]}...; mend the file or the manifest"
        )
