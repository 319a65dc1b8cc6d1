"""Fill the paper's tables in the time that there is: the next trials by value, packed to be carried away, merged at home.

    python -m bench.campaign --plan                                  # what would run, in which order, and what is there already
    python -m bench.campaign --time-budget 9m --out DIR              # runs or resumes below DIR, then packs DIR into a few files
    python -m bench.campaign --merge DIR                             # brings records and checkpoints home to results/runs

First come the paper's own cells, then the rivals, those with the least arithmetic first; three seeds of every row, which allow a
verdict, before the seven others. Trials with a result below --out, --home or results/reference are not run again. Options that
it does not know are those of `bench.run` that say how to run. On a GPU the seeds of a row share the device, at first three:
their steps take 7.6 minutes of an H200 for AMM on MNIST. With --share 3 rows of one method share it too, so that the last seed of
one does not run alone. With hours to spend, --share 12 fills it, for a third more steps a second.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import run
from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.files import given_folder, given_path
from bench.formats import github
from bench.lines import results
from bench.methods import declared
from bench.pack import laid_out, merge, packed
from bench.plan import trials
from bench.progress import duration
from bench.record import Record
from bench.seeds import spans
from bench.sources import SOURCES
from bench.statistics import ENOUGH
from bench.suite import Trial, load_suite

HEADLINE = (  # the paper's own numbers: Table 1's MNIST, Table 2, Table 1's SVHN; before each row as printed the one that works
    ("mnist_unsup", "amm_k10_works"),
    ("mnist_unsup", "amm_k10"),
    ("mnist_unsup", "amm_k20_works"),
    ("mnist_unsup", "amm_k20"),
    ("mnist_unsup", "amm_k30_works"),
    ("mnist_unsup", "amm_k30"),
    ("svhn_semi", "samm_noise"),
    ("svhn_semi", "samm"),
    ("svhn_unsup", "amm_k30"),
    ("svhn_unsup", "amm_k20"),
)
HEADS = ("suite", "row", "results", "a trial took", "the rest takes", "what is left")
SUITES = ("mnist_unsup", "svhn_semi", "svhn_unsup")
OUT = Path("results/runs")
Cell = tuple[str, str]


def ordered(only: Sequence[str] | None = None) -> list[Trial]:
    """All trials of the paper's tables, the most valuable first; `only` keeps the suites of these names."""
    found = [trial for name in SUITES if not only or name in only for trial in trials(load_suite(name), "paper")]
    return sorted(found, key=_value)


def _value(trial: Trial) -> tuple[bool, int, float]:
    """What comes first sorts first: three seeds before the rest, the paper's cells before the rivals, little before much."""
    cell = trial.suite, trial.row
    place = HEADLINE.index(cell) if cell in HEADLINE else len(HEADLINE)
    steps = trial.steps if declared(trial.method).iterative else 0
    arithmetic = steps * trial.batch * math.prod(SOURCES[trial.data].shape)  # in proportion, for nets of a size
    return trial.seed >= ENOUGH, place, 0.0 if cell in HEADLINE else arithmetic


def left(found: Sequence[Trial], roots: Sequence[Path]) -> dict[Cell, tuple[int, list[int]]]:
    """How many trials of every row are planned, and the seeds of those without a result."""
    missing = {trial.digest for trial in run.unfinished(found, *roots)}
    cells: dict[Cell, tuple[int, list[int]]] = {}
    for trial in found:
        planned, seeds = cells.get((trial.suite, trial.row), (0, []))
        if trial.digest in missing:
            seeds.append(trial.seed)
        cells[trial.suite, trial.row] = planned + 1, seeds
    return cells


def page(found: Sequence[Trial], roots: Sequence[Path]) -> str:
    """Markdown: how many rows are full, and of every row what is there and the command that runs the rest."""
    cells = left(found, roots)
    full = sum(not seeds for _, seeds in cells.values())
    enough = sum(planned - len(seeds) >= ENOUGH for planned, seeds in cells.values()) - full
    none = sum(planned == len(seeds) for planned, seeds in cells.values())
    suites = [load_suite(name) for name in dict.fromkeys(suite for suite, _ in cells)]
    records = {
        budget: [one for suite in suites for one in results(suite, budget, roots)] for budget in ("paper", "quick")
    }
    whole = {(trial.suite, trial.row): trial for trial in found}
    lines = []
    for cell, (planned, seeds) in cells.items():
        mine = {budget: [r for r in all_ if _cell(r) == cell] for budget, all_ in records.items()}
        command = f"`{_command(*cell, seeds)}`" if seeds else ""
        rest = _rest(whole[cell], len(seeds), [*mine["paper"], *mine["quick"]])
        there = f"{planned - len(seeds)} of {planned}"
        lines.append(dict(zip(HEADS, (*cell, there, _took(mine["paper"]), rest, command), strict=True)))
    told = (
        f"## What has run of the paper's tables\n\n{len(cells)} rows: {full} full, {enough} more with the {ENOUGH} trials that "
        f"allow a verdict, {len(cells) - full - enough - none} with fewer, {none} with none. The paper's own rows come "
        "first, then cheap rows before costly ones. `python -m bench.campaign` runs all that is left; a command below with "
        '`--dry-run` says how long it takes on your machine. "A trial took" is the median time, other work of the machine at '
        'that time included; "the rest takes" follows from it, or from shorter trials, on the fastest machine on record.'
    )
    return f"{told}\n\n{github(lines)}\n"


