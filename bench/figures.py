"""Pictures of a trained trial, after the paper's Figures 2-4, and of a whole suite.

    python -m bench.run --suite digits_unsup --only amm --seeds 0 --keep-weights
    python -m bench.figures --suite digits_unsup --row amm --seed 0
    python -m bench.figures --suite digits_unsup

The second line needs the weights that `--keep-weights` leaves; without a row all rows are drawn beside their published values.
Each picture is a PNG and an SVG in results/figures/<suite>/<row>/, or without a row in results/figures/<suite>/, and README.md
there says in words what each shows.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.cells import lookup
from bench.cli import Parser, closed, one_line
from bench.data import load_for
from bench.errors import UserError
from bench.files import given_path, write_output
from bench.lines import ABSENT, Line, other_budget
from bench.pictures import COLOURS, Picture, Pictures, new_figure
from bench.plan import trials
from bench.record import FINAL, Record, is_of, record_path
from bench.run import UNFINISHED
from bench.suite import Suite, load_suite, unit
from bench.table import collected, prepared, shown
from bench.trained import load
from models.noise import Noise

# how the trials of a run are drawn: name, colour, marker
SOURCES = {"yours": ("our trials", COLOURS[3], "s"), "reference": ("reference trials", COLOURS[5], "o")}


def learning_curves(suite: Suite, row: str, budget: str, records: Sequence[Record]) -> Picture:
    """The suite's score of every seed of `row` under `budget` at every scoring, with their mean and its band of one std.

    UserError where a scoring lacks it, as that of a classifier that the row's method does not have.
    """
    group, _, name = suite.metric.rpartition(".")
    curves = [[(p["step"], p[group].get(name)) for p in record["result"]["curve"]] for record in records]
    if any(value is None for seed in curves for _, value in seed):
        raise UserError(
            f"suite {suite.suite}: the records of row {row} have no {suite.metric}; name a metric that they have"
        )
    figure = new_figure(4.5, 2.8)
    axis = figure.subplots()
    for seed in curves:
        axis.plot(*zip(*seed, strict=True), color=COLOURS[8], linewidth=0.7, marker="o" if len(seed) == 1 else None)
    if len({tuple(step for step, _ in seed) for seed in curves}) == 1 and len(curves) > 1:
        values = np.array([[value for _, value in seed] for seed in curves])
        steps, mean, std = [step for step, _ in curves[0]], values.mean(0), values.std(0, ddof=1)
        axis.fill_between(steps, mean - std, mean + std, color=COLOURS[5], alpha=0.2, linewidth=0)
        axis.plot(steps, mean, color=COLOURS[5], linewidth=1.8)
    axis.set_ylim(0)
    axis.set_xlabel("step")
    axis.set_ylabel(_with_unit(suite))
    label = _shortened(next(found.label for found in suite.rows if found.row == row), suite, budget)
    axis.set_title(f"{label}: {len(curves)} seed{'s' * (len(curves) != 1)}")
    return Picture(
        "curves", f"{suite.metric} of {label} over the training, one thin line a seed, their mean and one std", figure
    )


def _with_unit(suite: Suite) -> str:
    """What an axis of the suite's score says."""
    return suite.metric + (", %" if unit(suite.metric, suite.task) == "percent" else "")


def _shortened(text: str, suite: Suite, budget: str) -> str:
    """`text`, with the budget's name if it is no full one."""
    return ", ".join(filter(None, [text, other_budget(suite, budget, budget)]))


def comparison(suite: Suite, budget: str, lines: Sequence[Line]) -> Picture:
    """Every row's score at the end: each trial a dot, mean and std a bar, the published mean and std a diamond above.

    `lines` are those of the table of `budget`, and the trials of a row those that its verdict is about.
    """
    drawn = [found for found in lines if found.cells[found.source].text() or found.row.published]
    figure = new_figure(6.0, 0.34 * len(drawn) + 0.9)
    axis = figure.subplots()
    for place, found in enumerate(reversed(drawn)):
        published, summary = found.row.published, found.cells[found.source].summary
        if published:
            style = {"color": COLOURS[6], "marker": "D", "markersize": 4, "capsize": 3, "linestyle": "none"}
            axis.errorbar(published.mean, place + 0.18, xerr=published.std or None, label="published", **style)
        if summary:
            done = [r for r in found.records[found.source] if r["status"] == "done"]
            values = [lookup(record, found.metric) for record in done]
            axis.plot(values, [place - 0.18] * len(values), "|", color=COLOURS[8], markersize=5)
            name, colour, marker = SOURCES[found.source]
            style = {"color": colour, "marker": marker, "markersize": 4, "capsize": 3, "linestyle": "none"}
            axis.errorbar(summary.mean, place - 0.18, xerr=summary.std or None, label=name, **style)
    told = [(_named(found), _remarks(suite, budget, found)) for found in drawn]
    axis.set_yticks(range(len(drawn)), ["\n".join(filter(None, texts)) for texts in reversed(told)])
    axis.set_ylim(-0.6, len(drawn) - 0.4)
    axis.set_xlim(0)
    axis.set_xlabel(_with_unit(suite))
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=3)  # within it would pass for data
    alt = f"{suite.metric} of every row: published mean and std above, the trials, their mean and std below"
    return Picture("comparison", "; ".join([alt, *(f"{name}: {said}" for name, said in told if said)]), figure)


