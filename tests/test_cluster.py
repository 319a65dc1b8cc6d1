"""Runs on a real scheduler and real workers, all processes of this machine, some of them killed; and the printed commands."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import cluster, record, remote
from bench.errors import UserError
from bench.pool import BUSY, DONE, UNFINISHED
from bench.run import main

ROOT = Path(__file__).resolve().parent.parent
real = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="distributed is not installed")


def arguments(suite: Path, out: Path, *more: str) -> list[str]:
    return ["--suite", str(suite), "--budget", "quick", "--out", str(out), "--device", "cpu", *more]


# the runner's half, with a client that runs nothing


class Future:
    """Of a task that has ended."""

    def __init__(self, result: Any) -> None:
        self.value = result
        self.status = "error" if result is None else "finished"

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        call(self)

    def done(self) -> bool:
        return True

    def release(self) -> None: ...

    def result(self, timeout: float) -> Any:
        return self.value


class Client:
    """Answers each submission with the next of some results; None for workers that died."""

    def __init__(self, *results: tuple[list[str], int] | None) -> None:
        self.results = list(results)

    def submit(self, *_: Any, **__: Any) -> Future:
        return Future(self.results.pop(0))


def said(end: int) -> tuple[list[str], int]:
    return [json.dumps({"trial": 0, "end": end}) + "\n"], 0


def handed(client: Client, **state: Any) -> tuple[list[dict[str, Any]], int]:
    """What a remote worker says of a lot of one trial, and its exit code."""
    there = cluster.Cluster(client, gpu=False, slots=1)
    for name, value in state.items():
        setattr(there, name, value)
    worker = cluster.Remote(there, "cpu", 1)
    heard = [json.loads(line) for line in worker.hand('{"number": 0, "seconds": null}\n')]
    assert there.busy == 0 and not client.results
    return heard, worker.close()


def test_a_lot_whose_worker_died_is_submitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    assert handed(Client(None, None, said(DONE))) == ([{"trial": 0, "end": DONE}], 0)


def test_a_lot_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    heard = handed(Client(*[None] * (cluster.RETRIES + 1)))
    assert heard == ([{"trial": 0, "failed": "its dask worker died, 4 times over"}], -signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_waiting_for_a_trial_that_is_still_locked_counts_as_no_death(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies, its trial's process writes its checkpoint for a while, and the worker that has it next dies too.

    After a death the scheduler gives the lot to another worker by itself, or gives it up, and it is submitted again.
    """
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    first = [None] if workers == 1 else []
    ends = iter([*first, *[said(BUSY)] * cluster.RETRIES, None, said(DONE)])
    counts = iter([workers, *[1] * cluster.RETRIES, 1, 1])

    def submit(self: object, jobs: object, began: float, begun: dict[str, float]) -> Iterator[str]:
        begun.update({f"worker {n}": time.monotonic() for n in range(next(counts))})
        end = next(ends)
        return end and end[0]
        yield

    monkeypatch.setattr(cluster.Remote, "_submit", submit)
    worker = cluster.Remote(cluster.Cluster(None, gpu=False, slots=1), "cpu", 1)
    began = time.monotonic() - 10 * cluster.STALE_S  # the worker dies after long work
    heard = worker._compute([{"number": 0, "seconds": None}], began)
    assert [json.loads(line) for line in heard] == [{"trial": 0, "end": DONE}]


def test_a_trial_of_another_runner_is_left_to_it() -> None:
    assert handed(Client(said(BUSY))) == ([{"trial": 0, "end": BUSY}], 0)


def test_a_lot_that_finds_no_slot_in_its_time_is_not_submitted() -> None:
    there = cluster.Cluster(None, gpu=False, slots=1)
    assert there.enter() and not there.enter(time.monotonic() + 0.05)
    there.leave()
    worker = cluster.Remote(there, "cpu", 1)
    heard = [json.loads(line) for line in worker.hand('{"number": 0, "seconds": 0.0}\n')]
    assert heard == [{"trial": 0, "end": UNFINISHED}] and there.busy == 0


@pytest.mark.parametrize("state", [{"times": 1}, {"lost": "gone"}, {"slots": 0, "seen": -1e9}])
def test_nothing_is_submitted_after_a_signal_or_without_workers(state: dict[str, Any]) -> None:
    assert handed(Client(), **state) == ([{"trial": 0, "end": UNFINISHED}], 0)


