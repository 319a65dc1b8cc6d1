"""Stored records to the lines of a table: what each cell holds, what must be said about it, and the verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cells import Cell, cell, lookup
from bench.errors import UserError
from bench.files import listed
from bench.plan import trials
from bench.record import FINAL, Record, digest_today, place, read
from bench.statistics import TESTED, Verdict, decimals, summarise, verdict
from bench.suite import Published, Row, Suite

ABSENT = "–"
HIGHER_IS_BETTER = ("nmi", "ari", "live")
SCORES = {  # of the second table: metric, heading
    "clustering": (
        ("test.majority", "majority %"),
        ("test.hungarian", "one-to-one %"),
        ("test.validation_mapping", "validation-mapped %"),
        ("test.validation_exemplar", "named by a validation example %"),
        ("test.exemplar", "named by a test example %"),
        ("test.nmi", "NMI"),
        ("test.ari", "ARI"),
        ("test.live", "live clusters"),
        ("test.bayes_majority", "Eq. 19 majority %"),
        ("test.mode_majority", "mode of q(y | x) majority %"),
    ),
    "classification": (
        ("test.error", "error %"),
        ("test.bayes_error", "Eq. 19 error %"),
        ("test.mode_error", "mode of q(y | x) error %"),
        ("test.svm_error", "SVM error %"),
    ),
}


def stored(root: Path, suite: Suite, budget: str, any_seed: bool) -> tuple[list[Record], list[str]]:
    """The records of `suite` below `root` that are trials as planned today, and remarks on those that are not."""
    found, remarks = [], []
    for path in [path for row in listed(root / suite.suite / budget) for path in listed(row, "seed*.json")]:
        try:
            record = read(path)
            if path != root / place(record):
                raise UserError(f"{path}: holds the trial of {place(record)}; left out")
            found.append(record)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            remarks.append(f"Left out, unreadable or not in its place: {path.relative_to(root).as_posix()}.")
    seeds = sorted({record["trial"]["seed"] for record in found}) if any_seed else None
    digests = {trial.digest for trial in trials(suite, budget, seeds=seeds)} if found else set()
    kept = [one for one in found if one["digest"] in digests or digest_today(one) in digests]
    stale = len(found) - len(kept)
    kind = "configuration" if any_seed else "configuration or seed"
    remarks += [f"Left out: {stale} stored under {budget}, of another {kind} than planned now."] if stale else []
    return kept, remarks


def results(suite: Suite, budget: str, roots: Iterable[Path]) -> list[Record]:
    """The final records of any seeds below `roots`; of two for one trial the first root's."""
    found: dict[tuple[str, int], Record] = {}
    for root in roots:
        for record in stored(root, suite, budget, any_seed=True)[0]:
            if record["status"] in FINAL:
                found.setdefault((record["trial"]["row"], record["trial"]["seed"]), record)
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True)
class Line:
    """One row of the table with all that is known about it.

    Attributes:
        metric: what its numbers are; the suite's, unless the published number is of another.
        records, budgets, cells: by run, "reference" and "yours".
        verdict, source: the verdict, and the run that it is about.
        notes: remarks by column: "model", "published", "reference", "yours".
    """

    row: Row
    clusters: str
    metric: str
    records: dict[str, list[Record]]
    budgets: dict[str, str]
    cells: dict[str, Cell]
    verdict: Verdict
    source: str
    notes: dict[str, list[str]]


def line(suite: Suite, budget: str, row: Row, reference: Sequence[Record], yours: Sequence[Record]) -> Line:
    """Looks up one row: the reference of the same budget, else of another one; the verdict on yours once one has
    ended, else on that."""
    budgets = {"reference": _nearest(suite, budget, _of(row, reference)), "yours": budget}
    records = {
        run: [record for record in _of(row, pool) if record["trial"]["budget"] == budgets[run]]
        for run, pool in (("reference", reference), ("yours", yours))
    }
    metric = (row.published and row.published.metric) or suite.metric
    cells = {run: cell(found, metric, max(len(suite.seeds), len(found))) for run, found in records.items()}
    ended = any(record["status"] != "interrupted" for record in records["yours"])
    source = "yours" if ended or not records["reference"] else "reference"
    judged = _judge(suite, suite.budgets[budgets[source]].comparable, row.published, cells[source], metric)
    notes = {
        "model": _departures(row, [*records["yours"], *records["reference"]]) + _metric_note(suite, metric),
        "published": _origin(row.published),
        **{run: [*found.notes, *_variants(records[run])] for run, found in cells.items()},
    }
    notes["reference"] += _elsewhere(suite, metric, budgets["reference"], _of(row, reference))
    return Line(row, _clusters(row, records[source]), metric, records, budgets, cells, judged, source, notes)


def _departures(row: Row, records: Sequence[Record]) -> list[str]:
    """The differences from the paper that the suite names, and those that the trials themselves report."""
    reported = (text for record in records for text in record.get("departures") or [])
    precisions = (record["trial"].get("precision", "fp32") for record in records)
    computed = (f"Trained in {precision}." for precision in precisions if precision != "fp32")
    return list(dict.fromkeys([*row.departures, *reported, *computed]))


def _variants(records: Sequence[Record]) -> list[str]:
    """What the records say about data that are not the official files."""
    told = [record["data"].get("variant") or {} for record in records]
    return list(dict.fromkeys(_variant(variant) for variant in told if variant))