def _named(found: Line) -> str:
    return found.row.label + (f", K = {found.clusters}" if found.clusters != ABSENT else "")


def _remarks(suite: Suite, budget: str, found: Line) -> str:
    """A row's score and budget where they are not those of the table, and what its trials without a result are."""
    score, cell = found.metric if found.metric != suite.metric else "", found.cells[found.source]
    of = other_budget(suite, budget, found.budgets[found.source]) if cell.text() else ""
    return ", ".join(filter(None, [score, of, cell.missing()]))


def write(folder: Path, title: str, pictures: Sequence[Picture]) -> None:
    """Each picture as PNG and SVG, and README.md, which shows them; prints where that lies."""
    parts = [f"# {title}"]
    for picture in pictures:
        for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            file = io.BytesIO()
            picture.figure.savefig(file, format=form, dpi=150, metadata=metadata)
            write_output(folder / f"{picture.name}.{form}", file.getvalue())
        parts.append(f"![{picture.alt}]({picture.name}.png)\n\n{picture.alt}.")
    write_output(folder / "README.md", "\n\n".join(parts) + "\n")
    print(folder / "README.md")


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 bad input, 3 no trial of the suite has a result yet."""
    parser = Parser(prog="python -m bench.figures", description="Pictures of a trained trial, or of a suite.")
    parser.add_argument("--suite", required=True, help="name of a suite, or path of its YAML file")
    parser.add_argument("--row", help="a row of the suite; without it all rows are compared")
    parser.add_argument("--seed", type=int, help="of the trained trial (default: 0)")
    parser.add_argument("--budget", default="paper", help="default: %(default)s")
    parser.add_records()
    parser.add_argument("--data-root", type=given_path, help="folder of datasets (default: AMM_DATA_ROOT, else data)")
    parser.add_argument("--out", type=given_path, default=Path("results/figures"), help="default: %(default)s")
    options = parser.parse_args(argv)
    return _make(options)


def _make(options: argparse.Namespace) -> int:
    suite = load_suite(options.suite)
    trials(suite, options.budget)  # refuses an unknown budget
    roots = options.runs, options.reference
    folder = options.out / suite.suite
    if options.row is None:
        for name in ("seed", "data_root"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: goes with --row, whose trained trial is drawn")
        shipped, yours, remarks = collected(suite, options.budget, *roots, options.allow_mixed)
        lines, _ = prepared(suite, options.budget, shipped, yours)
        print("".join(f"{remark}\n" for remark in remarks), end="", file=sys.stderr)  # a picture has no notes
        if not any(record["status"] in FINAL for found in lines for record in found.records[found.source]):
            where = f"{options.runs} or {options.reference}"
            print(f"{suite.suite}: no result under {options.budget} below {where} yet; run it first", file=sys.stderr)
            return UNFINISHED
        write(folder, suite.title, [comparison(suite, options.budget, lines)])
        return 0
    (trial,) = trials(suite, options.budget, [options.row], [options.seed or 0])
    path = record_path(options.runs, trial)
    if not path.exists():
        command = f"bench.run --suite {options.suite} --budget {trial.budget} --only {trial.row} --seeds {trial.seed}"
        raise UserError(
            f"{path}: no such record; run it first: python -m {command} --keep-weights --out {options.runs}"
        )
    records = shown(suite, options.budget, *roots, options.allow_mixed)
    trained = load(path)
    if not is_of(trained.record, trial):
        raise UserError(
            f"{path}: is of another configuration than the suite plans now; run the trial again into another --out"
        )
    dataset = load_for(trial, Noise.seeded(trial.init_seed), options.data_root)
    mine = [r for r in records if r["trial"]["row"] == options.row and r["status"] == "done"]
    pictures = [*Pictures(trained, dataset).made(), learning_curves(suite, options.row, trial.budget, mine)]
    title = _shortened(f"{suite.title}: {options.row}, seed {trial.seed}", suite, trial.budget)
    write(folder / options.row, title, pictures)
    return 0


if __name__ == "__main__":
    sys.exit(closed(main))
