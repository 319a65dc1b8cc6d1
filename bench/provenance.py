"""Where a number comes from: code, versions and device, as stored in every record."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import tarfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "baselines", "bench")
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")  # a hook names its own repository by these
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")


@cache
def code() -> dict[str, Any]:
    """Digest of the sources that decide a result and, in a git checkout, the commit and whether they differ from it."""
    sources = _sources()
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *PACKAGES)
    dirty = None if changes is None else bool(changes.strip())
    return {"sources": sources, "sha": None if head is None else head.decode().strip(), "dirty": dirty}


def changed() -> bool:
    """Whether the sources are others by now than `code` says: a file that this process has yet to import may be."""
    try:
        return _sources() != code()["sources"]
    except OSError:  # a file went while it was read: they are changing now
        return True


def _sources() -> str:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.is_file())
    return _digest((path.relative_to(ROOT), path.read_bytes()) for path in paths)


@cache
def committed(sources: str, after: str) -> bool | None:
    """Whether a commit that comes after the commit `after` in this checkout's history has sources of that digest.

    None if that cannot be told: without git, or in a history that does not reach back to `after`.
    """
    later = _git("rev-list", "--reverse", f"{after}..HEAD", "--", *PACKAGES)
    return None if later is None else any(_at(commit) == sources for commit in later.decode().split())


def _at(commit: str) -> str:
    """Digest of the sources of a commit; "" if git cannot tell."""
    packed = _git("archive", commit, *PACKAGES)
    if packed is None:
        return ""
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        members = [(Path(member.name), tar.extractfile(member)) for member in tar if member.name.endswith(".py")]
        return _digest((path, file.read()) for path, file in members if file is not None)


def _digest(files: Iterable[tuple[Path, bytes]]) -> str:
    sha = hashlib.sha256()
    for path, content in sorted(files):
        sha.update(path.as_posix().encode() + b"\0" + content + b"\0")
    return sha.hexdigest()


def _git(*arguments: str) -> bytes | None:
    """What git prints, or None without git or outside a checkout of our own."""
    return _printed(*arguments) if _is_checkout(ROOT) else None


@cache
def _is_checkout(root: Path) -> bool:
    """Whether `root` is the top of a repository; it may also lie in a folder of another one."""
    top = _printed("rev-parse", "--show-toplevel")
    return top is not None and Path(os.fsdecode(top).rstrip("\n")).resolve() == root.resolve()


def _printed(*arguments: str) -> bytes | None:
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, env=environment, capture_output=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "absent"
    return found


def cpu_name() -> str:
    """Model of the processor, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
