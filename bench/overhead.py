"""What the harness itself costs: seconds to list the suites, to make a table of a thousand records, to store a record."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.plan import trials
from bench.provenance import ROOT
from bench.record import new_record, record_path, write
from bench.suite import SUITES, Trial, load_suite

RECORDS = 1000
SUITE, SEEDS = "digits_unsup", "0-99"  # seeds enough for so many records
CURVE = 10  # validations of a made-up trial, which make a record of 9 kB
SCORES = ("majority", "hungarian", "validation_mapping", "nmi", "ari", "live")


def measure(repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each of `repeats` rounds, in which all take turns, so that all meet the same load.

    "list" and "table" are whole processes from start to exit: `python -m bench.run list`, and `python -m bench.table` on
    RECORDS made-up records, all of trials that their suite plans. "record" is `bench.record.write` of one such record in
    this process, its way to the disk of the temporary folder included.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite, runs = store(folder)
        record = made_up(trials(load_suite(suite), "paper")[0])
        where = ("--runs", runs, "--reference", folder, "--out", folder / "table.md")
        rounds = [
            {
                "list": _timed(lambda: _python("bench.run", "list")),
                "table": _timed(lambda: _python("bench.table", "--suite", suite, *where)),
                "record": _timed(partial(write, folder / f"record{number}.json", record)),
            }
            for number in range(repeats)
        ]
    return {what: [seconds[what] for seconds in rounds] for what in ("list", "table", "record")}


def store(folder: Path) -> tuple[Path, Path]:
    """Writes a shipped suite with more seeds and RECORDS records of it into `folder`: the suite file, the records' root."""
    suite, runs = folder / f"{SUITE}.yaml", folder / "runs"
    text = (SUITES / suite.name).read_text(encoding="utf-8")
    suite.write_text(re.sub(r"(?m)^seeds:.*", f"seeds: {SEEDS}", text), encoding="utf-8")
    for trial in trials(load_suite(suite), "paper")[:RECORDS]:
        path = record_path(runs, trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made_up(trial), indent=1), encoding="utf-8")
    return suite, runs


def made_up(trial: Trial) -> dict[str, Any]:
    """A record of `trial` in the shape of a real one, its scores drawn at random."""
    draw = random.Random(trial.digest).random
    scores = lambda: {name: 100 * draw() for name in SCORES}
    curve = [
        {"step": step, "losses": {name: draw() for name in "dqp"}, "validation": scores(), "test": scores()}
        for step in range(1, CURVE + 1)
    ]
    steps = {"last": curve[-1], "selected": curve[0], "best_on_test": curve[1]}
    result = {**steps, "curve": curve, "weights_sha256": trial.digest}
    return new_record(trial, "done", result=result, data={"digest": "made up"})


def _python(module: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
