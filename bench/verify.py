"""Every committed number once more: python -m bench.verify [--results results] [--write]

Re-derives the committed tables from the committed records, and asks of every record whether it can be what it says: bytes as
when they were committed, a whole record of this schema in its own place, of a trial as planned today, with its code, versions and
data named, scores that follow from its counts, its best steps from its curve, no seed and no final weights twice. What it cannot
see without training again is a record that was made up whole; `bench.run` with the same suite and seed shows that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from bench import campaign, metrics, provenance, speed, study, table
from bench.errors import UserError
from bench.files import given_path, write_output
from bench.plan import trials
from bench.record import is_of, read, record_path
from bench.reproduce import ENDINGS, TABLES, texts
from bench.statistics import Record
from bench.suite import Trial, load_suite, names
from bench.trainer import HEADLINE

OURS = ("digits_unsup", "digits_semi", "plane_unsup")  # suites with a table of their own, results/<suite>.md
SUMS = "SHA256SUMS"  # of all records; `sha256sum --check` reads it too
PAGES = {*ENDINGS.values(), ".json"}  # what lies directly below results/ is a table, or the samples of one
BRIEF = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)  # where the README shows a suite
SHA256, SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")
ACCURACY = 1e-9  # to which a score must follow from its counts; libraries differ in their last digits
RUN = ("started", "device", "device_name", "precision", "threads", "seconds", "resumed")
Scores = dict[str, float | int | None]


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
        raise UserError(f"{samples}: cannot be read ({error.strerror}); python -m bench.speed makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{samples}: holds no samples of bench.speed ({reason}); make it anew") from None


def _study(page: Path, results: Path) -> str:
    suite = load_suite(page.stem)
    found = study.records_of(suite, (results / "reference",), "paper")
    return study.render(suite, found, page.with_suffix(".png").name)


def _brief(results: Path, place: re.Match[str]) -> str:
    """The README's table of the suite that its mark names."""
    suite = load_suite(place[2])
    reference, _, _ = table.collected(suite, "paper", results / "no runs of yours", results / "reference")
    return f"{place[1]}\n{table.brief(suite, 'paper', reference)}\n\n{place[3]}"


