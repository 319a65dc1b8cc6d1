"""Files that are either whole or not there: written beside their name, then moved onto it."""

from __future__ import annotations

import errno
import os
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

from bench.errors import UserError, unread

STALE_S = 600.0  # after which nobody writes a part any more
ENDINGS = (".md", ".json", ".png", ".html")  # of files that are written several at once, beside one name
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # that meet every other file too
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # a file system that has no hard links


def given_path(text: str) -> Path:
    """A path from the command line, for argparse, which says what is wrong: an unset variable must not be the current folder."""
    if not text.strip():
        raise ArgumentTypeError("expected a path, got an empty one")
    if "\n" in text:  # it would break the lines of --print-commands, and the one line of an error
        raise ArgumentTypeError(f"expected a path without line breaks, got {text!r}")
    return Path(text)


def given_folder(text: str) -> Path:
    """A folder to read from, for argparse: one that is not there would pass for one without records. Defaults are not asked."""
    path = given_path(text)
    if not os.path.isdir(path):  # pathlib's raises where it may not look
        raise ArgumentTypeError(f"no such folder: {text}; name one with records, such as the --out of bench.run")
    return path


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder by a name like `pattern`, sorted; nothing where there is no such folder.

    UserError if it cannot be read, since it would pass for an empty one.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder) if fnmatch(name, pattern))
    except OSError as error:
        _refuse_unread(error)
        return []


def below(root: Path, pattern: str) -> list[Path]:
    """Files below `root`, however deep, by a name like `pattern`, sorted; errors as for `listed`.

    Links to folders are followed, each folder once.
    """
    found, seen = [], {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, onerror=_refuse_unread, followlinks=True):
        real = {os.path.realpath(Path(folder, name)): name for name in sorted(folders, reverse=True)}
        folders[:] = [name for place, name in real.items() if place not in seen]
        seen |= real.keys()
        found += [Path(folder, name) for name in names if fnmatch(name, pattern)]
    return sorted(found)


def _refuse_unread(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise unread(error) from None


def require_stem(out: Path) -> None:
    """UserError for an --out to which no endings can be added: / and the current folder, or a name that has one of ours."""
    if out.name in ("", ".."):
        raise UserError(f"--out {out}: names a folder; give the name of a file in it, without ending")
    if out.suffix in ENDINGS:
        raise UserError(
            f"--out {out}: several files are written, each with its ending; give the name without {out.suffix}"
        )


def ended(stem: Path, ending: str) -> Path:
    """The file of that ending, such as v1.2.md of v1.2."""
    return stem.with_name(stem.name + ending)


def writable(folder: Path, option: str = "--out") -> Path:
    """A folder that the user named by `option`, there or to be made; UserError if nothing can be written there. Makes nothing."""
    try:
        with TemporaryFile(dir=next(place for place in (folder, *folder.absolute().parents) if place.exists())):
            return folder
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot write there ({error.strerror}); choose another folder") from None


def write_output(path: Path, content: str | bytes) -> None:
    """`write_atomic` for a file that the user named, at the end of its links; UserError if it cannot be written."""
    try:
        if path.exists() and not path.is_file():  # a device, which a move onto it would replace
            raise UserError(f"cannot write {path} (not a regular file); choose another file")
        whole = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        write_atomic(Path(os.path.realpath(path)), whole)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another file") from None


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one go; a crash, a full disk or a reader never meets half a file.

    Raises OSError with the old file intact and nothing left behind.
    """
    with beside(path, content) as part:
        os.replace(part, path)


def write_once(path: Path, content: bytes) -> bool:
    """`write_atomic` for a name that must be free; False if it is not. Of many that try at once one succeeds."""
    with beside(path, content) as part:
        return publish(part, path)


def publish(part: Path, path: Path) -> bool:
    """Moves a file onto a name that must be free; False if it is not.

    A hard link is made by one alone, also over NFS. Where there are none, two that come at the same instant may both succeed.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        if os.stat(part).st_nlink < 2:  # else NFS made the link, lost its answer and asked again
            return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            return False
        os.replace(part, path)
        return True
    part.unlink()
    return True


@contextmanager
def beside(path: Path, content: bytes) -> Iterator[Path]:
    """A file with this content beside `path`, which the caller moves there; in the end it is gone in any case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # unique: a stale one of a dead run is no obstacle
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        with suppress(OSError):
            part.unlink()


def unused(named: Callable[[str], Path]) -> Path:
    """The first of named(""), named(".1"), named(".2") and so on that is not there yet."""
    names = map(named, ("", *(f".{n}" for n in range(1, 1000))))
    return next(name for name in names if not name.exists())


def sweep(path: Path) -> None:
    """Deletes what dead runs left half-written of the files that have the name of `path` before their ending."""
    now = time.time()
    with suppress(OSError), TemporaryFile(dir=path.parent) as own:  # a full disk has no room for it
        now = os.fstat(own.fileno()).st_mtime  # by the clock that dated the others
    for part in path.parent.glob(f".{path.stem}.*.part"):
        with suppress(OSError):
            if now - part.stat().st_mtime > STALE_S:
                part.unlink()
