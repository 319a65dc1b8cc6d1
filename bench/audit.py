"""Whether a record can be what it says: of a trial as planned today, with its code, versions and data named, scores that follow
from its counts, its best steps from its curve, no seed and no final weights twice.

`bench.verify` asks it of every committed record. What cannot be seen without training again is a record that was made up whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import metrics, provenance
from bench.errors import UserError
from bench.plan import trials
from bench.record import Record, is_of, place, record_path
from bench.sources import SOURCES
from bench.suite import Trial, load_suite
from bench.trainer import HEADLINE

SHA256, SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")
ACCURACY = 1e-9  # to which a score must follow from its counts; libraries differ in their last digits
# what a record made by hand may raise
NOT_AS_MADE = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError)
RUN = ("started", "device", "device_name", "precision", "threads", "seconds", "resumed")
Scores = dict[str, float | int | None]


def doubts(root: Path, records: Mapping[Path, Record]) -> Iterator[str]:
    """What is not true of the records below `root`, a line each: of one by itself, of its plan, of two together."""
    for path, record in records.items():
        yield from (f"{path}: {what}" for what in about_record(root, path, record))
    yield from _about_plan(root, records)
    yield from _about_pairs(records)


def about_record(root: Path, path: Path, record: Record) -> Iterator[str]:
    """What a record contradicts by itself."""
    trial = Trial.from_json(record["trial"])
    if root / place(record) != path:
        yield f"holds the trial of {place(record)}"
    try:
        yield from _about_origin(record, trial)
        if record["result"] is not None:
            yield from about_result(record["result"], trial, record["status"])
    except NOT_AS_MADE as error:
        yield f"is not made as a record is ({type(error).__name__}: {error})"


def _about_origin(record: Record, trial: Trial) -> Iterator[str]:
    """Provenance: code, versions, machine, data."""
    git, data, about = record["run"].get("git") or {}, record["data"], record["run"]
    if not SHA256.fullmatch(str(git.get("sources"))) or not SHA1.fullmatch(str(git.get("sha"))):
        yield "does not name the code that it was made by"
    # on a machine to which a changed tree was copied it may have been committed since
    if git.get("dirty") is not False and provenance.committed(str(git.get("sources")), str(git.get("sha"))) is False:
        yield "was made by code that was not committed"
    if git.get("before"):
        yield "was gone on with by other code than it was begun with"
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


def about_result(result: Mapping[str, Any], trial: Trial, status: str) -> Iterator[str]:
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
    source = SOURCES[trial.data]
    for classifier, counts in (result.get("confusion") or {}).items():
        if sum(map(sum, counts)) > source.n_train + source.n_test:
            raise ValueError("more counts of cluster by class than the data have examples")
        prefix = "" if classifier == "predict" else f"{classifier}_"
        for name, value in scores_of(counts, trial.task).items():
            told = result["last"]["test"].get(prefix + name)
            if (told is None) != (value is None) or not math.isclose(told or 0, value or 0, abs_tol=ACCURACY):
                yield f"has the score {prefix + name} {told}, its counts of cluster by class give {value}"


def scores_of(counts: Sequence[Sequence[int]], task: str) -> Scores:
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
        ("classes of the test set", _tested, _classes),
    )
    for what, group, value in agree:
        yield from _different(what, group, value, records)


def _weights(record: Record) -> Any:
    return record["result"].get("weights_sha256")


def _split(record: Record) -> list[Any]:
    """What decides the split of a trial, and its digest."""
    keys = ("data", "seed", "validation", "labels", "split", "balanced")
    return [record["data"].get("digest"), *(record["trial"].get(key) for key in keys)]


def _tested(record: Record) -> list[Any]:
    """What decides which examples are scored: of all splits, "whole" alone has other ones."""
    return [record["data"].get("digest"), record["trial"].get("split") == "whole"]


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
