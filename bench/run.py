"""The command: python -m bench.run --suite NAME, or list, or status.

Runs every trial of a suite that has no final record yet. Running the same command again is how to resume.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.cli import Parser, closed, one_line, say
from bench.errors import UserError
from bench.files import given_path, writable
from bench.machine import device_slots, positive, threads_each
from bench.seeds import parse_seeds
from bench.suite import Suite, Trial, load_suite, names
from bench.yaml_strict import unknown

UNFINISHED, FAILED = 3, 1  # exit codes beside 0 and 2
LONGEST = 366 * 24 * 3600  # seconds that anybody can mean to wait
SECONDS = {"s": 1, "m": 60, "h": 3600}


def parser() -> argparse.ArgumentParser:
    found = Parser(prog="python -m bench.run", description=__doc__.partition("\n")[0] if __doc__ else "")
    found.add_argument("command", nargs="?", default="run", choices=("run", "list", "status"))
    found.add_argument("--suite", help="name of a suite (see list), or path of its YAML file")
    found.add_argument(
        "--only", action="append", metavar="ROW", help="run this row only; several as A,B or by several --only"
    )
    found.add_argument("--seeds", help="seeds such as 0-9 or 0,3,7 (default: the suite's)")
    found.add_argument(
        "--budget", default="paper", help="how long to train: a budget of the suite (default: %(default)s)"
    )
    found.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    found.add_argument("--data-root", type=given_path, help="folder of datasets (default: AMM_DATA_ROOT, else data)")
    found.add_argument(
        "--out", type=given_path, default=Path("results/runs"), help="root of the records (default: %(default)s)"
    )
    found.add_argument("--time-budget", help="stop, resumable, after this long: 90s, 9m, 2h")
    found.add_argument(
        "--workers", type=int, help="processes at once (default: one for each GPU, or for each CPU core that has 8 GiB)"
    )
    found.add_argument("--threads", type=int, help="CPU threads of each trial (default: cores / workers)")
    found.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds (default: %(default)s)"
    )
    found.add_argument(
        "--share",
        type=int,
        metavar="N",
        help="trials that share a device at once (default: 1 on a CPU, what pays on a GPU)",
    )
    found.add_argument(
        "--engine",
        choices=("auto", "eager", "graph"),
        default="auto",
        help="how steps are taken (default: the faster way)",
    )
    found.add_argument("--backend", choices=("local", "dask"), default="local", help="where (default: this machine)")
    found.add_argument("--scheduler", metavar="ADDRESS", help="of --backend dask (default: a cluster on this machine)")
    found.add_argument("--print-commands", action="store_true", help="print a shell line for each trial, and stop")
    found.add_argument("--keep-weights", action="store_true", help="leave the final weights beside each record")
    found.add_argument(
        "--watch", type=float, metavar="S", help="with status: look again every S seconds until all have a result"
    )
    found.add_argument(
        "--dry-run", action="store_true", help="print what would run and how long it would take, and stop"
    )
    return found


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all trials have a result, 1 some failed, 2 bad input, 3 not finished, 128 + n stopped by signal n."""
    options = parser().parse_args(argv)
    _refuse_unused(options)
    if options.command == "list":
        return show_suites()
    if not options.suite:
        raise UserError(f"--suite is missing; choices: {', '.join(names())}")
    suite = load_suite(options.suite)
    trials = chosen(suite, options)
    if options.command == "status":
        check(options)
        return show_status(trials, options.out) if options.watch is None else watch(trials, options)
    return execute(trials, options)


def _refuse_unused(options: argparse.Namespace) -> None:
    """UserError for an option whose wish the command would pass over; how to run may be said to `status` too."""
    asks = ("dry_run", "print_commands")
    unread = {"list": ("suite", "only", "seeds", "watch", *asks), "status": asks, "run": ("watch",)}
    for name in unread[options.command]:
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: {options.command} does not read it; remove it")


