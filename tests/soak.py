"""A run that is killed again and again ends like one that nobody touched: python -m tests.soak [--kills 100] [--seed 0]

SIGKILL takes the dispatcher or one of its trial processes, at moments drawn at random: while libraries are imported, in the
middle of steps, of checkpoints, of records. Nine in ten processes are forks, so that a start costs no import of torch; all else
is the command's own code. Trials write a checkpoint after every step. The same command is given again until
so many have been killed, and then once more. Every record must equal that of an undisturbed run in all but its `run` block.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import provenance, record, run, trial

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 120.0
SUITE = """suite: soak
title: Soak
artefact: ours
data: plane
task: clustering
metric: test.majority
validation: 300
seeds: 0-3
margin: 1.0
batch: 50
budgets:
  quick: {steps: 400, validate: 200, label: quick}
rows:
  - {row: aae, label: AAE, method: baselines.aae:AAE, config: {components: 6, hidden: 16, output: linear}}
  - {row: amm, label: AMM, method: models.amm:AMM, config: {nets: plane, components: 6, learning_rate: 1e-3}}
  - {row: absurd, label: AMM, method: models.amm:AMM, config: {nets: plane, learning_rate: 1e20}}
  - {row: kmeans, label: k-means, method: baselines.kmeans:KMeans, config: {components: 6, n_init: 1}}
