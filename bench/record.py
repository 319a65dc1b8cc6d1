"""Records: one JSON file per trial, the only truth about what was run. A `done` record of equal digest means done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from bench.errors import UserError
from bench.files import publish, write_once
from bench.plan import as_planned_today
from bench.suite import Trial

RECORD_SCHEMA = 1
FINAL = ("done", "diverged")  # results; anything else is tried again by the next run
STATUSES = (*FINAL, "failed", "interrupted", "killed")
KEYS = {"schema", "digest", "trial", "status", "reason", "result", "data", "run", "departures"}


def record_path(root: Path, trial: Trial) -> Path:
    """Where the record of a trial lies: <root>/<suite>/<budget>/<row>/seed00.json."""
    return root / trial.suite / trial.budget / trial.row / f"seed{trial.seed:02d}.json"


def new_record(
    trial: Trial,
    status: str,
    reason: str | None = None,
    result: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    departures: Sequence[str] = (),
) -> dict[str, Any]:
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


def write(path: Path, record: Mapping[str, Any]) -> bool:
    """Writes a record atomically; False if a final one of the same trial lies there already: the first result stands.

    A record of another trial under the same name is kept beside it, never lost.
    """
    content = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace")
    while not write_once(path, content + b"\n"):
        if _is_result(path, record["digest"]):
            return False
        aside = path.with_name(f".{path.name}.{uuid4().hex}.part")
        with suppress(FileNotFoundError):
            path.replace(aside)
            if _is_result(aside, record["digest"]):  # it came while we looked
                publish(aside, path)
                return False
            _put_away(aside, path, record["digest"])
    return True


def _is_result(path: Path, digest: str) -> bool:
    try:
        found = read(path)
    except UserError:
        return False
    return found["digest"] == digest and found["status"] in FINAL


def _put_away(aside: Path, path: Path, digest: str) -> None:
    """Deletes an older record of the same trial; one of another, or a damaged one, gets a name of its own."""
    try:
        old = str(read(aside)["digest"])
    except UserError:
        old = "unreadable"
    if old == digest:
        aside.unlink()
        return
    names = (path.with_name(f"{path.stem}.{old[:8]}{mark}.stale") for mark in ("", *(f".{n}" for n in range(1, 1000))))
    aside.replace(next(name for name in names if not name.exists()))


def read(path: Path) -> dict[str, Any]:
    """The record in a file; UserError if it is not a whole record of this schema, with the file named."""
    try:
        record = json.loads(path.read_bytes(), parse_constant=_refuse, parse_float=_finite)
        problem = _problem(record)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON: {error}"
    if problem:
        raise UserError(f"{path}: {problem}; move it away and run the trial again")
    checked: dict[str, Any] = record
    return checked


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _problem(record: Any) -> str:
    """What is wrong with a parsed record, or nothing."""
    if not isinstance(record, dict) or KEYS - set(record):
        return "is not a whole record"
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
    return (
        "" if digest == record["digest"] else "holds a trial that does not match its digest, or is of another protocol"
    )


def stored_status(path: Path, trial: Trial) -> str:
    """Status of the stored record of exactly this trial; "pending" if there is none, "unreadable" if it is damaged."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "pending"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; choose another --out") from None
    try:
        record = read(path)
    except UserError:
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
