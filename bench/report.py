"""One page with everything: verdicts, tables, pictures, where each number comes from. No network is needed to read it.

    python -m bench.report [--out results/report]

writes results/report.md with its pictures beside it, and results/report.html, which holds them. Both are made of the records
below results/reference and results/runs alone, and every row names the files of its records.
"""

from __future__ import annotations

import base64
import html
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import figures
from bench.cells import lookup
from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.files import ended, given_path, require_stem, write_output
from bench.formats import OTHERS, Parts, github, grid
from bench.lines import ABSENT, Line, other_budget, printed
from bench.plan import trials
from bench.record import Record, record_path
from bench.statistics import bootstrap, decimals, detectable
from bench.suite import Suite, Trial, load_suite, names
from bench.table import collected, parts, prepared

Rows = list[dict[str, str]]
READING = (
    "Scores are error rates in percent at the last step, mean ± std over n trials with n - 1 in the std. Reproduced: equivalent "
    "to the published mean within the margin that the suite fixed before the run. Not reproduced: significantly higher. Better: "
    "significantly lower. Inconclusive: neither. Verdicts are not corrected for how many there are: at a level of 0.05 one cell "
    "in twenty is judged wrongly by chance. Bootstrap: an interval of the mean, for ten trials or more; with ten it holds the "
    "true mean of normal data some nine times in ten. Detectable: the least difference to the published mean that so many trials "
    "show in about four of five attempts. A quick run is never a reproduction."
)
RESAMPLED = 10  # trials below which the bootstrap's interval is far too short
CSS = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
.wide img { min-width: 30rem; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
img { max-width: 100%; height: auto; background: #fff; }
@media (max-width: 40rem) {
  td:first-child, th:first-child { white-space: normal; min-width: 7rem; }
  th, td { padding: .25rem .4rem; }
}
ol, details { font-size: .85rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; }
"""
HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>AMM Bench: report</title><style>{CSS}</style>"
)


@dataclass(frozen=True)
class Section:
    """One suite: the parts of its table, its lines, the comparison as PNG, and the records of each row by path."""

    suite: Suite
    parts: Parts
    lines: list[Line]
    picture: bytes
    alt: str
    files: dict[str, list[Path]]
    made_with: Rows


def section(suite: Suite, runs: Path, reference: Path, allow_mixed: bool = False) -> Section | None:
    """What there is of a suite; nothing where there is neither a record nor a published number. Errors: `collected`'s."""
    shipped, yours, remarks = collected(suite, "paper", runs, reference, allow_mixed)
    if not shipped and not yours and not any(row.published for row in suite.rows):
        return None
    lines, common = prepared(suite, "paper", shipped, yours, remarks)
    drawn = figures.comparison(suite, "paper", lines)
    file = io.BytesIO()
    drawn.figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    files = {line.row.row: [*_files(line, "reference", reference), *_files(line, "yours", runs)] for line in lines}
    found = parts(suite, "paper", lines, common)
    return Section(suite, found, lines, file.getvalue(), drawn.alt, files, made_with([*shipped, *yours]))


def _files(line: Line, run: str, root: Path) -> list[Path]:
    return [record_path(root, Trial.from_json(record["trial"])) for record in line.records[run]]


def made_with(records: Iterable[Record]) -> Rows:
    """Where the trials ran: one row for each device, versions and commit, with how many there are and what they took."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        run = record["run"]
        git, versions = run.get("git") or {}, run.get("versions") or {}
        commit = (git.get("sha") or ABSENT)[:10] + (" + changes" if git.get("dirty") else "")
        key = run.get("device_name") or run.get("device") or ABSENT, versions.get("torch") or ABSENT, commit
        groups.setdefault(key, []).append(record)
    titles = ("device", "torch", "commit")
    return [
        dict(zip(titles, key, strict=True)) | {"trials": str(len(found)), "hours": f"{_seconds(found) / 3600:.2f}"}
        for key, found in sorted(groups.items())
    ]


def _seconds(records: Sequence[Record]) -> float:
    return sum(record["run"].get("seconds") or 0 for record in records)


def glance(sections: Sequence[Section]) -> Rows:
    """Every row with a published number: what there is of ours, and the verdict."""
    return [
        {
            "model": line.row.label,
            "K": line.clusters,
            "published": printed(line.row.published),
            "ours": _ours(found.suite, line) or "no trial yet",
            "verdict": line.verdict.word,
            "bootstrap 95 %": _bootstrap(line),
            "detectable": _detectable(line),
            "suite": found.suite.suite,
        }
        for found in sections
        for line in found.lines
        if line.row.published
    ]


def _ours(suite: Suite, line: Line) -> str:
    """The cell that the verdict is about, with its budget where the table says it."""
    text = line.cells[line.source].text()
    return ", ".join(filter(None, [text, other_budget(suite, "paper", line.budgets[line.source])])) if text else ""


def _bootstrap(line: Line) -> str:
    done = [record for record in line.records[line.source] if record["status"] == "done"]
    values = [value for record in done if (value := lookup(record, line.metric)) is not None]
    if len(values) < RESAMPLED:
        return ABSENT
    return " to ".join(f"{end:.{decimals(line.metric)}f}" for end in bootstrap(values))


def _detectable(line: Line) -> str:
    """The least difference to the published mean that these trials would show."""
    ours, published = line.cells[line.source].summary, line.row.published
    if not ours or ours.std is None or not published or published.std is None or not published.n or published.n < 2:
        return ABSENT
    return f"{detectable(ours.std, ours.n, published.std, published.n):.{ours.digits}f}"


# Markdown


def markdown(sections: Sequence[Section], folder: Path, stem: str) -> str:
    """The page; paths are relative to `folder`, the pictures are <stem>-<suite>.png."""
    texts = ["# AMM Bench: report", READING, "## At a glance", github(glance(sections))]
    for found in sections:
        texts += [f"## {found.suite.title}", found.parts.heading, github(found.parts.main)]
        texts += [f"![{found.alt}]({stem}-{found.suite.suite}.png)"]
        texts += [OTHERS, github(found.parts.others)] if found.parts.others else []
        texts += ["\n".join(f"{n}. {text}" for n, text in enumerate(found.parts.notes, 1))]
        if found.made_with:
            texts += ["Where the trials ran:", github(found.made_with), "Records:"]
            texts += ["\n".join(f"- {row}: {_links(paths, folder)}" for row, paths in found.files.items() if paths)]
    return "\n\n".join(text for text in texts if text) + "\n"


def _links(paths: Sequence[Path], folder: Path) -> str:
    return ", ".join(f"[{path.stem}]({_relative(path, folder)})" for path in paths)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


# HTML


def page(sections: Sequence[Section], folder: Path) -> str:
    """The same as one HTML file with its pictures inside."""
    body = ["<h1>AMM Bench: report</h1>", _paragraph(READING), "<h2>At a glance</h2>", _table(glance(sections))]
    for found in sections:
        body += [
            f"<h2>{html.escape(found.suite.title)}</h2>",
            _paragraph(found.parts.heading),
            _table(found.parts.main),
        ]
        data = base64.b64encode(found.picture).decode()
        body += [f'<div class="wide"><img alt="{html.escape(found.alt)}" src="data:image/png;base64,{data}"></div>']
        body += [_paragraph(OTHERS), _table(found.parts.others)] if found.parts.others else []
        body += ["<ol>", *(f"<li>{html.escape(text)}</li>" for text in found.parts.notes), "</ol>"]
        if found.made_with:
            body += [
                _paragraph("Where the trials ran:"),
                _table(found.made_with),
                "<details><summary>Records</summary><ul>",
            ]
            body += [f"<li>{row}: {_anchors(paths, folder)}</li>" for row, paths in found.files.items() if paths]
            body += ["</ul></details>"]
    text = "\n".join(text for text in body if text)
    return f'<!doctype html>\n<html lang="en"><head>{HEAD}</head>\n<body>\n{text}\n</body></html>\n'


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _table(rows: Rows) -> str:
    return f'<div class="wide">{grid(rows, "html")}</div>' if rows else ""  # tabulate escapes


def _anchors(paths: Sequence[Path], folder: Path) -> str:
    return ", ".join(f'<a href="{html.escape(_relative(path, folder))}">{path.stem}</a>' for path in paths)


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 bad input."""
    parser = Parser(prog="python -m bench.report", description="Everything on one page.")
    parser.add_argument(
        "--suite", action="append", help="only this one; may be given several times (default: all with records)"
    )
    parser.add_records()
    parser.add_argument(
        "--out", type=given_path, default=Path("results/report"), help="without .html (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    require_stem(options.out)
    suites = [load_suite(name) for name in dict.fromkeys(options.suite or names())]
    if not options.suite:  # a study is scored on the validation split, and bench.study shows it
        suites = [suite for suite in suites if suite.metric.startswith("test.")]
    suites.sort(key=lambda suite: all(row.published is None for row in suite.rows))  # the paper's tables first
    for suite in suites:
        trials(suite, "paper")
    roots = options.runs, options.reference
    sections = [found for suite in suites if (found := section(suite, *roots, options.allow_mixed))]
    if not any(found.made_with for found in sections):
        raise UserError(f"no record below {options.runs} or {options.reference}; run a suite with bench.run first")
    folder, stem = options.out.parent, options.out.name
    for found in sections:
        write_output(folder / f"{stem}-{found.suite.suite}.png", found.picture)
    for ending, text in ((".md", markdown(sections, folder, stem)), (".html", page(sections, folder))):
        write_output(ended(options.out, ending), text)
        print(ended(options.out, ending))
    return 0


if __name__ == "__main__":
    sys.exit(closed(main))
