"""Records: one JSON file per trial, the only truth about what was run. A `done` record of equal digest means done.

A record is sealed with the sha256 of its content, so that no flipped bit passes for another score. Records from before there
were seals have none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn
from uuid import uuid4

from bench.errors import UserError, unread
from bench.files import publish, unused, write_once
from bench.plan import as_planned_today
from bench.suite import Trial

Record = dict[str, Any]
RECORD_SCHEMA = 1
FINAL = ("done", "diverged")  # results; anything else is tried again by the next run
STATUSES = (*FINAL, "failed", "interrupted", "killed")
BOUND = 1e15  # of a score, so that its square and the sum of many are finite
SPLITS = ("validation", "test")  # which are scored
KEYS = {"schema", "digest", "trial", "status", "reason", "result", "data", "run", "departures"}
SHAPES = {  # of what tables read, where it is there at all
    "reason": (str, NoneType),
    "result": (dict, NoneType),
    "result.weights_sha256": (str, NoneType),
    "data.digest": (str,),
    "data.note": (str, NoneType),
    "data.variant": (dict, NoneType),
    "data.variant.name": (str,),
    "run.git": (dict, NoneType),
    "result.curve": (list,),
    "result.steps": (int,),
    "result.confusion": (dict, NoneType),
    "run.threads": (int, NoneType),
    "run.shared_by": (int, NoneType),
    "run.seconds": (int, float),
    "run.device": (str,),
    "run.device_name": (str,),
    "run.versions": (dict, NoneType),
    "run.versions.torch": (str, NoneType),
    "departures": (list,),
    **{f"result.{at}": (dict, NoneType) for at in ("last", "selected", "best_on_test")},
    **{f"result.{at}.test": (dict,) for at in ("last", "selected", "best_on_test")},
    **{f"run.git.{key}": (str, NoneType) for key in ("sources", "sha")},
    "run.git.dirty": (bool, NoneType),
    "run.git.before": (list,),
}


def record_path(root: Path, trial: Trial) -> Path:
    """Where the record of a trial lies: <root>/<suite>/<budget>/<row>/seed00.json."""
    return root / trial.suite / trial.budget / trial.row / _file_name(trial.seed)


def _file_name(seed: int) -> str:
    return f"seed{seed:02d}.json"


def place(record: Mapping[str, Any]) -> Path:
    """Where a record that was read belongs below its root."""
    trial = record["trial"]
    return Path(trial["suite"], trial["budget"], trial["row"], _file_name(trial["seed"]))


def new_record(
    trial: Trial,
    status: str,
    reason: str | None = None,
    result: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    departures: Sequence[str] = (),
) -> Record:
    """A record of `trial`; `status` is one of STATUSES."""
    return {
        "schema": RECORD_SCHEMA,
        "digest": trial.digest,
        "trial": trial.to_json(),
        "status": status,
        "reason": reason,
        "result": result,
        "data": dict(data or {}),
        "run": dict(run or {}),
        "departures": list(departures),
    }


def sources(record: Mapping[str, Any]) -> str:
    """The code that made a record: digests of what it was begun with, if other, and of its sources, with "+"; "" if untold."""
    git = (record["run"] or {}).get("git") or {}
    return "+".join([*map(str, git.get("before", [])), *([git["sources"]] if git.get("sources") else [])])


def shortened(digests: str) -> str:
    """Digests joined by "+" to be read by a person."""
    return "+".join(digest[:12] for digest in digests.split("+"))


def write(path: Path, record: Mapping[str, Any]) -> bool:
    """Writes a record atomically; False if a final one of the same trial lies there already: the first result stands.

    A record of another trial under the same name is kept beside it, never lost.
    """
    sealed = {**record, "seal": _seal(record)}
    content = json.dumps(sealed, indent=1, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace")
    try:
        parse(content, path)
    except UserError as error:  # a method's doing: what is stored must be readable
        raise ValueError(f"no record could be made of this trial: {error}") from None
    return store(path, content + b"\n", record["digest"])


def store(path: Path, content: bytes, digest: str) -> bool:
    """`write` for a record that is bytes already, such as one from another folder; `digest` is its trial's, as planned today."""
    while not write_once(path, content):
        if _is_result(path, digest):
            return False
        aside = path.with_name(f".{path.name}.{uuid4().hex}.aside")
        with suppress(FileNotFoundError):
            path.replace(aside)
            if _is_result(aside, digest):  # it came while we looked
                publish(aside, path)
                return False
            _put_away(aside, path, digest)
    return True


def _is_result(path: Path, digest: str) -> bool:
    try:
        found = read(path)
    except UserError as error:
        _refused(error)
        return False
    return digest_today(found) == digest and found["status"] in FINAL


def _put_away(aside: Path, path: Path, digest: str) -> None:
    """Deletes an older record of the same trial; one of another, or a damaged one, gets a name of its own."""
    try:
        found = read(aside)
        today, old = digest_today(found), str(found["digest"])[:8]
    except UserError:
        today, old = "", "unreadable"
    if today == digest:
        aside.unlink()
        return
    aside.replace(unused(lambda mark: path.with_name(f"{path.stem}.{old}{mark}.stale")))


