"""The frame of every command: wrong options are one line, and it ends with the exit code that a shell expects."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Protocol

from bench.errors import UserError
from bench.files import NO_SPACE, given_folder

INTERRUPTED, UNREAD = 130, 141  # 128 + SIGINT, 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """Python's, but what is wrong is one line without the list of all options."""

    def error(self, message: str) -> NoReturn:
        hint = "" if "; " in message else f"; {self.prog} --help tells the options"  # unless it says how to mend it
        self.exit(2, f"error: {message}{hint}\n")

    def add_records(self) -> None:
        """The options of a command that shows records: yours, the reference trials, and whether they may be of mixed code."""
        for name, help in (("runs", "your records (default: %(default)s)"), ("reference", "default: %(default)s")):
            self.add_argument(f"--{name}", type=given_folder, default=Path("results") / name, help=help)
        self.add_argument(
            "--allow-mixed", action="store_true", help="also where the code or data changed between seeds"
        )


class Main(Protocol):
    """The main function of a command: its arguments, by default the process's own, to its exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def one_line(main: Main) -> Main:
    """The same command, but bad input is one line on standard error and exit code 2."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            say(f"error: {' '.join(str(error).splitlines())}")
            return 2

    return guarded


def say(line: str) -> None:
    """A line on standard error, if that can be written: the exit code is told in any case."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def closed(main: Callable[[], int]) -> int:
    """The exit code of a command: its own, or that of Ctrl-C, of a reader that left (`| head`), of a full standard output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell, as by >&-
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)  # a trial's process must not find this descriptor free
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # a path may be no text: its own bytes
    try:
        code = main()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        code = UNREAD
    except UnicodeEncodeError as error:
        text = ascii(error.object[error.start : error.end])
        say(f"error: {error.encoding} cannot write {text} of the output; set PYTHONIOENCODING=utf-8")
        code = 2
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        say(f"error: cannot write the output ({error.strerror}); free some space")
        code = 2
    # what the stream still holds is flushed once more when Python ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
