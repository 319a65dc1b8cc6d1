"""Records to a table: a pure function, so that the same records always give the same bytes.

    python -m bench.table --suite mnist_unsup [--budget paper] [--format markdown] [--out results/table1.md]

One line per row of the suite: published | reference run | your run | verdict, each mean ± std (n), and below it the
other scores and numbered notes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.files import given_path, listed, write_output
from bench.formats import Parts, comma_separated, encodable, github, latex, markdown
from bench.lines import ABSENT, SCORES, Line, label, line, other_budget, printed, results, scores, stored
from bench.plan import trials
from bench.record import Record, shortened, sources
from bench.suite import Suite, load_suite


@dataclass
class Notes:
    """Footnotes in order of appearance; equal texts share a number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, texts: Iterable[str]) -> str:
        """The numbers of `texts`, such as " [1, 3]", to follow what they are about."""
        numbers = []
        for text in (" ".join(text.split()) for text in texts):
            if text not in self.texts:
                self.texts.append(text)
            numbers.append(str(self.texts.index(text) + 1))
        return f" [{', '.join(numbers)}]" if numbers else ""


def brief(suite: Suite, budget: str, reference: Sequence[Record]) -> str:
    """The rows with a published number or with records, in Markdown without notes: published | reference | verdict.

    A result says by which score it is, where that is not the suite's.
    """
    lines, _ = prepared(suite, budget, reference, ())
    told = [found for found in lines if found.row.published or found.cells["reference"].summary]
    rows = [
        {
            "Model": found.row.label,
            "K": found.clusters,
            "published": printed(found.row.published),
            "reference": _run(suite, budget, found, "reference")[0] + _rule(suite, found),
            "verdict": _judged(found),
        }
        for found in told
    ]
    return github(rows)


def _rule(suite: Suite, found: Line) -> str:
    if found.metric == suite.metric or found.cells["reference"].summary is None:
        return ""
    titles = {metric: title.removesuffix(" %") for metric, title in SCORES[suite.task]}
    return f", {titles.get(found.metric, found.metric)}"


def _main_rows(suite: Suite, budget: str, lines: Sequence[Line], notes: Notes) -> list[dict[str, str]]:
    said = label(suite, budget)
    yours = f"yours ({said})" if said else "yours"

    def cell(found: Line, run: str) -> str:
        text, marks = _run(suite, budget, found, run)
        return text + notes.mark(marks)

    return [
        {
            "Model": found.row.label + notes.mark(found.notes["model"]),
            "K": found.clusters,
            "published": printed(found.row.published) + notes.mark(found.notes["published"]),
            "reference": cell(found, "reference"),
            yours: cell(found, "yours"),
            "verdict": _spoken(found),
        }
        for found in lines
    ]


def _run(suite: Suite, budget: str, found: Line, run: str) -> tuple[str, list[str]]:
    """One cell and its notes; a reference run names its budget unless that is the one asked for and comparable."""
    text, of, marks = found.cells[run].text(), found.budgets[run], list(found.notes[run])
    said = other_budget(suite, budget, of) if text and run == "reference" else ""  # yours: the column's title says it
    if said:
        text += f", {said}"
        marks += [f"Budget {of}: {label(suite, of)}."] if label(suite, of) else []
    return text or ABSENT, marks


def _judged(found: Line) -> str:
    return ": ".join(part for part in (found.verdict.word, found.verdict.detail) if part)


def _spoken(found: Line) -> str:
    text = _judged(found)
    return text + (" (reference)" if found.source == "reference" and text != ABSENT else "")


def _other_rows(suite: Suite, lines: Sequence[Line]) -> list[dict[str, str]]:
    """The second table: yours, else the reference, of rows with a result; without columns that say nothing."""
    judged = [found for found in lines if found.cells[found.source].summary]
    rows = [{"Model": found.row.label, "K": found.clusters, **scores(suite, found)} for found in judged]
    empty = {title for title in (rows[0] if rows else {}) if all(row[title] == ABSENT for row in rows)}
    return [{title: text for title, text in row.items() if title not in empty} for row in rows]


def render(
    suite: Suite,
    budget: str,
    reference: Sequence[Record],
    yours: Sequence[Record],
    fmt: str,
    remarks: Sequence[str] = (),
) -> str:
    """The table of `suite` as text that ends with a newline.

    Args:
        budget: whose records of `yours` are shown; `reference` falls back on another budget and says so.
        reference, yours: records of any rows, seeds and order, one configuration for each row.
        fmt: "markdown", "latex" or "csv".
        remarks: what the caller left out and why; printed with the notes.

    Raises UserError for records that must not stand in one cell.
    """
    lines, common = prepared(suite, budget, reference, yours, remarks)
    if fmt == "csv":
        return comma_separated([_csv_row(suite, found, common) for found in lines])
    return {"markdown": markdown, "latex": latex}[fmt](parts(suite, budget, lines, common))


def prepared(
    suite: Suite, budget: str, reference: Sequence[Record], yours: Sequence[Record], remarks: Sequence[str] = ()
) -> tuple[list[Line], list[str]]:
    """The lines of the suite's table, and the notes that are about all of it; arguments and errors as for `render`."""
    lines = [line(suite, budget, row, reference, yours) for row in suite.rows]
    used = [record for found in lines for records in found.records.values() for record in records]
    data = sorted({record["data"].get("note") or "" for record in used} - {""})
    return lines, [*suite.notes, *(f"Data: {note}" for note in data), *remarks]


def _heading(suite: Suite, budget: str) -> str:
    said = label(suite, budget)
    return (
        f"{suite.artefact}. Suite {suite.suite}, data {suite.data}, budget {budget}{f' ({said})' if said else ''}. "
        f"Score: {suite.metric} at the last step, mean ± std (n) with n - 1 in the std; "
        f"equivalence margin {suite.margin:g}, set before the run."
    )


