"""Shell lines, one for each trial or lot, that may be run in any order and on any machine that shares the folder."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from bench.provenance import ROOT
from bench.sources import data_root
from bench.suite import Trial


def lines(trials: Sequence[Trial], options: Namespace) -> Iterator[str]:
    """A command for each trial; with `--share N` for N seeds of a row, which then share a device.

    The number of threads is fixed, because on a CPU it decides the order in which numbers are added.
    """
    suite = str(Path(options.suite).absolute()) if options.suite.endswith(".yaml") else options.suite
    fixed = ["--budget", options.budget, "--device", options.device, "--out", str(options.out.resolve())]
    fixed += ["--workers", "1", "--threads", str(options.threads or 1), "--engine", options.engine]
    fixed += ["--checkpoint-every", str(options.checkpoint_every)]
    fixed += ["--data-root", str(data_root(options.data_root))]  # of where it was asked for, not of where it will run
    fixed += ["--time-budget", options.time_budget] if options.time_budget else []
    fixed += ["--keep-weights"] if options.keep_weights else []
    fixed += ["--share", str(options.share)] if options.share else []
    for row, group in groupby(trials, key=lambda trial: trial.row):
        seeds = [trial.seed for trial in group]
        size = options.share or 1
        for start in range(0, len(seeds), size):
            some = ",".join(map(str, seeds[start : start + size]))
            command = [sys.executable, "-m", "bench.run", "--suite", suite, "--only", row, "--seeds", some, *fixed]
            yield f"cd {shlex.quote(str(ROOT))} && {shlex.join(command)}"
