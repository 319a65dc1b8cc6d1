"""One command for a table of the paper: plan, ask, run or resume, aggregate, write.

    python -m bench.reproduce table1 [--suite mnist_unsup] [--yes] [--budget quick]

writes results/table1.md, .tex and .csv. Without a GPU it first says how long that would take and goes on only with --yes
or a person's consent. Options that it does not know are those of `bench.run`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import run, table
from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.estimate import counted, summed, total
from bench.files import given_folder, given_path, writable, write_output
from bench.machine import device_slots, threads_each
from bench.suite import Trial, load_suite
from bench.yaml_strict import unknown

TABLES = {"table1": ("mnist_unsup", "svhn_unsup"), "table2": ("svhn_semi",)}  # the suites of each table of the paper
ENDINGS = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes are those of `bench.run`; the tables are written however far the trials got, but not after bad input."""
    parser = Parser(
        prog="python -m bench.reproduce",
        description="Reproduce a table of the paper.",
        epilog="All other options, such as --budget quick, go to bench.run.",
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--suite", help="run this suite of the table only (default: all)")
    parser.add_argument("--yes", action="store_true", help="do not ask before a long run without a GPU")
    parser.add_argument("--allow-mixed", action="store_true", help="also where the code or data changed between seeds")
    parser.add_argument(
        "--results", type=given_path, default=Path("results"), help="where the tables go (default: %(default)s)"
    )
    parser.add_argument(
        "--reference",
        type=given_folder,
        default=Path("results/reference"),
        help="records shipped (default: %(default)s)",
    )
    own, rest = parser.parse_known_args(argv)
    suites = TABLES[own.table]
    if own.suite and own.suite not in suites:
        raise unknown("suite", own.suite, suites, own.table)
    options = run.parser().parse_args(rest)
    code = reproduce([own.suite] if own.suite else suites, own.yes, options, rest, own.results)
    if code != 2 and not _only_asks(options):
        write_tables(own.table, options.budget, (options.out, own.reference), own.results, own.allow_mixed)
    return code


def _only_asks(options: argparse.Namespace) -> bool:
    """Whether the command is to print what there is or what it would do, and so to run and write nothing."""
    return options.command != "run" or options.dry_run or options.print_commands


def reproduce(suites: Sequence[str], yes: bool, options: argparse.Namespace, rest: Sequence[str], results: Path) -> int:
    """Runs what the suites lack, one after another and after consent; the highest exit code of `bench.run`, or what ended it.

    `options` are those that `bench.run` makes of `rest`. UserError without consent, or if tables could not go to `results`.
    """
    run.check(options)
    seconds = None if options.time_budget is None else run.parse_duration(options.time_budget)
    until = None if seconds is None or _only_asks(options) else time.monotonic() + seconds
    trials = [trial for suite in suites for trial in run.chosen(load_suite(suite), options)]
    if not _only_asks(options):
        left = run.unfinished(trials, options.out)
        run.require(left, options.data_root)
        if not yes:
            ask(trials, left, options)
        writable(results, "--results")  # now, not after hours
    codes = [0]
    for suite in suites:
        # in hours, because what is left of 300h has more seconds than a time may have digits
        remaining = [] if until is None else ["--time-budget", f"{max(1.0, until - time.monotonic()) / 3600:.6f}h"]
        codes.append(run.main(["--suite", suite, *rest, *remaining]))
        if codes[-1] == 2 or codes[-1] >= 128:  # bad input, or a signal, which was meant for all of them
            return codes[-1]
    return max(codes)


def ask(trials: Sequence[Trial], left: Sequence[Trial], options: argparse.Namespace) -> None:
    """Without a GPU: says how long those left of the trials take together, and asks."""
    devices = device_slots(options.device, options.workers, len(trials))
    if not left or devices[0] != "cpu":
        return
    threads = threads_each(options.threads, len(devices))
    print("No GPU. A few steps of each row, to see how long it takes here:", file=sys.stderr)
    seconds, untimed = total(left, devices[0], threads, lambda line: print(line, file=sys.stderr, flush=True))
    consent(summed(seconds / min(len(devices), len(left)), untimed), len(left))


def consent(length: str, trials: int) -> None:
    """Says what lies ahead and asks; UserError without a yes."""
    print(f"{counted(trials)} on the CPU: {length}.", file=sys.stderr)
    if not sys.stdin.isatty():
        raise UserError("a long run without a GPU: add --yes to start it, or --budget quick for a short one")
    try:
        answer = input("Start? [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
        print(file=sys.stderr)
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("not started; --budget quick is shorter, and whatever has run stays")


def write_tables(name: str, budget: str, roots: tuple[Path, Path], results: Path, allow_mixed: bool) -> None:
    """Writes results/<name>.md, .tex and .csv from the records below `roots`, yours and the reference's.

    With an error, none of them: it is met before the first is written.
    """
    made = texts(TABLES[name], budget, *roots, list(ENDINGS), allow_mixed)
    for ending, content in zip(ENDINGS.values(), made, strict=True):
        path = results / f"{name}{ending}"
        write_output(path, content)
        print(path)


def texts(
    suites: Sequence[str], budget: str, runs: Path, reference: Path, formats: Sequence[str], allow_mixed: bool = False
) -> list[str]:
    """The tables of some suites one below the other, in each of the formats; errors as for `table.collected`."""
    roots = runs, reference
    found = [(suite, *table.collected(suite, budget, *roots, allow_mixed)) for suite in map(load_suite, suites)]
    return [
        "\n".join(table.render(suite, budget, shipped, yours, fmt, said) for suite, shipped, yours, said in found)
        for fmt in formats
    ]


if __name__ == "__main__":
    sys.exit(closed(main))