def _variant(variant: Mapping[str, Any]) -> str:
    parts = [
        f"{entry['note']} (sha256 of the images {entry['sha256_images_nhwc'][:12]}...)"
        for entry in variant.values()
        if isinstance(entry, dict)
    ]
    return f"Not the official files but {variant['name']}: {'; '.join(parts)}."


def _elsewhere(suite: Suite, metric: str, budget: str, records: Sequence[Record]) -> list[str]:
    """What trials of the row under other budgets than the one shown have, which may be more of them."""
    told = []
    for other in sorted({record["trial"]["budget"] for record in records} - {budget}):
        those = [record for record in records if record["trial"]["budget"] == other]
        if all(record["status"] != "done" or lookup(record, metric) is not None for record in those):
            told.append(f"Under {other}: {cell(those, metric, max(len(suite.seeds), len(those))).text()}.")
    return told


def _metric_note(suite: Suite, metric: str) -> list[str]:
    return [] if metric == suite.metric else [f"This row is compared by {metric}."]


def _of(row: Row, records: Sequence[Record]) -> list[Record]:
    found = [record for record in records if record["trial"]["row"] == row.row]
    return sorted(found, key=lambda record: (record["trial"]["budget"], record["trial"]["seed"]))


def _nearest(suite: Suite, budget: str, records: Sequence[Record]) -> str:
    """The budget whose records to show: `budget` itself if it has any, then a comparable one, then by name."""
    found = {record["trial"]["budget"] for record in records} & set(suite.budgets)
    return min(found, key=lambda name: (name != budget, not suite.budgets[name].comparable, name), default=budget)


def _origin(published: Published | None) -> list[str]:
    told = ": ".join(text for text in (published.source, published.how) if text) if published else ""
    return [f"Published: {told}."] if told else []


def _clusters(row: Row, records: Sequence[Record]) -> str:
    """K, as the trials resolved it, else as the suite gives it."""
    config = {**row.config, **(records[0]["trial"]["config"] if records else {})}
    return str(config.get("components", ABSENT))


def _judge(suite: Suite, comparable: bool, published: Published | None, found: Cell, metric: str) -> Verdict:
    """The verdict on one cell; a tested word also says when it rests on fewer trials than planned."""
    if found.summary is None:
        return Verdict("no result" if found.failures else ABSENT)
    if published is None:
        return Verdict(ABSENT if comparable else "quick run")
    lower = not metric.endswith(HIGHER_IS_BETTER)
    numbers = (published.mean, published.std, published.n, suite.margin)
    judged = verdict(found.summary, *numbers, lower_is_better=lower, comparable=comparable)
    if judged.word in TESTED and found.summary.n < found.planned:
        trials = ", ".join(filter(None, [f"{found.summary.n} of {found.planned} trials", found.missing()]))
        return Verdict(f"{judged.word} ({trials})", judged.detail)
    return judged


def printed(published: Published | None) -> str:
    """A published number with two decimals, as its tables print nearly all, or more if it has them: "4.10 ± 1.13 (10)"."""
    if published is None:
        return ABSENT
    numbers = [value for value in (published.mean, published.std) if value is not None]
    digits = max(2, *(len(str(float(value)).partition(".")[2]) for value in numbers))
    text = " ± ".join(f"{value:.{digits}f}" for value in numbers)
    return text + (f" ({published.n})" if published.n else "")


def label(suite: Suite, budget: str) -> str:
    """What a table says about a budget; empty for a comparable one without a label."""
    return suite.budgets[budget].label


def other_budget(suite: Suite, budget: str, of: str) -> str:
    """What trials of the budget `of` are told apart by where `budget` was asked for; empty if it is that and comparable."""
    return "" if of == budget and suite.budgets[of].comparable else f"{of} budget"


def scores(suite: Suite, found: Line) -> dict[str, str]:
    done = [record for record in found.records[found.source] if record["status"] == "done"]
    budget = found.budgets[found.source]
    split, _, score = found.metric.partition(".")
    selected, best = ([_best(record, by, score) for record in done] for by in ("validation", "test"))
    return {
        "run": found.source + ("" if suite.budgets[budget].comparable else f" ({budget})"),
        "n": str(len(done)),
        **{title: _mean([lookup(r, metric) for r in done], decimals(metric)) for metric, title in SCORES[suite.task]},
        "at selected step": _mean([point.get(split, {}).get(score) for point in selected], decimals(score)),
        "selected step": _mean([point.get("step") for point in selected], 0),
        "best on test (not comparable)": _mean([point.get(split, {}).get(score) for point in best], decimals(score)),
    }


def _best(record: Record, split: str, score: str) -> Mapping[str, Any]:
    """The scoring of a trial's curve that is best by `score` on `split`; empty if none has it.

    A record's own choice is by one score for all rows of a task; a row that is compared by another one is chosen by that.
    """
    sign = -1 if score.endswith(HIGHER_IS_BETTER) else 1
    scored = [point for point in record["result"].get("curve", []) if point.get(split, {}).get(score) is not None]
    return min(scored, key=lambda point: sign * point[split][score], default={})


def _mean(values: Sequence[float | None], digits: int) -> str:
    """Mean ± std; absent unless every record has the score."""
    known = [value for value in values if value is not None]
    return summarise(known, digits).text() if known and len(known) == len(values) else ABSENT