@pytest.mark.parametrize(("times", "slots", "gone"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_a_run_that_got_a_signal_waits_only_seconds_for_workers(times: int, slots: int, gone: bool) -> None:
    since = time.monotonic() - 2 * cluster.LEAVING_S
    assert cluster.Cluster(None, gpu=False, times=times, slots=slots, seen=since).gone() is gone


def test_each_task_of_a_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {name: Namespace(device=name) for name in ("cuda:0", "cuda:2")}
    monkeypatch.setattr(remote, "_running", running)
    assert [remote._free_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]


class Workers:
    """A client of workers that answer as given, where None is to look for themselves."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers

    def run(self, look: Callable[[str], Any], path: str, on_error: str) -> dict[str, Any]:
        return {f"w{n}": look(path) if answer is None else answer for n, answer in enumerate(self.answers)}


def test_workers_that_see_the_folder_pass_though_it_is_new(tmp_path: Path) -> None:
    cluster.check(Workers(None, None), tmp_path / "a/new")
    assert list((tmp_path / "a/new").iterdir()) == []  # the probe is gone


@pytest.mark.parametrize(
    ("answer", "words"),
    [(False, "worker w1: does not see "), (ImportError("no bench"), r"worker w1: cannot import bench \(no bench\)")],
)
def test_a_worker_without_the_folder_or_the_code_is_named(tmp_path: Path, answer: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        cluster.check(Workers(None, answer), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# the printed commands


@pytest.mark.slow
def test_printed_commands_make_the_same_records_in_any_order(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite("kmeans", seeds="0-1")
    assert main(arguments(suite, tmp_path / "whole", "--threads", "1", "--workers", "1")) == 0
    capsys.readouterr()
    assert main(arguments(suite, tmp_path / "out", "--print-commands")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.findall(r"--seeds (\S+)", line) for line in lines] == [["0"], ["1"]]
    for line in reversed(lines):
        subprocess.run(["sh", "-c", line], cwd="/", check=True, capture_output=True)
    for path in (tmp_path / "whole").rglob("*.json"):
        one, other = record.read(path), record.read(tmp_path / "out" / path.relative_to(tmp_path / "whole"))
        assert one | {"run": 0} == other | {"run": 0}
    assert main(arguments(suite, tmp_path / "out", "--print-commands")) == 0
    assert capsys.readouterr().out == ""  # nothing is left


def test_a_signal_to_a_task_of_the_slurm_script_reaches_the_command(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM sends SIGTERM to the process that it started, and a shell would not pass it on."""
    assert main(arguments(write_suite("kmeans", seeds="0-1"), tmp_path / "out", "--print-commands")) == 0
    told = capsys.readouterr().out.replace("-m bench.run", "-c 'import os; print(os.getpid())'")
    (tmp_path / "lines").write_text(told)
    (recipe,) = re.findall(r"^srun (sh -c .*)$", (ROOT / "docs/scaling.md").read_text(), re.M)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    task = subprocess.Popen(
        ["sh", "-c", f"exec {recipe}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert task.communicate()[0] == f"{task.pid}\n"
    pasted = subprocess.run(["sh"], input=told, capture_output=True, text=True, check=True)
    assert pasted.stdout.count("\n") == 2  # one line after another, in one shell


def test_printed_commands_group_what_shares_a_device(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite("kmeans", "amm", seeds="0-4")
    assert main(arguments(suite, tmp_path / "a b", "--print-commands", "--share", "2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.findall(r"--seeds (\S+)", "".join(lines)) == ["0,1", "2,3", "4"] * 2
    assert all(f"--out '{tmp_path}/a b'" in line for line in lines)


def test_printed_commands_name_the_data_of_where_they_were_asked_for(
    write_suite: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = write_suite("kmeans")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMM_DATA_ROOT", raising=False)
    for root, named in ((None, "data"), ("mine", "mine")):
        if root:
            monkeypatch.setenv("AMM_DATA_ROOT", root)
        assert main(arguments(suite, tmp_path / "out", "--print-commands")) == 0
        lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
        assert lines and all(line[line.index("--data-root") + 1] == str(tmp_path / named) for line in lines)


# bad input


def test_dask_that_is_not_installed_is_one_line(
    write_suite: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(arguments(write_suite("kmeans"), tmp_path / "out", "--backend", "dask")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install -e '.[dask]'" in said


def test_an_address_without_the_backend_is_one_line(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(write_suite("kmeans"), tmp_path / "out", "--scheduler", "tcp://here:1")) == 2
    assert capsys.readouterr().err == "error: --scheduler: belongs to --backend dask\n"


@real
@pytest.mark.parametrize("address", ["", " "])
def test_an_empty_address_is_one_line_and_no_cluster_of_this_machine(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_local", lambda devices: pytest.fail("a cluster was started"))
    with (
        pytest.raises(UserError, match=r"^--scheduler: is empty, perhaps an unset variable; expected .*$"),
        cluster.opened(address, "cpu", ["cpu"], None, tmp_path),
    ):
        pass


@real
@pytest.mark.parametrize("protocol", ["tls", "wss"])
def test_certificates_that_are_missing_or_no_files_are_named(protocol: str, tmp_path: Path) -> None:
    import dask

    address, file = f"{protocol}://127.0.0.1:9", str(tmp_path / "none.pem")
    tls = {"distributed.comm.tls.ca-file": None, "distributed.comm.tls.client.cert": None}
    words = {
        "ca-file": r"distributed\.comm\.tls\.ca-file is missing; set DASK_DISTRIBUTED__COMM__TLS__CA_FILE=FILE$",
        "client.cert": r"distributed\.comm\.tls\.client\.cert is missing; set DASK_\S+__TLS__CLIENT__CERT=FILE$",
        "": r"distributed\.comm\.tls cannot be used .*No such file",
    }
    for name, text in words.items():
        with dask.config.set(tls), pytest.raises(UserError, match=f"^--scheduler {address}: .*{text}"):
            cluster.require_address(address)
        tls[f"distributed.comm.tls.{name}"] = file


@pytest.mark.slow
@real
@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:9", "nothing://127.0.0.1:9", "127.0.0.1:port", "tcp://", "tls://127.0.0.1:9"]
)
def test_an_address_that_nobody_answers_is_one_line(address: str, tmp_path: Path) -> None:
    """In a process of its own: what dask leaves behind in threads and warnings is none of the other tests' matter."""
    code = "import sys\nfrom pathlib import Path\nfrom bench import cluster, errors\ncluster.CONNECT_S = 1.0\n"
    code += "try:\n    cluster.opened(sys.argv[1], 'cpu', ['cpu'], None, Path()).__enter__()\n"
    code += "except errors.UserError as error:\n    print(error)"
    found = subprocess.run([sys.executable, "-c", code, address], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(f"--scheduler {address}: ") and found.stdout.count("\n") == 1
    assert found.stderr == ""


# a scheduler and workers


class Processes:
    """A scheduler, and workers that are added and killed one by one."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.all: list[subprocess.Popen[bytes]] = []
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port)

    def _start(self, what: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *more]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.all.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet))  # type: ignore[call-overload]
        return self.all[-1]

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", self.address, "--nthreads", "1", "--no-nanny", "--memory-limit", "0")

    def runner(self, suite: Path, out: Path) -> subprocess.Popen[str]:
        more = ("--backend", "dask", "--scheduler", self.address, "--checkpoint-every", "0.5")
        command = [sys.executable, "-m", "bench.run", *arguments(suite, out, *more)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        for process in reversed(self.all):
            process.kill()
            process.wait()


@pytest.fixture
def processes() -> Iterator[Processes]:
    found = Processes()
    yield found
    found.close()


def until(there: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


LONG = '{steps: 400, validate: 100, label: "short"}'
LONGER = '{steps: 8000, validate: 2000, label: "short"}'  # goes on while other commands start


@real
@pytest.mark.slow
def test_kill_9_of_a_worker_costs_the_trial_under_way_there_alone_and_it_is_retried(
    processes: Processes, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite, out = write_suite("amm", quick=LONG, seeds="0-1"), tmp_path / "out"
    workers = [processes.worker(), processes.worker()]
    runner = processes.runner(suite, out)
    folder = out / "small" / "quick" / "amm"
    until((folder / "seed00.checkpoint").exists)
    workers[0].kill()
    assert runner.communicate(timeout=240)[1].endswith("2 done; 0 had a result before\n")
    assert runner.returncode == 0
    found = [record.read(folder / f"seed0{seed}.json") for seed in (0, 1)]
    assert [each["status"] for each in found] == ["done", "done"]


@real
@pytest.mark.slow
def test_a_signal_reaches_the_trials_and_the_same_command_goes_on(
    processes: Processes, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite, out = write_suite("amm", quick=LONGER), tmp_path / "out"
    processes.worker()
    path = out / "small" / "quick" / "amm" / "seed00.json"
    runner = processes.runner(suite, out)
    until(path.with_suffix(".checkpoint").exists)
    status = [sys.executable, "-m", "bench.run", "status", *arguments(suite, out)]
    table = [sys.executable, "-m", "bench.table", "--suite", str(suite), "--budget", "quick", "--runs", str(out)]
    for command in (status, table):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1, 2)
    runner.send_signal(signal.SIGINT)
    assert "1 interrupted" in runner.communicate(timeout=120)[1] and runner.returncode == 130
    assert record.read(path)["reason"].startswith("at step ")
    runner = processes.runner(suite, out)
    assert "1 done" in runner.communicate(timeout=240)[1] and runner.returncode == 0
    assert record.read(path)["run"]["resumed"] == 1


@real
@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_a_run_on_workers_of_its_own(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    """It reaches every process of the terminal's group; the workers must outlive it to pass it on to their trials."""
    suite, out = write_suite("amm", quick=LONGER), tmp_path / "out"
    path = out / "small" / "quick" / "amm" / "seed00.json"
    more = ("--backend", "dask", "--workers", "1", "--checkpoint-every", "0.5")
    command = [sys.executable, "-m", "bench.run", *arguments(suite, out, *more)]
    runner = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until(path.with_suffix(".checkpoint").exists)
        os.killpg(runner.pid, signal.SIGINT)
        assert "1 interrupted" in runner.communicate(timeout=60)[1] and runner.returncode == 130
    finally:
        runner.kill()
        runner.wait()
    assert record.read(path)["reason"].startswith("at step ") and path.with_suffix(".checkpoint").exists()


@real
@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run_and_the_trials_keep_their_checkpoints(
    processes: Processes, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite, out = write_suite("amm", quick=LONGER), tmp_path / "out"
    processes.worker()
    path = out / "small" / "quick" / "amm" / "seed00.json"
    runner = processes.runner(suite, out)
    until(path.with_suffix(".checkpoint").exists)
    processes.scheduler.kill()
    assert "the scheduler is gone" in runner.communicate(timeout=120)[1]
    assert runner.returncode == 3
