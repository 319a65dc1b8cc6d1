"""What one setting at a time does: a suite's records as a table of effects and a sheet of curves.

    python -m bench.study --suite ablation_digits --out docs/ablation_digits

writes docs/ablation_digits.md and .png. Each row of such a suite changes one thing in its first row, the base, or several that
its label names. Scores are those of the suite's metric; where that is of the validation split, no choice made from them has
seen a test label.
"""

from __future__ import annotations

import io
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.cells import lookup, mixtures
from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.files import ended, given_path, require_stem, write_output
from bench.formats import github
from bench.lines import ABSENT
from bench.plan import trials
from bench.record import Record, sources
from bench.statistics import summarise, welch
from bench.suite import Row, Suite, load_suite
from bench.table import shown

QUARTERS = (0.25, 0.5, 0.75, 1.0)
READINGS = ("overlap", "slope", "entropy_y", "information_y", "noise_y", "means_apart", "reconstruction")
EXCHANGES = ("swap_y", "swap_z", "redraw_y", "redraw_z")  # readings that older records lack
COLUMNS = ("live", *READINGS)  # of the sheet, beside the score
NAMED = 3  # rows at most that a note names
LOGARITHMIC = ("noise_y",)  # from 1 to millions in one study


def by_row(suite: Suite, found: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each row that has any, in the suite's order."""
    rows = {row.row: [record for record in found if record["trial"]["row"] == row.row] for row in suite.rows}
    return {row: records for row, records in rows.items() if records}


def curve(record: Record, metric: str) -> list[float | None]:
    """A score such as "validation.majority", or a reading of the instruments, at every scoring."""
    group, _, name = metric.rpartition(".")
    return [point.get(group or "instruments", {}).get(name) for point in (record["result"] or {}).get("curve", [])]


def _at(record: Record, metric: str, part: float) -> float | None:
    """A score or reading at this part of the steps: between two scorings on the line from one to the other, none before all.

    After the last scoring it stays: a method that learns without steps is scored once, at step 0.
    """
    values = [math.nan if value is None else value for value in curve(record, metric)]
    if not values:
        return None
    found = float(np.interp(part * record["trial"]["steps"], _steps(record), values, left=math.nan))
    return None if math.isnan(found) else found


def _text(values: Sequence[float | None], digits: int) -> str:
    """The mean of what is known, with its number in brackets where that is not all."""
    known = [value for value in values if value is not None]
    some = f" ({len(known)})" if len(known) < len(values) else ""
    return summarise(known, digits).text() + some if known else ABSENT


def _difference(metric: str, mine: Sequence[Record], base: Sequence[Record]) -> str:
    """Difference of the means at the end, and Welch's p."""
    ended = ([record for record in records if record["status"] == "done"] for records in (mine, base))
    one, other = ([v for r in records if (v := lookup(r, metric)) is not None] for records in ended)
    if min(len(one), len(other)) < 2:
        return ABSENT
    a, b = summarise(one), summarise(other)
    p = welch(a.mean, a.std or 0.0, a.n, b.mean, b.std or 0.0, b.n)
    return f"{a.mean - b.mean:+.1f} (p {p:.2g})"


def _base(suite: Suite, found: dict[str, list[Record]]) -> list[Record]:
    """The records of the first row, against which all others are held; UserError if it has none."""
    row = suite.rows[0].row
    if row not in found:
        raise UserError(
            f"suite {suite.suite}: its base, row {row}, has no finished trial; run the base first, by bench.run --only {row}"
        )
    return found[row]


def table(suite: Suite, found: dict[str, list[Record]]) -> str:
    """Markdown: one line per row with records; the score at each quarter of the training, and readings at the end."""
    base = _base(suite, found)
    every = [record for records in found.values() for record in records]
    readings = [*READINGS, *(name for name in EXCHANGES if any(_at(record, name, 1.0) is not None for record in every))]
    rows = [_line(suite, row, found[row.row], base, readings) for row in suite.rows if row.row in found]
    titles = ["setting", "n", *(f"at {part:.0%}" for part in QUARTERS), "against the base", "Eq. 19", "live", *readings]
    return github([dict(zip(titles, row, strict=True)) for row in rows])


def _line(suite: Suite, row: Row, records: list[Record], base: list[Record], names: Sequence[str]) -> list[str]:
    done = [record for record in records if record["status"] == "done"]
    failed = len(records) - len(done)
    n = f"{len(done)}" + (f" of {len(suite.seeds)}" if len(records) < len(suite.seeds) else "")
    n += f", {failed} diverged" if failed else ""
    split, _, score = suite.metric.partition(".")
    quarters = [_text([_at(record, suite.metric, part) for record in done], 1) for part in QUARTERS]
    difference = ABSENT if records is base else _difference(suite.metric, records, base)
    bayes = _text([_at(record, f"{split}.bayes_{score}", 1.0) for record in done], 1)
    live = _text([_at(record, f"{split}.live", 1.0) for record in done], 1)
    readings = [_text([_at(record, name, 1.0) for record in done], 3) for name in names]
    return [row.label, n, *quarters, difference, bayes, live, *readings]


def _mixed(suite: Suite, found: dict[str, list[Record]]) -> list[str]:
    """What differs besides the setting: between the seeds of a row, and between a row's code and the base's."""
    told: dict[str, list[str]] = {}
    for row, records in found.items():
        for text in mixtures(records):
            told.setdefault(text, []).append(row)
    base = set(map(sources, _base(suite, found)))
    other = [row for row, records in found.items() if set(map(sources, records)) != base]
    told |= {"Other code than the base's, which may be a part of the difference from it.": other} if other else {}
    labels = {row.row: f'"{row.label}"' for row in suite.rows}
    notes = []
    for text, rows in told.items():
        many = len(rows) > NAMED
        which = f"{len(rows)} of {len(found)} rows" if many else ", ".join(labels[row] for row in rows)
        notes.append(f"{text.rstrip('.')} ({which}).")
    return notes


def render(suite: Suite, found: dict[str, list[Record]], sheet: str) -> str:
    """The page: heading, table, the sheet of curves by its file name, notes."""
    trials = [record["trial"] for records in found.values() for record in records]
    steps = " or ".join(f"{n:,}" for n in sorted({trial["steps"] for trial in trials}))
    heading = (
        f"## {suite.title}\n\nSuite {suite.suite}, data {suite.data}, {steps} steps of {trials[0]['batch']} unless a row says "
        f"otherwise. Score: {suite.metric}, in percent, mean ± std over n seeds, after each quarter of the training. Where a "
        "seed was not scored at that point, its value lies on the straight line between two scorings, which makes the std "
        "smaller. The columns after the comparison with the first row are of the last step: the score of Eq. 19, and readings "
        "that `models/instruments.py` explains; a number in brackets says how many seeds have that reading, which older records "
        "lack. A row has the settings of the first row except for what its label says. p is from Welch's test against the first "
        "row; with so many comparisons one in twenty is below 0.05 by chance."
    )
    notes = "\n".join(f"- {note}" for note in [*suite.notes, *_mixed(suite, found)])
    picture = f"![A line of panels for each setting: the score and the readings over the training]({sheet})"
    legend = "Thin lines are seeds, a thick one their mean, a dashed one the base's; without a panel there is no such reading."
    return "\n\n".join(part for part in (heading, table(suite, found), picture, legend, notes) if part) + "\n"


def draw(suite: Suite, found: dict[str, list[Record]], file: Any) -> None:
    """The sheet as PNG: a line of panels per row, each seed a thin line, their mean a thick one, the base's mean dashed.

    Where the records of a row lack a reading there is no panel.
    """
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False  # a label may hold a dollar
    from matplotlib import pyplot

    split = suite.metric.partition(".")[0]
    columns = [suite.metric, *(f"{split}.live" if name == "live" else name for name in COLUMNS)]
    base = _base(suite, found)
    size = (2.0 * len(columns), 1.3 * len(found) + 0.8)
    figure, axes = pyplot.subplots(len(found), len(columns), figsize=size, squeeze=False, sharex=False, sharey="col")
    labels = {row.row: row.label for row in suite.rows}
    for line, (row, records) in zip(axes, found.items(), strict=True):
        for axis, name in zip(line, columns, strict=True):
            _panel(axis, records, base, name)
        line[0].set_ylabel(textwrap.fill(labels[row], 26), fontsize=7, rotation=0, ha="right", va="center")
    for column, name in zip(axes.T, columns, strict=True):
        drawn = [axis for axis in column if axis.axison]
        if drawn:
            drawn[0].set_title(name.rpartition(".")[2].replace("_", " "), fontsize=8)
            if name in LOGARITHMIC:
                drawn[0].set_yscale("log")
                drawn[0].yaxis.set_major_formatter("{x:g}")  # matplotlib's own would need formulas
    figure.tight_layout(pad=0.4)
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _panel(axis: Any, records: Sequence[Record], base: Sequence[Record], name: str) -> None:
    axis.tick_params(labelsize=6)
    if all(None in curve(record, name) for record in records if record["status"] == "done"):
        axis.set_axis_off()
        return
    for pool, thin, style in (
        (base, False, {"color": "0.5", "linestyle": "--"}),
        (records, True, {"color": "#0072b2"}),
    ):
        lines = [(_steps(r), curve(r, name)) for r in pool if r["status"] == "done"]
        lines = [(steps, values) for steps, values in lines if None not in values]
        lines = [line for line in lines if line[0] == lines[0][0]]  # scored at the same steps, or there is no mean
        for steps, values in lines if thin else ():
            axis.plot(steps, values, linewidth=0.4, alpha=0.6, **style)
        if lines:
            mean = [sum(column) / len(column) for column in zip(*(values for _, values in lines), strict=True)]
            axis.plot(lines[0][0], mean, linewidth=1.4, **style)


def _steps(record: Record) -> list[int]:
    return [point["step"] for point in record["result"].get("curve", [])]


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 bad input."""
    parser = Parser(prog="python -m bench.study", description="Table and curves of a suite of variants.")
    parser.add_argument("--suite", required=True, help="name of a suite, or path of its YAML file")
    parser.add_argument("--budget", default="paper", help="default: %(default)s")
    parser.add_records()
    parser.add_argument("--out", type=given_path, required=True, help="the two files to write, without .md and .png")
    options = parser.parse_args(argv)
    require_stem(options.out)
    suite = load_suite(options.suite)
    trials(suite, options.budget)  # refuses an unknown budget
    found = by_row(suite, shown(suite, options.budget, options.runs, options.reference, options.allow_mixed))
    if not found:
        where = f"{options.runs} or {options.reference}"
        raise UserError(f"no finished trial of suite {suite.suite} below {where}; run it first with bench.run")
    picture, sheet = io.BytesIO(), ended(options.out, ".png")
    draw(suite, found, picture)
    write_output(ended(options.out, ".md"), render(suite, found, sheet.name))
    write_output(sheet, picture.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(closed(main))
