"""The one exception that a user's mistake becomes, and any other in one line."""

from __future__ import annotations

import traceback
from pathlib import Path


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and how to mend it. A main program prints it and exits 2."""


class Diverged(Exception):
    """A loss or a weight stopped being a finite number."""


def unread(error: OSError, path: str | Path = "", mend: str = "mend that, or move it away") -> UserError:
    """The error for a file or folder that cannot be read: `path`, else the one that `error` names."""
    return UserError(f"{path or error.filename}: cannot be read ({error.strerror}); {mend}")


def told(error: BaseException) -> str:
    """An exception in one line: its kind, its text, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):  # which was raised by the compiler, and says itself where it is
        where = ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())