"""


def instead(main: Callable[[], int], env: Mapping[str, str]) -> Callable[[], None]:
    """For `preexec_fn`: the process goes on as `main` in this interpreter, which has its libraries, instead of a new one."""

    def act() -> None:
        code = 1
        try:
            os.closerange(3, 4096)  # as exec would, or a pipe would never end
            os.environ.update(env)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as an interpreter does when it starts
            code = main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    return act


def dispatch(arguments: Sequence[str]) -> int:
    """`python -m bench.run` whose trial processes are forks too."""
    popen = subprocess.Popen

    def forked(command: Sequence[str], **how: Any) -> Any:
        ours = command[-1] == "bench.trial"
        return popen(command, preexec_fn=instead(trial.main, how["env"]) if ours else None, **how)

    subprocess.Popen = forked  # type: ignore[assignment,misc]
    return run.main(arguments)


class Soak:
    """Records of a suite in a folder, and the processes that make them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.suite = folder / "soak.yaml"
        self.suite.write_text(SUITE, encoding="utf-8")
        self.killed: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
        provenance.code()  # kept by the forks

    def runner(self, out: str, *more: str, fork: bool = True) -> subprocess.Popen[str]:
        """The command as a person gives it, or the same in a fork."""
        where = ("--suite", str(self.suite), "--budget", "quick", "--out", str(self.folder / out), "--device", "cpu")
        arguments = [*where, "--workers", "1", "--threads", "1", *more]
        command = [sys.executable, "-m", "bench.run", *arguments]
        act = instead(lambda: dispatch(arguments), {}) if fork else None
        with (self.folder / f"{out}.log").open("a") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, preexec_fn=act
            )

    def processes(self) -> set[int]:
        """All processes that live and descend from this one."""
        parents = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit():
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    parents[int(entry.name)] = int(parent) if state != "Z" else 0
        found, more = set[int](), {os.getpid()}
        while more:
            more = {pid for pid, parent in parents.items() if parent in more}
            found |= more
        return found

    def disturb(self, kills: int) -> None:
        """Starts the command again and again until so many processes have been killed."""
        while self.killed.total() < kills:
            fork = self.random.random() < 0.9
            self.starts["forks" if fork else "commands"] += 1
            more = ("--checkpoint-every", "0", "--share", self.random.choice("113"))
            runner = self.runner("disturbed", *more, fork=fork)
            while runner.poll() is None and self.killed.total() < kills:
                self._kill_one(runner)
            self._leave(runner)
            if runner.returncode == 0:  # nothing is left to kill
                return

    def _kill_one(self, runner: subprocess.Popen[str]) -> None:
        """Waits for a moment drawn at random, then kills the dispatcher or, more often, its trial process."""
        if self.random.random() < 0.7:  # amid training: soon after the next checkpoint
            self._until_checkpoint(runner, time.time_ns())
            time.sleep(self.random.uniform(0.0, 0.4))
        else:
            time.sleep(self.random.uniform(0.0, 1.0))
        children = self.processes() - {runner.pid}  # its trial process, or git for a moment
        whom = "dispatcher" if self.random.random() < 0.25 or not children else "trial"
        victim = runner.pid if whom == "dispatcher" else min(children)
        if runner.poll() is None:
            os.kill(victim, signal.SIGKILL)
            self.killed[whom] += 1
            print(f"\r{self.killed.total()} killed", end="", file=sys.stderr, flush=True)
            if whom == "trial":
                self._gone({victim})

    def _until_checkpoint(self, runner: subprocess.Popen[str], since: int) -> None:
        while runner.poll() is None and not any(
            _changed(path) > since for path in (self.folder / "disturbed").rglob("*.checkpoint")
        ):
            time.sleep(0.01)

    def _leave(self, runner: subprocess.Popen[str]) -> None:
        """Waits for a dispatcher that was killed, or asks a living one to leave; its trials must leave by themselves."""
        if runner.poll() is None:
            runner.terminate()
        runner.wait(PATIENCE_S)
        self._gone(self.processes())

    def _gone(self, those: set[int]) -> None:
        until = time.monotonic() + PATIENCE_S
        while left := those & self.processes():
            if time.monotonic() > until:
                raise AssertionError(f"processes that do not leave: {sorted(left)}")
            time.sleep(0.02)

    def records(self, out: str) -> dict[str, dict[str, Any]]:
        found = sorted((self.folder / out).rglob("*.json"))
        return {str(path.relative_to(self.folder / out)): record.read(path) for path in found}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def compare(soak: Soak) -> list[str]:
    """What is wrong with the disturbed run, a line each."""
    alone, found = soak.records("alone"), soak.records("disturbed")
    wrong = [f"lost: {name}" for name in alone.keys() - found.keys()]
    wrong += [f"too many: {name}" for name in found.keys() - alone.keys()]
    for name in alone.keys() & found.keys():
        keys = [key for key in alone[name] if key != "run" and alone[name][key] != found[name][key]]
        wrong += [f"{name} differs in {key}" for key in keys]
    weights = Counter(each["result"]["weights_sha256"] for each in found.values() if each["status"] == "done")
    wrong += [f"the weights {digest[:12]} end {n} trials" for digest, n in weights.items() if n > 1]
    files = [path for path in (soak.folder / "disturbed").rglob("seed*") if ".bad" not in path.suffixes]
    kept = {path.suffix for path in files} - {".json"}
    return wrong + [f"left behind: files {suffix}" for suffix in sorted(kept)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.kills} kills", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.seed)
        code = soak.runner("alone", "--checkpoint-every", "3600").wait()
        print(
            f"undisturbed: exit {code}, {len(soak.records('alone'))} records, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        soak.disturb(options.kills)
        last = soak.runner("disturbed", "--checkpoint-every", "60").wait()
        orphans, wrong = soak.processes(), compare(soak)
        found = soak.records("disturbed").values()
        parts = len(list((soak.folder / "disturbed").rglob(".*.part")))
        log = (soak.folder / "disturbed.log").read_text(encoding="utf-8")
    resumed = sum(each["run"]["resumed"] for each in found)
    damaged = sum("damaged" in remark for each in found for remark in each["run"]["remarks"])
    print(
        f"killed: {soak.killed['dispatcher']} dispatchers, {soak.killed['trial']} trial processes; "
        f"started: {soak.starts['forks']} forks, {soak.starts['commands']} commands"
    )
    print(f"in the end: exit {last}, {dict(Counter(each['status'] for each in found))}, resumed {resumed} times in all")
    print(
        f"orphans {len(orphans)}, damaged checkpoints {damaged}, unfinished writes {parts}, tracebacks {log.count('Traceback')}"
    )
    print(f"{time.monotonic() - started:.0f} s")
    wrong += ["a process is left"] * bool(orphans) + ["a traceback was shown"] * ("Traceback" in log)
    wrong += ["it was done before so many were killed"] * (soak.killed.total() < options.kills)
    wrong += [f"exit codes {code} and {last}"] * bool(code or last)
    print("\n".join(wrong) or "every record equals that of the undisturbed run")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