def sums(results: Path) -> dict[str, str]:
    """sha256 of every record, by its path below `results`."""
    found = _files(results / "reference")
    return {path.relative_to(results).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


def write(results: Path) -> None:
    """Makes every table and the list of sums anew; if one cannot be made, none is written."""
    for name, text in {name: make() for name, make in tables(results).items()}.items():
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
    for path, record in records.items():
        yield from (f"{path}: {what}" for what in _about_record(root, path, record))
    yield from _about_plan(root, records)
    yield from _about_pairs(records)
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


def _about_record(root: Path, path: Path, record: Record) -> Iterator[str]:
    """What a record contradicts by itself."""
    trial = Trial.from_json(record["trial"])
    if record_path(root, trial) != path:
        yield f"holds the trial of {record_path(root, trial).relative_to(root)}"
    try:
        yield from _about_origin(record, trial)
        if record["result"] is not None:
            yield from _about_result(record["result"], trial, record["status"])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        yield f"is not made as a record is ({type(error).__name__}: {error})"


def _about_origin(record: Record, trial: Trial) -> Iterator[str]:
    """Provenance: code, versions, machine, data."""
    git, data, about = record["run"].get("git") or {}, record["data"], record["run"]
    if not SHA256.fullmatch(str(git.get("sources"))) or not SHA1.fullmatch(str(git.get("sha"))):
        yield "does not name the code that it was made by"
    # on a machine to which a changed tree was copied it may have been committed since
    if git.get("dirty") is not False and not provenance.committed(str(git.get("sources")), str(git.get("sha"))):
        yield "was made by code that was not committed"
    if not {"python", "torch", "numpy"} <= (about.get("versions") or {}).keys():
        yield "does not name the versions that it was made with"
    missing = [key for key in RUN if about.get(key) is None]
    if missing:
        yield f"does not tell its {', '.join(missing)}"
    if about.get("precision") != trial.precision:
        yield f"was computed in {about.get('precision')}, its trial says {trial.precision}"
    if data.get("name") != trial.data:
        yield f"is of the data {data.get('name')}, its trial of {trial.data}"
    if not all(SHA256.fullmatch(str(data.get(key))) for key in ("digest", "split_digest")):
        yield "does not name its data by their digests"


def _about_result(result: Mapping[str, Any], trial: Trial, status: str) -> Iterator[str]:
    """Steps, scores and choices that do not follow from one another."""
    if status == "done" and not (result["step"] == result["steps"] == result["last"]["step"]):
        yield f"is done at step {result['step']} of {result['steps']}, scored at {result['last']['step']}"
    if result["steps"] not in (0, trial.steps):
        yield f"took {result['steps']} steps, its trial has {trial.steps}"
    if status == "done" and not SHA256.fullmatch(str(result["weights_sha256"])):
        yield "has no digest of its final weights"
    points = [{key: point[key] for key in ("step", "test", "validation")} for point in result["curve"]]
    steps = [point["step"] for point in points]
    if steps != sorted(set(steps)):
        yield "has a curve whose steps do not increase"
    key = HEADLINE[trial.task]
    right = {"last": points[-1], "selected": min(points, key=lambda point: point["validation"][key])}
    right["best_on_test"] = min(points, key=lambda point: point["test"][key])
    for name, point in right.items():
        if any(result[name][part] != point[part] for part in point):
            yield f"has scores at its {name} step that its curve does not have"
    for classifier, counts in (result.get("confusion") or {}).items():
        prefix = "" if classifier == "predict" else f"{classifier}_"
        for name, value in _scores(counts, trial.task).items():
            told = result["last"]["test"].get(prefix + name)
            if (told is None) != (value is None) or not math.isclose(told or 0, value or 0, abs_tol=ACCURACY):
                yield f"has the score {prefix + name} {told}, its counts of cluster by class give {value}"


def _scores(counts: Sequence[Sequence[int]], task: str) -> Scores:
    """Scores of the test set from its counts by cluster and class."""
    array = np.array(counts, dtype=np.int64)
    if array.ndim != 2 or array.min() < 0:
        raise ValueError("counts of cluster by class are no table of numbers")
    clusters, classes = np.indices(array.shape)
    pred, true = (np.repeat(ids.ravel(), array.ravel()) for ids in (clusters, classes))
    if task == "classification":
        return {"error": metrics.plain_error(pred, true)}
    return metrics.score(pred, true, n_clusters=array.shape[0], n_classes=array.shape[1])


def _about_plan(root: Path, records: Mapping[Path, Record]) -> Iterator[str]:
    """Records of trials that their suites do not plan today."""
    planned: dict[tuple[str, str], dict[Path, Trial]] = {}
    for path, record in records.items():
        name, budget = (record["trial"][key] for key in ("suite", "budget"))
        if (name, budget) not in planned:
            try:
                planned[name, budget] = {record_path(root, each): each for each in trials(load_suite(name), budget)}
            except UserError as error:
                planned[name, budget] = {}
                yield f"{path}: {error}"
        trial = planned[name, budget].get(record_path(root, Trial.from_json(record["trial"])))
        if trial is None or not is_of(record, trial):
            yield f"{path}: is of a configuration or seed that its suite does not plan; move it away or run it again"


def _about_pairs(records: Mapping[Path, Record]) -> Iterator[str]:
    """What may not be equal in two records is, or the other way round."""
    done = {path: record for path, record in records.items() if record["status"] == "done"}
    unique: tuple[tuple[str, Mapping[Path, Any]], ...] = (
        ("trial", {path: record["digest"] for path, record in records.items()}),
        ("final weights", {path: _weights(record) for path, record in done.items()}),
    )
    for what, values in unique:
        yield from _twice(what, values)
    agree = (
        ("data", lambda record: [record["trial"]["data"]], lambda record: record["data"].get("digest")),
        ("split", _split, lambda record: record["data"].get("split_digest")),
        ("classes of the test set", lambda record: [record["data"].get("digest")], _classes),
    )
    for what, group, value in agree:
        yield from _different(what, group, value, records)


def _weights(record: Record) -> Any:
    return record["result"].get("weights_sha256")


def _split(record: Record) -> list[Any]:
    """What decides the split of a trial, and its digest."""
    keys = ("data", "seed", "validation", "labels", "split", "balanced")
    return [record["data"].get("digest"), *(record["trial"].get(key) for key in keys)]


def _classes(record: Record) -> Any:
    """How many test examples of each class the counts have; None for a record without, as from before they were kept."""
    try:
        counts = record["result"]["confusion"]["predict"]
        return None if counts is None else np.array(counts).sum(0).tolist()
    except (KeyError, ValueError, TypeError):
        return None


def _twice(what: str, values: Mapping[Path, Any]) -> Iterator[str]:
    seen: dict[Any, Path] = {}
    for path, value in values.items():
        if value is not None and str(value) in seen:
            yield f"{path}: has the same {what} as {seen[str(value)]}"
        seen.setdefault(str(value), path)


def _different(
    what: str, group: Callable[[Record], list[Any]], value: Callable[[Record], Any], records: Mapping[Path, Record]
) -> Iterator[str]:
    """Records that disagree with most of their group."""
    groups: dict[str, dict[str, list[Path]]] = {}
    for path, record in records.items():
        if value(record) is not None:
            of = groups.setdefault(str(group(record)), {})
            of.setdefault(str(value(record)), []).append(path)
    for by_value in groups.values():
        usual = max(by_value.values(), key=len)
        for path in (path for paths in by_value.values() if paths is not usual for path in paths):
            yield f"{path}: has another {what} than {usual[0]}"


def _about_tables(results: Path) -> Iterator[str]:
    """Tables that are missing, not what the records give, or made by nothing."""
    made = tables(results)
    for name, make in made.items():
        path = results / name
        try:
            with redirect_stderr(StringIO()):  # what cannot be read has its line already
                right = make().encode()
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{path}: cannot be made from the records: {error}"
            continue
        if not path.is_file() or path.read_bytes() != right:
            yield f"{path}: is not what the records give; see what changed, then make it with --write"
    known = {
        *made,
        *(path.name for path in _samples(results)),
        "report.md",
    }  # the report is a reader's own, never committed
    for path in sorted(results.iterdir()):
        if path.is_file() and path.suffix in PAGES and path.name not in known:
            yield f"{path}: nothing makes this file; remove it, or name in bench/verify.py what does"


def report(found: Iterable[str]) -> int:
    """Prints the findings; 1 if there are any."""
    lines = [" ".join(line.split()) for line in found]
    print("\n".join(lines) if lines else "all committed records and tables are what they say")
    return 1 if lines else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all is true, 1 findings, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.verify", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--results", type=given_path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="first make the tables and the list of sums anew")
    options = parser.parse_args(argv)
    try:
        if not (options.results / "reference").is_dir():
            raise UserError(
                f"{options.results} holds no folder 'reference'; name the folder of the tables with --results"
            )
        if options.write:
            write(options.results)
        return report(findings(options.results))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
