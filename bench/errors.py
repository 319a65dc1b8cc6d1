"""The one exception that a user's mistake becomes, and any other in one line."""

from __future__ import annotations

import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType


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


def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's last word on an exception, but a library that is not installed is one line and exit code 2.

    That is how a command ends which was started without its virtual environment: it fails before it can read its options.
    Ctrl-C while a command still imports ends it in silence.
    """
    if kind is KeyboardInterrupt:
        raise SystemExit(130)
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    library = (name or "").partition(".")[0]
    if not library or find_spec(library):
        return sys.__excepthook__(kind, error, trace)
    mend = "make install, then . .venv/bin/activate"
    print(f"error: {library} is not installed for {sys.executable or 'this Python'}; {mend}", file=sys.stderr)
    raise SystemExit(2)
