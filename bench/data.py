"""Datasets: fetched and checked, split by seed, and moved whole to the device.

Examples are stored as they come, images as uint8; a float example is the stored one times `Source.scale`. Two digests
say where a number came from: one of all stored bytes, one of the indices of the split.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import UserError
from models.method import Data, Spec
from models.noise import Noise

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]  # x_train, y_train, x_test, y_test, as stored, on the CPU


@dataclass(frozen=True)
class Source:
    """What is known about a dataset without loading it; `label` and `note` are its name and footnote in tables."""

    name: str
    shape: tuple[int, int, int]
    n_classes: int
    n_train: int
    n_test: int
    scale: float
    label: str
    note: str = ""


_DRAWN_ONCE = "scikit-learn's 1,797 digits; the 500 test examples were drawn at random once, with a constant seed"
_CIRCLE = "points in the plane: six Gaussians of std 0.3 whose means lie evenly on a circle of radius 3"
_KNOWN = (
    Source("mnist", (1, 28, 28), 10, 60_000, 10_000, 1 / 255, "MNIST"),
    Source("digits", (1, 8, 8), 10, 1_297, 500, 1 / 16, "digits 8x8", _DRAWN_ONCE),
    Source("plane", (2, 1, 1), 6, 6_000, 1_000, 1.0, "six Gaussians", _CIRCLE),
    Source("synthetic", (1, 8, 8), 3, 300, 90, 1 / 255, "synthetic stripes", "made-up images for tests"),
)
SOURCES: dict[str, Source] = {source.name: source for source in _KNOWN}


@dataclass(frozen=True)
class Dataset:
    """One trial's view of a dataset, all tensors on the device of the trial's noise.

    Attributes:
        train: the training examples but for the validation ones; the labelled subset is also among the unlabelled.
        x_validation, x_test: stored examples [N, C, H, W]; float example = x * scale.
        y_validation, y_test: true classes, int64 [N].
        digest: sha256 of the name and of all stored bytes, training and test.
        split_digest: sha256 of the indices of the validation and labelled examples.
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


def load(
    name: str, *, split_seed: int, validation: int, noise: Noise, root: Path | None = None, labels: int = 0
) -> Dataset:
    """The dataset `name`, split by `split_seed` alone, on the device of `noise`, which is only handed on.

    Args:
        validation: number of training examples held out, drawn at random.
        labels: number of labelled examples, drawn at random from the other training examples.
        root: folder of downloaded datasets; default the environment's AMM_DATA_ROOT, else ./data.

    Raises:
        UserError: unknown name, a number out of range, files that are damaged or can be neither found nor fetched.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data {name!r}: choose one of {', '.join(SOURCES)}")
    folder = Path(root or os.environ.get("AMM_DATA_ROOT") or "data").expanduser().absolute()
    x, y, x_test, y_test = arrays = _READERS[name](folder)
    for what, value, most in (("validation", validation, len(y) - 1), ("labels", labels, len(y) - validation)):
        if not 0 <= value <= most:
            raise UserError(f"{what}: {value} does not fit data {name}: give a number from 0 to {most}")
    held_out, rest, labelled = _split(len(y), split_seed, validation, labels)
    source, device = SOURCES[name], noise.device
    subset = (x[labelled].to(device), y[labelled].to(device)) if labels else (None, None)
    return Dataset(
        spec=Spec(name, source.shape, source.n_classes),
        train=Data(x[rest].to(device), source.scale, noise, *subset),
        x_validation=x[held_out].to(device),
        y_validation=y[held_out].to(device),
        x_test=x_test.to(device),
        y_test=y_test.to(device),
        scale=source.scale,
        digest=_digest(name, *arrays),
        split_digest=_digest("split", held_out, labelled),
    )


def _split(n: int, seed: int, validation: int, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted indices of the held-out, the remaining and, among these, the labelled examples."""
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed))
    held_out, rest = order[:validation], order[validation:]
    return held_out.sort().values, rest.sort().values, rest[:labels].sort().values