def check(options: argparse.Namespace) -> None:
    """UserError for a number or a device that no run could mean, so that it is met before anything is begun or printed.

    Whether the device is there is asked of the machine that runs, which `--print-commands` need not.
    """
    for name in ("workers", "threads", "share"):
        positive(f"--{name}", getattr(options, name))
    if options.time_budget is not None:
        parse_duration(options.time_budget)
    if options.watch is not None:
        check_wait("--watch", options.watch)
    if not 0 <= options.checkpoint_every <= LONGEST:
        raise UserError(f"--checkpoint-every: expected seconds from 0 to {LONGEST}, got {options.checkpoint_every}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device, re.ASCII):
        raise unknown("device", options.device, ("auto", "cpu", "cuda", "cuda:N"), "--device")


def check_wait(name: str, seconds: float) -> None:
    """UserError for an option `name` whose time between two looks is no time, or longer than a system can sleep."""
    if not 0 < seconds <= LONGEST:
        raise UserError(f"{name}: expected seconds above 0, at most {LONGEST}, got {seconds}")


def show_suites() -> int:
    """One line per shipped suite."""
    for name in names():
        suite = load_suite(name)
        print(
            f"{name:<14} {suite.title} ({len(suite.rows)} rows, {len(suite.seeds)} seeds; {', '.join(suite.budgets)})"
        )
    return 0


def chosen(suite: Suite, options: argparse.Namespace) -> list[Trial]:
    """The trials that the options select."""
    from bench.plan import trials

    seeds = parse_seeds(options.seeds, "--seeds") if options.seeds is not None else None
    rows = [row.strip() for text in options.only or () for row in text.split(",")]
    return trials(suite, options.budget, rows, seeds)


def show_status(trials: Sequence[Trial], out: Path) -> int:
    """How many trials of each row are in which state."""
    print("\n".join(status_lines(trials, out)))
    return 0


def status_lines(trials: Sequence[Trial], out: Path) -> list[str]:
    """One line for each row; a trial that a living runner holds the lock of, and has no result yet, is under way."""
    from bench.lock import under_way
    from bench.record import FINAL, record_path, stored_status

    rows: dict[str, Counter[str]] = {}
    for trial in trials:
        path = record_path(out, trial)
        status = stored_status(path, trial)
        if status not in FINAL and under_way(path.with_suffix(".lock")):
            status = "under way"
        rows.setdefault(trial.row, Counter())[status] += 1
    told = ((row, ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))) for row, counts in rows.items())
    return [f"{row:<20} {text}" for row, text in told]


def watch(trials: Sequence[Trial], options: argparse.Namespace) -> int:
    """The status again and again, in place on a terminal, until every trial has a result or a person has seen enough."""
    again = ""
    while True:
        lines = status_lines(trials, options.out)
        print(again + "\n".join(lines), flush=True)
        if not unfinished(trials, options.out):
            return 0
        again = f"\x1b[{len(lines)}A\x1b[J" if sys.stdout.isatty() else ""
        time.sleep(options.watch)


def execute(
    trials: Sequence[Trial], options: argparse.Namespace, partly: bool = False, elsewhere: Sequence[Path] = ()
) -> int:
    """Runs what has no result yet, here or below `elsewhere`; with `partly` also where some of the data cannot be had."""
    from bench.engine import require_device  # imports torch

    check(options)
    left = unfinished(trials, options.out, *elsewhere)
    if options.dry_run and options.print_commands:
        raise UserError("--dry-run and --print-commands: choose one")
    if options.print_commands and (options.backend != "local" or options.scheduler):
        raise UserError("--print-commands: its lines run where they are pasted; remove --backend and --scheduler")
    if options.print_commands:
        from bench.commands import lines

        print("".join(f"{line}\n" for line in lines(left, options)), end="")
        return 0
    if options.scheduler is not None and options.backend != "dask":
        raise UserError("--scheduler: belongs to --backend dask")
    # by all trials, not those left, so that the same command always gives a trial as many threads, which decide its bits
    devices = ("cpu",) if options.scheduler else device_slots(options.device, options.workers, len(trials))
    threads = threads_each(1 if options.scheduler and not options.threads else options.threads, len(devices))
    seconds = None if options.time_budget is None else parse_duration(options.time_budget)
    for trial in () if options.scheduler else left:
        require_device(trial.precision, devices[0])
    if options.dry_run:
        return describe(trials, left, devices, threads)
    if not left:
        roots = ", ".join(map(str, (options.out, *elsewhere)))
        say(f"all {len(trials)} trials have a result below {roots}")
        return 0
    from bench.dispatch import Dispatcher, Plan
    from bench.progress import Board

    out, root = writable(options.out), options.data_root
    how = (root, options.checkpoint_every, seconds, options.keep_weights, options.share, options.engine)
    before, missing = len(trials) - len(left), require(left, root, partly)
    left = [trial for trial in left if trial.data not in missing]
    if options.backend == "dask":
        from bench.cluster import dispatch

        dispatcher, outcomes = dispatch(Plan(devices, threads, out, *how), left, options)
    else:
        dispatcher = Dispatcher(Plan(devices, threads, out, *how), Board())
        outcomes = dispatcher.run(left)
    # looked up again: what another runner had when its turn came may have ended since
    return report(outcomes, before, dispatcher.signal, whole=not (missing or unfinished(left, out)))