def parts(suite: Suite, budget: str, lines: Sequence[Line], common: Sequence[str]) -> Parts:
    """The parts of the table of `lines`, with `common` as its last notes."""
    notes = Notes()
    main, others = _main_rows(suite, budget, lines, notes), _other_rows(suite, lines)
    notes.mark(common)
    return Parts(suite.title, _heading(suite, budget), main, others, notes.texts)


def _csv_row(suite: Suite, found: Line, common: Sequence[str]) -> dict[str, object]:
    """A row for other programs, numbers apart; its notes in the last column."""
    published = found.row.published
    row: dict[str, object] = {"suite": suite.suite, "row": found.row.row, "model": found.row.label, "K": found.clusters}
    row |= {"metric": found.metric}
    row |= {f"published_{key}": getattr(published, key, None) for key in ("mean", "std", "n")}
    for run, one in found.cells.items():
        budget = found.budgets[run] if found.records[run] else ""
        row |= {f"{run}_budget": budget, f"{run}_label": budget and label(suite, budget)}
        numbers = {key: getattr(one.summary, key, None) for key in ("mean", "std", "n", "ci_low", "ci_high")}
        row |= {f"{run}_{key}": value and round(value, 6) for key, value in numbers.items()}
        row |= {f"{run}_planned": one.planned, f"{run}_without_result": one.missing()}
    row |= {"verdict": found.verdict.word, "verdict_detail": found.verdict.detail, "verdict_on": found.source}
    row |= scores(suite, found)
    return row | {
        "notes": " ".join(dict.fromkeys([*(text for texts in found.notes.values() for text in texts), *common]))
    }


def collected(
    suite: Suite, budget: str, runs: Path, reference: Path, allow_mixed: bool = False
) -> tuple[list[Record], list[Record], list[str]]:
    """The reference records of all budgets, yours of this one, and remarks on what was left out.

    Raises UserError for a row of yours that mixes code or data, unless that is allowed.
    """
    yours, remarks = stored(runs, suite, budget, any_seed=False)
    if not allow_mixed:
        refuse_mixed(yours)
    shipped: list[Record] = []
    for name in suite.budgets:
        records, said = stored(reference, suite, name, any_seed=True)
        shipped, remarks = shipped + records, remarks + [f"Reference: {text}" for text in said]
    return shipped, yours, remarks


def shown(suite: Suite, budget: str, runs: Path, reference: Path, allow_mixed: bool = False) -> list[Record]:
    """The final records to draw, of any seeds: of each row yours, or the reference's where you have none.

    Raises UserError for a row of yours that mixes code or data, unless that is allowed.
    """
    yours = results(suite, budget, [runs])
    if not allow_mixed:
        refuse_mixed(yours)
    mine = {record["trial"]["row"] for record in yours}
    return yours + [one for one in results(suite, budget, [reference]) if one["trial"]["row"] not in mine]


def refuse_mixed(yours: Sequence[Record]) -> None:
    """UserError if records in one cell were made by different sources or of different data."""
    made_by = {
        "code": sources,
        "data": lambda record: (record["data"] or {}).get("digest"),
    }
    for row in dict.fromkeys(record["trial"]["row"] for record in yours):
        for what, value in made_by.items():
            seeds: dict[str, list[str]] = {}
            for record in yours:
                digest = value(record) if record["trial"]["row"] == row else None
                if digest:  # one killed before it began tells neither
                    seeds.setdefault(digest, []).append(str(record["trial"]["seed"]))
            if len(seeds) > 1:
                told = "; ".join(f"{shortened(digest)}: seeds {', '.join(of)}" for digest, of in sorted(seeds.items()))
                raise UserError(
                    f"suite {yours[0]['trial']['suite']}: row {row} mixes different {what} ({told}); move the records of one "
                    "away and run those seeds again, or take the cell with a footnote by --allow-mixed"
                )


def incomplete(suite: Suite, budget: str, runs: Path, yours: Sequence[Record]) -> list[str]:
    """Rows that have some file of a record below `runs`, readable or not, and not a result of each planned trial in `yours`."""
    folder = runs / suite.suite / budget
    begun = [row.row for row in suite.rows if listed(folder / row.row, "seed*.json")]
    done = Counter(record["trial"]["row"] for record in yours if record["status"] == "done")
    return [f"{row}: {done[row]} of {len(suite.seeds)}" for row in begun if done[row] < len(suite.seeds)]


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.table", description="Print or write the table of a suite.")
    parser.add_argument("--suite", required=True, help="name of a suite, or path of its YAML file")
    parser.add_argument("--budget", default="paper", help="budget of your runs (default: %(default)s)")
    parser.add_records()
    parser.add_argument("--format", choices=("markdown", "latex", "csv"), default="markdown")
    parser.add_argument("--out", type=given_path, help="file to replace; default: standard output")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a row of yours lacks results")
    options = parser.parse_args(argv)
    suite = load_suite(options.suite)
    trials(suite, options.budget)  # refuses an unknown budget
    roots = options.runs, options.reference
    shipped, yours, remarks = collected(suite, options.budget, *roots, options.allow_mixed)
    text = render(suite, options.budget, shipped, yours, options.format, remarks)
    if options.out:
        write_output(options.out, text)
    else:
        sys.stdout.write(encodable(text, sys.stdout.encoding))
    lacking = incomplete(suite, options.budget, options.runs, yours) if options.strict else []
    print("".join(f"incomplete: {row}\n" for row in lacking), end="", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(closed(main))