def _cell(record: Record) -> Cell:
    return record["trial"]["suite"], record["trial"]["row"]


def _rest(trial: Trial, n: int, records: Sequence[Record]) -> str:
    """How long n trials like `trial` take by a row's records of any length, on the machine where that is least; "" if unknown."""
    machines: dict[str, list[float]] = {}
    for record in (record for record in records if record["status"] == "done" and n and _timed(record)):
        about, examples = record["run"], record["result"].get("steps", 0) * record["trial"]["batch"]
        longer = trial.steps * trial.batch / examples if examples else 1.0
        machines.setdefault(_machine(about), []).append(about["seconds"] / (about.get("shared_by") or 1) * longer)
    each = {machine: statistics.median(seconds) for machine, seconds in machines.items()}
    least = min(each, key=lambda machine: each[machine], default="")
    return f"{duration(n * each[least])}, {least}" if least else ""


def _took(records: Sequence[Record]) -> str:
    """The median time of a row's trials, and what they ran on."""
    runs = [record["run"] for record in records if _timed(record)]
    if not runs:
        return ""
    on = sorted({_machine(each) for each in runs})
    return f"{duration(statistics.median(each['seconds'] for each in runs))}, {', '.join(on)}"


def _timed(record: Record) -> bool:
    """Whether a record says how long its trial took and on what, which the oldest ones do not."""
    named = "threads" if record["run"].get("device") == "cpu" else "device_name"
    return {"seconds", "device", named} <= record["run"].keys()


def _machine(run: Mapping[str, Any]) -> str:
    if run["device"] == "cpu":
        return f"{run['threads']} core{'s' * (run['threads'] > 1)}"
    at_once = run.get("shared_by") or 1
    return f"{run['device_name']}{f' with {at_once} at once' if at_once > 1 else ''}"


def _command(suite: str, row: str, seeds: Sequence[int]) -> str:
    return f"python -m bench.run --suite {suite} --only {row} --seeds {spans(seeds)}"


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes are those of `bench.run`."""
    parser = Parser(
        prog="python -m bench.campaign",
        description="Fill the paper's tables by value.",
        epilog="All other options, such as --time-budget 9m, go to bench.run.",
    )
    parser.add_argument("--plan", action="store_true", help="print what is there and what comes next, and stop")
    parser.add_argument(
        "--merge", type=given_path, metavar="DIR", help="bring the results of a campaign home, and stop"
    )
    parser.add_argument("--allow-mixed", action="store_true", help="merge results of different code into one row")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be given several times")
    parser.add_argument("--out", type=given_path, default=OUT, help="where it runs (default: %(default)s)")
    parser.add_argument("--home", type=given_path, default=OUT, help="your records (default: %(default)s)")
    parser.add_argument(
        "--reference", type=given_folder, default=Path("results/reference"), help="default: %(default)s"
    )
    own, rest = parser.parse_known_args(argv)
    _refuse_unused(own, rest)
    if own.merge:
        print("\n".join(merge(own.merge, own.home, own.allow_mixed)))
        return 0
    options = _how(rest, own.out)
    found, roots = ordered(own.suite), (own.out, own.home, own.reference)
    if own.plan:
        print(page(found, roots), end="")
        return 0
    if not options.dry_run:
        laid_out(own.out)
    try:
        return run.execute(found, options, partly=True, elsewhere=(own.home, own.reference))
    finally:  # also where a trial's bad input ends all
        if own.out != own.home and not options.dry_run:
            parts, stay = packed(own.out)
            for path in parts:
                print(path)
            for name in stay:
                print(
                    f"{name}: stays, damaged or without room in the pack; --merge {own.out} brings what is whole from here"
                )


def _refuse_unused(own: argparse.Namespace, rest: Sequence[str]) -> None:
    """UserError for one of our own options, or for one of `bench.run`, that --merge or --plan would pass over."""
    if rest and (own.merge or own.plan):
        raise UserError(f"{rest[0]}: --{'merge' if own.merge else 'plan'} does not read it; remove it")
    if own.merge and (own.plan or own.suite):
        raise UserError(f"--{'plan' if own.plan else 'suite'}: --merge does not read it; remove it")
    if own.merge and own.out != OUT:
        raise UserError("--out: --merge does not read it; --home says where results go")
    if own.allow_mixed and not own.merge:
        raise UserError("--allow-mixed: belongs to --merge")


def _how(rest: Sequence[str], out: Path) -> argparse.Namespace:
    """The options of `bench.run` that say how to run; UserError for one that says what to run."""
    options, unset = run.parser().parse_args([*rest, "--out", str(out)]), run.parser().parse_args([])
    for name in ("command", "only", "seeds", "budget", "print_commands", "watch"):
        if getattr(options, name) != getattr(unset, name):
            said = options.command if name == "command" else f"--{name.replace('_', '-')}"
            raise UserError(f"{said}: a campaign chooses its trials itself; python -m bench.run reads it")
    return options


if __name__ == "__main__":
    sys.exit(closed(main))
