"""Every committed number once more: python -m bench.verify [--results results] [--write]

Re-derives the committed tables from the committed records, and asks of every record whether its bytes are as when they were
committed, whether it is a whole record of this schema in its own place, and whether it can be what it says (`bench.audit`). What
it cannot see without training again is a record that was made up whole; `bench.run` with the same suite and seed shows that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

from bench import audit, campaign, lines, speed, study, table
from bench.cli import Parser, closed, one_line
from bench.errors import UserError, told, unread
from bench.files import given_path, write_output
from bench.record import Record, read
from bench.reproduce import ENDINGS, TABLES, texts
from bench.suite import load_suite, names

# suites with a table of their own, results/<suite>.md
OURS = ("digits_unsup", "digits_semi", "plane_unsup", "mnist_whole", "mnist14_semi")
SUMS = "SHA256SUMS"  # of all records; `sha256sum --check` reads it too
PAGES = {*ENDINGS.values(), ".json"}  # what lies directly below results/ is a table, or the samples of one
BRIEF = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)  # where the README shows a suite


def tables(results: Path) -> dict[str, Callable[[], str]]:
    """What makes each committed table, by its file's path below `results`: also those of the studies and of the README."""
    shows = {f"{name}{end}": (of, fmt) for name, of in TABLES.items() for fmt, end in ENDINGS.items()}
    shows |= {f"{suite}.md": ((suite,), "markdown") for suite in OURS}
    made: dict[str, Callable[[], str]]
    roots = results / "no runs of yours", results / "reference"
    made = {name: partial(_table, of, fmt, roots) for name, (of, fmt) in shows.items()}
    made["coverage.md"] = lambda: campaign.page(campaign.ordered(), [results / "reference"])
    made |= {f"{samples.stem}.md": partial(_speed, samples) for samples in _samples(results)}
    for page in sorted((results.parent / "docs").glob("*.md")):
        if page.stem in names() and (results / "reference" / page.stem).is_dir():
            made[f"../docs/{page.name}"] = partial(_study, page, results)
    if (readme := results.parent / "README.md").is_file():
        made["../README.md"] = lambda: BRIEF.sub(partial(_brief, results), readme.read_text(encoding="utf-8"))
    return made


def _table(suites: Sequence[str], fmt: str, roots: tuple[Path, Path]) -> str:
    (text,) = texts(suites, "paper", *roots, [fmt])
    return text


def _samples(results: Path) -> list[Path]:
    """Of `bench.speed`: of a CPU, which must be there, and of other devices."""
    return [results / "speed.json", *sorted(results.glob("speed_*.json"))]


def _speed(samples: Path) -> str:
    try:
        return speed.render(json.loads(samples.read_bytes()))
    except OSError as error:
        raise unread(error, samples, "python -m bench.speed makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{samples}: holds no samples of bench.speed ({reason}); make it anew") from None


def _study(page: Path, results: Path) -> str:
    suite = load_suite(page.stem)
    found = study.by_row(suite, lines.results(suite, "paper", [results / "reference"]))
    return study.render(suite, found, page.with_suffix(".png").name)


def _brief(results: Path, place: re.Match[str]) -> str:
    """The README's table of the suite that its mark names."""
    suite = load_suite(place[2])
    reference, _, _ = table.collected(suite, "paper", results / "no runs of yours", results / "reference")
    return f"{place[1]}\n{table.brief(suite, 'paper', reference)}\n\n{place[3]}"


def sums(results: Path) -> dict[str, str]:
    """sha256 of every record, by its path below `results`."""
    return {path.relative_to(results).as_posix(): _sum(path) for path in _files(results / "reference")}


def _sum(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise unread(error, path) from None


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


def write(results: Path) -> None:
    """Makes every table and the list of sums anew; if one cannot be made, none is written."""
    texts = {}
    for name, make in tables(results).items():
        try:
            texts[name] = make()
        except audit.NOT_AS_MADE as error:
            raise UserError(f"{results / name}: cannot be made from the records: {told(error)}") from None
    for name, text in texts.items():
        write_output(results / name, text)
    write_output(results / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums(results).items()))


def findings(results: Path) -> Iterator[str]:
    """What is not true of the records and tables below `results`, a line each."""
    root = results / "reference"
    yield from _changed(results)
    records: dict[Path, Record] = {}
    for path in _files(root):
        try:
            records[path] = read(path)
        except UserError as error:
            yield str(error)
    yield from audit.doubts(root, records)
    yield from _about_tables(results)


def _changed(results: Path) -> Iterator[str]:
    """Records that are not byte for byte those of the list of sums."""
    try:
        lines = (results / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        yield f"{results / SUMS}: cannot be read; make it with --write"
        return
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = sums(results)
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not listed" if name not in listed else "was changed"
            yield f"{results / name}: {what}, by {SUMS}; bring it back, or accept it with --write"


def _about_tables(results: Path) -> Iterator[str]:
    """Tables that are missing, not what the records give, or made by nothing."""
    made = tables(results)
    for name, make in made.items():
        path = results / name
        try:
            with redirect_stderr(StringIO()):  # what cannot be read has its line already
                right = make().encode()
        except (UserError, OSError, *audit.NOT_AS_MADE) as error:
            yield f"{path}: cannot be made from the records: {error}"
            continue
        if not path.is_file() or path.read_bytes() != right:
            yield f"{path}: is not what the records give; see what changed, then make it with --write"
    known = {*made, *(path.name for path in _samples(results))}
    known.add("report.md")  # a reader's own, never committed
    for path in sorted(results.iterdir()):
        if path.is_file() and path.suffix in PAGES and path.name not in known:
            yield f"{path}: nothing makes this file; remove it, or name in bench/verify.py what does"


def report(found: Iterable[str]) -> int:
    """Prints the findings; 1 if there are any."""
    lines = [" ".join(line.split()) for line in found]
    print("\n".join(lines) if lines else "all committed records and tables are what they say")
    return 1 if lines else 0


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all is true, 1 findings, 2 bad input."""
    parser = Parser(prog="python -m bench.verify", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--results", type=given_path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="first make the tables and the list of sums anew")
    options = parser.parse_args(argv)
    if not os.path.isdir(options.results / "reference"):
        raise UserError(f"{options.results} holds no folder 'reference'; name the folder of the tables with --results")
    if options.write:
        write(options.results)
    return report(findings(options.results))


if __name__ == "__main__":
    sys.exit(closed(main))