def unfinished(trials: Sequence[Trial], *roots: Path) -> list[Trial]:
    """The trials without a final record below any of `roots`."""
    from bench.record import FINAL, record_path, stored_status

    found = lambda trial: any(stored_status(record_path(root, trial), trial) in FINAL for root in roots)
    return [trial for trial in trials if not found(trial)]


def describe(trials: Sequence[Trial], left: Sequence[Trial], devices: Sequence[str], threads: int) -> int:
    """What would run, and about how long it would take."""
    from bench.estimate import summed, total
    from bench.methods import declared

    for trial in left:
        given = f" + {trial.batch_labelled} labelled" if trial.batch_labelled else ""
        where = f"{trial.suite}/{trial.budget}/{trial.row} seed {trial.seed}"
        steps = f"{trial.steps} steps of {trial.batch}{given}" if declared(trial.method).iterative else "no steps"
        print(f"{where}: {trial.method}, {steps}")
    print(f"{len(left)} of {len(trials)} trials to run", flush=True)
    seconds, untimed = total(left, devices[0], threads, lambda line: print(line, flush=True))
    if left:
        at_once = min(len(devices), len(left))
        wall = summed(seconds / at_once, untimed)
        less = "" if devices[0] == "cpu" else "; trials that share a GPU take less"
        print(f"on {at_once} x {devices[0]}, {threads} threads each: {wall}{less}")
    return 0


def require(trials: Sequence[Trial], root: Path | None, partly: bool = False) -> set[str]:
    """Imports the methods and loads the data once before any trial does, so that what is wrong with them is met here and once.

    With `partly` returns the names of data that cannot be had, with a line for each; UserError if there are no others.
    """
    from bench.data import load_for
    from bench.plan import method_of
    from models.noise import Noise

    for trial in {trial.method: trial for trial in trials}.values():
        method_of(trial)
    missing: dict[str, UserError] = {}
    for trial in {(trial.data, trial.split): trial for trial in trials}.values():
        try:
            if trial.data not in missing:
                load_for(trial, Noise.seeded(0), root)
        except UserError as error:
            missing[trial.data] = error
            if not partly:
                raise
    if missing and missing.keys() == {trial.data for trial in trials}:
        raise next(iter(missing.values()))
    for data, why in missing.items():
        say(f"{data} is left out: {why}")
    return set(missing)


def report(outcomes: Counter[str], before: int, signal: int, whole: bool) -> int:
    """One line in the end, and the exit code; `whole` says that every trial has a result now."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(outcomes.items()))
    say(f"{counts or 'nothing to run'}; {before} had a result before")
    if signal:
        return 128 + signal
    if outcomes["failed"] or outcomes["killed"]:
        return FAILED
    return 0 if whole else UNFINISHED


def parse_duration(text: str) -> float:
    """Seconds from 90s, 9m or 2h."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smh])", text, re.ASCII)
    if not match or not float(match[1]):
        raise UserError(f"--time-budget: expected a time like 90s, 9m or 2h, got {text!r}")
    return float(match[1]) * SECONDS[match[2]]


if __name__ == "__main__":
    sys.exit(closed(main))