def _digest(name: str, *tensors: Tensor) -> str:
    """sha256 of a name and of dtype, shape and bytes of some tensors."""
    sha = hashlib.sha256(name.encode())
    for tensor in tensors:
        sha.update(f"|{tensor.dtype}{tuple(tensor.shape)}|".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


MNIST_RAW = Path("MNIST", "raw")  # below the root, where torchvision keeps them
MNIST_FILES: dict[str, tuple[int, str]] = {  # size in bytes, sha256
    "train-images-idx3-ubyte": (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


def _mnist(root: Path) -> Arrays:
    """MNIST from its official files: the checked bytes are the parsed ones; no socket is opened if all are there."""
    raw = root / MNIST_RAW
    if not all(os.path.exists(raw / name) for name in MNIST_FILES):
        _fetch_mnist(root, raw)
    x, y, x_test, y_test = (_checked(raw / name, *expected) for name, expected in MNIST_FILES.items())
    # an IDX header has 4 bytes and 4 more for each dimension
    return x[16:].view(-1, 1, 28, 28), y[8:].long(), x_test[16:].view(-1, 1, 28, 28), y_test[8:].long()


def _checked(path: Path, size: int, sha256: str) -> Tensor:
    """The bytes of an official file, uint8 [size]; raises UserError unless it is exactly that file."""
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): make it readable or use another root") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path} is not the official file: {len(content)} bytes with sha256 {found[:12]}..., expected {size} bytes "
            f"with sha256 {sha256[:12]}...; delete it and rerun with network, or copy the official file there"
        )
    return torch.frombuffer(content, dtype=torch.uint8)


def _fetch_mnist(root: Path, raw: Path) -> None:
    """Downloads through torchvision (its mirrors and checksums); a file gets its final name only when it is whole."""
    from torchvision.datasets import MNIST  # slow to import, and needed for this alone

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30.0)  # torchvision would wait for a silent server without end
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mnist-", dir=root) as part:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                MNIST(part, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for name in MNIST_FILES:
                if not os.path.exists(raw / name):  # what the user put there is checked, never replaced
                    os.replace(Path(part) / MNIST_RAW / name, raw / name)
    except (RuntimeError, OSError, EOFError) as error:  # URLError, timeouts and a full or read-only disk are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # torchvision's last line is the reason
        raise UserError(
            f"MNIST is not in {raw} and cannot be fetched from {' or '.join(MNIST.mirrors)} ({reason}): put "
            f"{', '.join(MNIST_FILES)} there, or give a folder that holds {MNIST_RAW} with --data-root or AMM_DATA_ROOT"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _digits(root: Path) -> Arrays:
    """scikit-learn's digits, grey levels 0..16, with a test set drawn at random (not stratified) once for all."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1), torch.from_numpy(bunch.target).long()
    test, train, _ = _split(len(y), 1797, SOURCES["digits"].n_test, 0)
    return x[train], y[train], x[test], y[test]


def _plane(root: Path) -> Arrays:
    """Equally many points around each mean, the same ones in every trial; point i has class i mod 6."""
    source = SOURCES["plane"]
    y = torch.arange(source.n_train + source.n_test) % source.n_classes
    angle = y.double() * (2 * math.pi / source.n_classes)
    # drawn in double and rounded once, so that a CPU's vector unit cannot change the last bit
    noise = 0.3 * torch.randn(len(y), 2, dtype=torch.double, generator=torch.Generator("cpu").manual_seed(6))
    x = (3.0 * torch.stack([angle.cos(), angle.sin()], dim=1) + noise).float().view(-1, *source.shape)
    return x[: source.n_train], y[: source.n_train], x[source.n_train :], y[source.n_train :]


def _synthetic(root: Path) -> Arrays:
    """A bright stripe of two rows on dark noise; class c, which is i mod 3, lights rows 2c and 2c + 1."""
    source = SOURCES["synthetic"]
    y = torch.arange(source.n_train + source.n_test) % source.n_classes
    bright = torch.arange(8) // 2 == y[:, None]
    dark = torch.randint(64, (len(y), *source.shape), generator=torch.Generator("cpu").manual_seed(3))
    x = (dark + 160 * bright[:, None, :, None]).to(torch.uint8)
    return x[: source.n_train], y[: source.n_train], x[source.n_train :], y[source.n_train :]


_READERS = {"mnist": _mnist, "digits": _digits, "plane": _plane, "synthetic": _synthetic}