def read(path: Path) -> Record:
    """The record in a file; UserError if it is not a whole record of this schema, with the file named."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unread(error, path) from error
    return parse(content, path)


def parse(content: bytes, name: object) -> Record:
    """The record that a file holds; UserError as for `read`, with `name` in the place of the file."""
    try:
        record = json.loads(content, parse_constant=_refuse, parse_float=_finite, parse_int=_countable)
        problem = _problem(record)
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON: {error}"
    if problem:
        raise UserError(f"{name}: {problem}; move it away and run the trial again")
    checked: Record = record
    checked.pop("seal", None)
    return checked


def _refused(error: UserError) -> None:
    """Raises the error of a record that the system would not let us read: it may be a result, so nothing takes its place."""
    cause = error.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, (FileNotFoundError, IsADirectoryError)):
        raise error


def _seal(record: Mapping[str, Any]) -> str:
    """sha256 (hex) of all that a record says, however it is laid out."""
    plain = json.loads(json.dumps(record, allow_nan=False))  # tuples are lists, and keys are text, once it is stored
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _countable(text: str) -> int:
    _finite(text)  # what no float can hold is no score
    return int(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _problem(record: Any) -> str:
    """What is wrong with a parsed record, or nothing."""
    if not isinstance(record, dict) or KEYS - set(record):
        return "is not a whole record"
    if set(record) - KEYS - {"seal"}:
        return f"holds the unknown {', '.join(map(repr, sorted(set(record) - KEYS - {'seal'})))}"
    if record["schema"] != RECORD_SCHEMA:
        return f"has schema {record['schema']!r}, expected {RECORD_SCHEMA}"
    if record["status"] not in STATUSES:
        return f"has the unknown status {record['status']!r}"
    if not all(isinstance(record[key], dict) for key in ("trial", "data", "run")):
        return "is not a whole record"
    if not isinstance(record["result"], dict) and record["status"] == "done":
        return "is done and has no result"
    try:
        digest = Trial.from_json(record["trial"]).digest
    except UserError as error:
        return f"holds no valid trial ({error})"
    if digest != record["digest"]:
        return "holds a trial that does not match its digest, or is of another protocol"
    if "seal" in record and record["seal"] != _seal({key: record[key] for key in KEYS}):
        return "was changed after it was written"
    return _misshapen(record)


def _misshapen(record: Mapping[str, Any]) -> str:
    """The first part that a table would stumble over, or nothing."""
    for name, kinds in SHAPES.items():
        value = _part(record, name)
        if value is not ... and type(value) not in kinds:
            return f"has {name} {value!r:.40}, expected {' or '.join(kind.__name__ for kind in kinds)}"
    if not all(isinstance(text, str) for text in record["departures"]):
        return "has departures that are no text"
    if not all(map(_is_scoring, (record["result"] or {}).get("curve", []))):
        return "has a result.curve that is no list of scorings"
    variant = record["data"].get("variant") or {}
    if variant and "name" not in variant:
        return "has a data.variant without a name"
    for entry in variant.values():
        if isinstance(entry, dict) and not all(
            isinstance(entry.get(key), str) for key in ("note", "sha256_images_nhwc")
        ):
            return "has a data.variant without note and sha256_images_nhwc"
    for at in ("last", "selected", "best_on_test"):
        point = _part(record, f"result.{at}")
        told = {"step": point.get("step"), **point.get("test", {})} if isinstance(point, dict) else {}
        wrong = [name for name, value in told.items() if not _is_score(value)]
        if wrong:
            return f"has result.{at} with the {wrong[0]} {told[wrong[0]]!r:.40}, which is no score"
    return ""


def _is_scoring(point: Any) -> bool:
    """Whether a point of a curve has a step, and parts that hold numbers: scores, and losses and readings of any size."""
    if not isinstance(point, dict) or type(point.get("step")) is not int:
        return False
    parts = {name: part for name, part in point.items() if name != "step"}
    if not all(isinstance(part, dict) for part in parts.values()):
        return False
    return all(_is_score(value, name in SPLITS) for name, part in parts.items() for value in part.values())


def _is_score(value: Any, bounded: bool = True) -> bool:
    """Whether a table can reckon with it: a number, for a score of a sensible size, or None."""
    return value is None or (type(value) in (int, float) and (abs(value) < BOUND or not bounded))


def _part(record: Mapping[str, Any], name: str) -> Any:
    """The value at a path such as "data.note"; ... if it is not there."""
    node: Any = record
    for key in name.split("."):
        if not isinstance(node, dict) or key not in node:
            return ...
        node = node[key]
    return node


def stored_status(path: Path, trial: Trial) -> str:
    """Status of the stored record of exactly this trial; "pending" if there is none, "unreadable" if it is damaged."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "pending"
    except OSError as error:
        raise unread(error, path, "choose another --out") from None
    try:
        record = read(path)
    except UserError as error:
        _refused(error)
        return "unreadable"
    return str(record["status"]) if is_of(record, trial) else "pending"


def is_of(record: Mapping[str, Any], trial: Trial) -> bool:
    """Whether a record is of exactly this trial."""
    return trial.digest == record["digest"] or trial.digest == digest_today(record)


def digest_today(record: Mapping[str, Any]) -> str:
    """Digest of a record's trial with the knobs that its method has got since at their defaults."""
    try:
        return as_planned_today(Trial.from_json(record["trial"])).digest
    except UserError:
        return str(record["digest"])
