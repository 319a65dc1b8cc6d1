"""Cells of tables: the trials of one row as a mean, with what must be said about them.

A trial without a result stays in sight as k/n: never averaged, never zero, never dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import UserError
from bench.record import Record, shortened, sources
from bench.statistics import Summary, decimals, summarise


@dataclass(frozen=True)
class Cell:
    """The trials of one row in one run: the summary of those with a result, the others counted by status, remarks."""

    summary: Summary | None
    planned: int
    failures: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def missing(self) -> str:
        """Trials that ran without a result, such as "2/10 diverged"."""
        return ", ".join(f"{count}/{self.planned} {status}" for status, count in self.failures)

    def text(self) -> str:
        """Such as "3.32 ± 0.39 (8 of 10), 2/10 diverged"; empty without any trial."""
        if not self.summary:
            return self.missing()
        n = f"{self.summary.n}" if self.summary.n >= self.planned else f"{self.summary.n} of {self.planned}"
        return f"{self.summary.text()} ({n})" + (f", {self.missing()}" if self.failures else "")


def lookup(record: Record, metric: str) -> float | None:
    """The score `metric`, such as "test.majority", at a record's last step, if any."""
    node: Any = record["result"].get("last")
    for key in metric.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return float(node) if isinstance(node, int | float) else None


def cell(records: Sequence[Record], metric: str, planned: int) -> Cell:
    """One cell from the records of one row, budget and configuration, where `planned` trials were meant to be.

    Only `done` trials are averaged, at their last step. Raises UserError when a score is missing, when two records
    are of one seed, or when two seeds ended with equal weights: then one of them was not trained as it says.
    """
    ordered = sorted(records, key=_seed)
    done = [record for record in ordered if record["status"] == "done"]
    _refuse_equals("seed", ((record, _seed(record)) for record in ordered))
    _refuse_equals("final weights", ((record, record["result"].get("weights_sha256")) for record in done))
    values = [_score(record, metric) for record in done]
    failures = Counter(record["status"] for record in ordered if record["status"] != "done")
    notes = (*mixtures(ordered), *_reasons(ordered))
    return Cell(
        summarise(values, decimals(metric)) if values else None, planned, tuple(sorted(failures.items())), notes
    )


def _seed(record: Record) -> int:
    return int(record["trial"]["seed"])


def _place(record: Record) -> str:
    trial = record["trial"]
    return f"suite {trial['suite']}, budget {trial['budget']}, row {trial['row']}, seed {trial['seed']}"


def _score(record: Record, metric: str) -> float:
    value = lookup(record, metric)
    if value is None or not math.isfinite(value):
        hint = "delete it and run the trial again, or name a metric in the suite file that it has"
        raise UserError(f"{_place(record)}: the record has no {metric}; {hint}")
    return value


def _refuse_equals(what: str, pairs: Iterable[tuple[Record, Any]]) -> None:
    """UserError when two records have an equal value; None, as of a method without weights, equals nothing."""
    seen: dict[Any, Record] = {}
    for record, value in pairs:
        if value is not None and value in seen:
            other = _seed(seen[value])
            raise UserError(
                f"{_place(record)}: equal {what} as the record of seed {other}; delete the wrong one, rerun"
            )
        seen[value] = record


def mixtures(records: Sequence[Record]) -> list[str]:
    """What differs between the trials of one cell though it should not, and code that no revision names."""
    gits = [(record, record["run"].get("git") or {}) for record in records]
    dirty = ", ".join(str(_seed(record)) for record, git in gits if git.get("dirty"))
    notes = [f"Run from a working tree with uncommitted changes: seeds {dirty}."] if dirty else []
    begun = ", ".join(str(_seed(record)) for record, git in gits if git.get("before"))
    notes += [f"Gone on with other code than they were begun with: seeds {begun}."] if begun else []
    # a trial that was killed before it began tells neither
    digests = [str(record["data"].get("digest"))[:12] for record in records if record["data"]]
    revisions = _revisions([record for record in records if record["run"]])
    devices = [name for record in records if (name := record["run"].get("device_name"))]
    torch = [name for record in records if (name := (record["run"].get("versions") or {}).get("torch"))]
    on_cpu = (record["run"].get("threads") for record in records if record["run"].get("device") == "cpu")
    threads = [n for n in on_cpu if isinstance(n, int)]
    for what, values in (
        ("git revisions", revisions),
        ("versions of the data", digests),
        ("devices", devices),
        ("versions of torch", torch),
        ("numbers of threads", threads),
    ):
        different = sorted(set(values))
        notes += [f"Mixes {what}: {', '.join(map(str, different))}."] if len(different) > 1 else []
    return notes


def _revisions(records: Sequence[Record]) -> list[str]:
    """The code of each trial by its commit, else by its sources; by both where one commit stands for several sources."""
    commits = [(record["run"].get("git") or {}).get("sha") for record in records]
    made_by: dict[Any, set[str]] = {}
    for commit, record in zip(commits, records, strict=True):
        made_by.setdefault(commit, set()).update([sources(record)] if sources(record) else [])
    names = []
    for commit, record in zip(commits, records, strict=True):
        own = shortened(sources(record)) or "None"
        name = str(commit)[:12] if commit else own
        names.append(f"{name} with sources {own}" if commit and len(made_by[commit]) > 1 else name)
    return names


def _reasons(records: Sequence[Record]) -> list[str]:
    """Why trials have no result, as one remark."""
    told = [
        f"seed {_seed(record)} {record['status']} ({record.get('reason') or 'no reason recorded'})"
        for record in records
        if record["status"] != "done"
    ]
    return [f"Not in the mean: {'; '.join(told)}."] if told else []
