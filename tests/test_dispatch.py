"""Trials in processes: every way to end, and the same command again ends like an undisturbed run."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import checkpoint, process, record, trainer, trial
from bench.dispatch import Dispatcher, Plan
from bench.errors import UserError
from bench.plan import trials
from bench.pool import Pool
from bench.progress import Board
from bench.run import main
from bench.suite import Trial, load_suite

ROOT = Path(__file__).resolve().parent.parent
Out = tuple[Dispatcher, io.StringIO]


# one trial in this process


class Asked:
    """Says no so many times, then yes."""

    until: float | None = None

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def attempted(job: trial.Job, stop: int = 999) -> int:
    """How a trial ends that is asked to stop after so many steps."""
    going = trial.attempt(job, Asked(stop), Pool(1, torch.device("cpu"), lambda: False))  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as end:
        while True:
            next(going)
    return int(end.value.value)


@pytest.fixture
def job(make_trial: Callable[..., Trial], tmp_path: Path, toy: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a trial of Toy as its process would; `stop` ends it after so many steps, `fields` change it, `keep` its weights."""
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the log takes standard error over

    def run(
        stop: int = 999, fields: dict[str, Any] | None = None, keep: bool = False, **config: Any
    ) -> tuple[int, Path]:
        what = make_trial(config, **(fields or {}))
        path = record.record_path(tmp_path, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        code = attempted(trial.Job(what, "cpu", str(tmp_path), 1, checkpoint_every=0.0, keep_weights=keep), stop)
        log = path.with_suffix(".log")
        sys.stderr.write(log.read_text())
        log.unlink()
        return code, path

    return run


def _kept(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def _same(path: Path) -> dict[str, Any]:
    """A record without what a clock or a machine decides."""
    found = record.read(path)
    return {key: value for key, value in found.items() if key != "run"}


def test_a_trial_ends_with_a_record_and_nothing_else(job: Any) -> None:
    code, path = job()
    found = record.read(path)
    assert (code, found["status"], found["reason"]) == (trial.DONE, "done", None)
    assert _kept(path) == ["seed00.json"]
    assert found["data"]["name"] == "synthetic" and len(found["data"]["split_digest"]) == 64
    assert {"started", "seconds", "device", "versions", "git", "threads", "resumed"} <= set(found["run"])
    assert job()[0] == trial.DONE  # final: not run again
    assert record.read(path) == found


def test_a_stopped_trial_keeps_a_checkpoint_and_goes_on_from_it(job: Any) -> None:
    _, path = job()
    whole = _same(path)
    path.unlink()
    code, path = job(stop=6)
    found = record.read(path)
    assert (code, found["status"], found["reason"]) == (trial.UNFINISHED, "interrupted", "at step 6 of 15")
    assert found["result"] is None and path.with_suffix(".checkpoint").exists()
    assert job(stop=3)[0] == trial.UNFINISHED
    assert job()[0] == trial.DONE
    assert _same(path) == whole
    assert record.read(path)["run"]["resumed"] == 2
    assert _kept(path) == ["seed00.json"]


@pytest.mark.fault(4)
def test_a_damaged_checkpoint_is_told_in_the_record(job: Any) -> None:
    _, path = job()
    whole = _same(path)
    path.unlink()
    job(stop=9)
    path.with_suffix(".checkpoint").write_bytes(b"half")
    assert job()[0] == trial.DONE
    assert _same(path) == whole
    assert record.read(path)["run"]["remarks"] == ["checkpoint seed00.checkpoint is damaged, moved aside"]


@pytest.mark.fault(4)
def test_what_was_told_of_one_stretch_is_still_told_after_the_next(job: Any) -> None:
    job(stop=9)
    _, path = job(stop=3)
    saved = path.with_suffix(".checkpoint")
    saved.write_bytes(b"half")
    job(stop=2)
    state, _ = checkpoint.load(saved, record.read(path)["digest"])
    assert state is not None
    checkpoint.save(saved, state | {"device_name": "slow", "torch": "0.1", "threads": state["threads"] + 1})
    job(stop=1)
    assert job()[0] == trial.DONE
    assert record.read(path)["run"]["remarks"] == [
        "checkpoint seed00.checkpoint is damaged, moved aside",
        "continued with another number of threads than before",
        "continued with another device than before",
        "continued with another version of torch than before",
    ]


def _wide(state: dict[str, Any]) -> None:
    state["module"]["map.weight"] = torch.zeros(3, 65)


def _renamed(state: dict[str, Any]) -> None:
    state["module"]["layer.weight"] = state["module"].pop("map.weight")


def _without_optimiser(state: dict[str, Any]) -> None:
    state["optimizers"] = {}


def test_final_weights_stay_on_request(job: Any) -> None:
    code, path = job(keep=True)
    assert code == trial.DONE
    what = Trial.from_json(record.read(path)["trial"])
    state, _ = checkpoint.load(path.with_suffix(".weights"), what.digest)
    assert state is not None
    fresh = trainer.Run(what, torch.device("cpu"))
    assert trainer.weights_digest(fresh.method) != record.read(path)["result"]["weights_sha256"]
    fresh.method.load_state_dict(state["module"])
    assert trainer.weights_digest(fresh.method) == record.read(path)["result"]["weights_sha256"]


def test_no_final_record_stands_without_the_weights_that_were_asked_for(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves weights without a record, which the next run makes again; not the other way round."""
    save = checkpoint.save

    def full(path: Path, state: checkpoint.State) -> None:
        if path.suffix == ".weights":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, state)

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "save", full)
        code, path = job(keep=True)
    assert code == trial.USER_ERROR and not path.exists()
    code, path = job(keep=True)
    assert code == trial.DONE and path.exists() and path.with_suffix(".weights").exists()


def test_a_record_names_the_departures_of_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    (what,) = trials(load_suite("digits_semi"), "quick", ["samm"], [0])
    what = replace(what, steps=1, config={**what.config, "factorisation": 15})
    path = record.record_path(tmp_path, what)
    path.parent.mkdir(parents=True)
    assert attempted(trial.Job(what, "cpu", str(tmp_path), 1)) == trial.DONE
    (told,) = record.read(path)["departures"]
    assert "y1a, y2a" in told and "Eq. 15" in told


def _more_parameters(state: dict[str, Any]) -> None:
    state["optimizers"]["adam"]["param_groups"][0]["params"].append(2)


def _of_old_code(state: dict[str, Any]) -> None:
    del state["trace"]


def _of_a_gpu(state: dict[str, Any]) -> None:
    state["noise"] = state["noise"][:16]


def _of_other_data(state: dict[str, Any]) -> None:
    state["data"] = ["0" * 64, state["data"][1]]


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "edit", [_wide, _renamed, _without_optimiser, _more_parameters, _of_old_code, _of_a_gpu, _of_other_data]
)
def test_a_checkpoint_of_other_code_is_set_aside_and_the_trial_begins_again(
    job: Any, edit: Callable[[dict[str, Any]], None]
) -> None:
    _, path = job()
    whole = _same(path)
    path.unlink()
    job(stop=9)
    saved, digest = path.with_suffix(".checkpoint"), record.read(path)["digest"]
    state, _ = checkpoint.load(saved, digest)
    assert state is not None
    edit(state)
    checkpoint.save(saved, state)
    content = saved.read_bytes()
    assert job()[0] == trial.DONE
    assert _same(path) == whole
    about = record.read(path)["run"]
    assert about["remarks"] == [
        "a checkpoint of other code, other data or another kind of device was set aside; the trial began again"
    ]
    assert about["resumed"] == 0
    assert path.with_name("seed00.checkpoint.bad").read_bytes() == content
    assert _kept(path) == ["seed00.checkpoint.bad", "seed00.checkpoint.previous.bad", "seed00.json"]


@pytest.mark.fault(6)
def test_a_trial_that_other_code_of_the_same_shapes_goes_on_with_counts_as_made_by_both(job: Any) -> None:
    _, path = job(stop=9)
    saved, digest = path.with_suffix(".checkpoint"), record.read(path)["digest"]
    for older in ("a" * 64, "b" * 64):  # twice, so that none is forgotten
        state, _ = checkpoint.load(saved, digest)
        assert state is not None
        checkpoint.save(saved, state | {"sources": older})
        job(stop=2)
    assert job()[0] == trial.DONE
    told = record.read(path)
    now = told["run"]["git"]["sources"]
    assert told["run"]["git"]["before"] == ["a" * 64, "b" * 64]
    assert record.sources(told) == f"{'a' * 64}+{'b' * 64}+{now}"


def test_a_damaged_checkpoint_before_one_of_other_code_is_told_too(job: Any) -> None:
    _, path = job(stop=9)
    saved, digest = path.with_suffix(".checkpoint"), record.read(path)["digest"]
    state, _ = checkpoint.load(saved, digest)
    assert state is not None
    _wide(state)
    checkpoint.save(saved, state)
    checkpoint.save(saved, state)
    saved.write_bytes(b"half")
    assert job()[0] == trial.DONE
    assert record.read(path)["run"]["remarks"] == [
        "checkpoint seed00.checkpoint is damaged, moved aside",
        "a checkpoint of other code, other data or another kind of device was set aside; the trial began again",
    ]


def test_too_little_memory_to_restore_leaves_the_checkpoint(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    _, path = job()
    whole = _same(path)
    path.unlink()
    job(stop=9)
    with monkeypatch.context() as patch:
        patch.setattr("bench.trainer.Run.restore", full)
        assert job()[0] == trial.FAILED
    assert job(stop=6)[0] == trial.DONE  # six steps were left
    assert _same(path) == whole


def test_a_record_tells_the_precision_and_that_the_data_are_the_official_ones(job: Any) -> None:
    for precision in ("fp32", "bf16"):
        code, path = job(fields={"precision": precision, "row": precision})
        found = record.read(path)
        assert (code, found["trial"]["precision"], found["run"]["precision"]) == (trial.DONE, precision, precision)
        assert "variant" in found["data"] and found["data"]["variant"] is None


def test_a_precision_that_the_device_lacks_is_one_line(job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    code, path = job(fields={"precision": "tf32"})
    assert code == trial.USER_ERROR and not path.exists()
    said = json.loads(capfd.readouterr().out)["error"]
    assert said == "precision: tf32 needs a GPU, the device is cpu; use fp32 or bf16"


def test_a_kill_between_the_last_checkpoint_and_the_record_costs_nothing(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = job()
    whole = _same(path)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(record, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job()
    assert not path.exists() and path.with_suffix(".checkpoint").exists()
    assert job(stop=0)[0] == trial.DONE  # not one step more
    assert _same(path) == whole


def test_a_method_that_raises_tells_why_in_one_line(job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    code, path = job(fault="raise")
    said = capfd.readouterr()
    assert code == trial.FAILED and not path.exists()
    reason = json.loads(said.out.splitlines()[-1])["failed"]
    assert reason.startswith("RuntimeError: broken on purpose (conftest.py:")
    assert "Traceback" in said.err  # goes to the log


@pytest.mark.fault(12)
def test_a_loss_that_is_no_number_is_a_result(job: Any) -> None:
    code, path = job(fault="loss", at=6)
    found = record.read(path)
    assert (code, found["status"]) == (trial.DONE, "diverged")
    assert found["reason"] == "loss 'loss' is not finite between steps 5 and 6"
    assert (found["result"]["last"]["step"], found["result"]["trace"]["step"][-1]) == (4, 5)
    assert _kept(path) == ["seed00.json"]


def test_an_early_divergence_has_no_scores(job: Any) -> None:
    _, path = job(fault="loss", at=1)
    found = record.read(path)
    assert (found["status"], found["result"]) == ("diverged", None)


def test_bad_input_found_by_a_trial_is_one_line(job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    code, _ = job(rates=1)
    assert code == trial.USER_ERROR
    assert "unknown key 'rates'; did you mean 'rate'?" in json.loads(capfd.readouterr().out)["error"]


# signals and pipes of a trial


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[trial.Stop, Any]]:
    """A Stop and the parent's end of its pipe."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    there, here = os.pipe()
    threads = set(threading.enumerate())
    with os.fdopen(there) as stdin, os.fdopen(here, "w") as parent:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield trial.Stop(), parent
        parent.close()
        for thread in set(threading.enumerate()) - threads:
            thread.join(5)  # its reader leaves when the pipe closes
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_trial_notices_a_signal(stop: tuple[trial.Stop, Any]) -> None:
    asked, _ = stop
    assert not asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked()


def test_a_trial_notices_that_its_parent_is_gone(stop: tuple[trial.Stop, Any]) -> None:
    asked, parent = stop
    parent.write("a job\n")
    parent.flush()
    assert asked.jobs.get(timeout=5) == "a job\n"
    assert not asked()
    parent.close()
    assert asked.jobs.get(timeout=5) == ""
    assert asked()


@pytest.mark.parametrize("ago", [None, 20.0])
def test_the_time_for_all_jobs_is_counted_from_the_first_one_on(
    stop: tuple[trial.Stop, Any],
    make_trial: Callable[..., Trial],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ago: float | None,
) -> None:
    """Also for a trial that begins when another has ended; a process that was started so long ago has used some of it."""
    asked, seen = stop[0], []

    def attempt(job: trial.Job, stop: trial.Stop, pool: Pool) -> Any:
        yield
        time.sleep(0.01)
        seen.append(stop.until)
        if len(seen) == 3:
            asked.jobs.put("")  # as when the parent closes the pipe
        return trial.DONE

    monkeypatch.setattr(trial, "keep_apart", lambda: None)  # standard output is pytest's
    monkeypatch.setattr(trial, "Stop", lambda: asked)
    monkeypatch.setattr(trial, "attempt", attempt)
    before = time.monotonic()
    monkeypatch.delenv(process.STARTED, raising=False)
    if ago:
        monkeypatch.setenv(process.STARTED, repr(before - ago))
    for number in range(3):
        what = trial.Job(make_trial(), "cpu", str(tmp_path), 1, seconds=100.0, number=number, share=2)
        asked.jobs.put(json.dumps(asdict(what)))
    assert trial.main() == 0
    assert len(seen) == 3 and len(set(seen)) == 1
    assert before + 100 <= seen[0] + (ago or 0) <= time.monotonic() + 100


def test_a_second_signal_leaves_at_once(stop: tuple[trial.Stop, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert left == []  # at the same moment it is the same request, passed on twice
    stop[0].since -= 5.0
    os.kill(os.getpid(), signal.SIGINT)
    assert left == [130]


@pytest.mark.fault(2)
def test_the_first_signal_after_the_end_of_the_parent_is_no_second_one(
    stop: tuple[trial.Stop, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that goes down ends the parent first; its signal must leave the trial the time for a checkpoint."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    asked, parent = stop
    parent.close()
    assert asked.jobs.get(timeout=5) == ""
    os.kill(os.getpid(), signal.SIGTERM)
    assert left == [] and asked()


def test_progress_that_nobody_reads_does_not_end_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = os.pipe()
    os.close(there)
    stdout = os.fdopen(here, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    try:
        trial.Reporter(0)(1, 10)
    finally:
        monkeypatch.undo()
        os.close(here)
        with suppress(OSError):
            stdout.close()


# the dispatcher, with children that are shell scripts


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Out]:
    """A dispatcher whose trials run a shell script; it stands in `scripts/`, records in `out/`."""
    (tmp_path / "scripts").mkdir()

    def make(script: str, **plan: Any) -> Out:
        path = tmp_path / "scripts" / "python"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        stream = io.StringIO()
        return Dispatcher(
            Plan(**{"devices": ("cpu",), "threads": 1, "out": tmp_path / "out", **plan}), Board(stream)
        ), stream

    return make


def _stored(dispatcher: Dispatcher, what: Trial) -> dict[str, Any]:
    return record.read(record.record_path(dispatcher.plan.out, what))


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("""read job; echo '{"end": 1}'""", "failed", "its process ended with code 1"),
        ("""read job; echo '{"failed": "Bad: it (a.py:3)"}'; echo '{"end": 1}'""", "failed", "Bad: it (a.py:3)"),
        ("exit 7", "killed", "its process ended with code 7"),
        ("exit 0", "killed", "its process ended with code 0"),
        ("read job; exit 3", "killed", "its process ended with code 3"),
        ("read job; exit 4", "killed", "its process ended with code 4"),
        (
            """echo '{"step": 3, "steps": 9}'; echo hello; echo '[1]'; echo '{'; kill -9 $$""",
            "killed",
            "its process was ended by signal 9",
        ),
        ("kill -SEGV $$", "killed", "its process was ended by signal 11"),
    ],
)
def test_a_child_that_ends_without_a_record_gets_one(
    child: Callable[..., Out], make_trial: Callable[..., Trial], script: str, status: str, reason: str
) -> None:
    dispatcher, stream = child(script, devices=("other",), share=1)  # a process for each trial
    trials = [make_trial(), make_trial(seed=1)]
    assert dispatcher.run(trials) == {status: 2}
    for what in trials:
        found = _stored(dispatcher, what)
        assert (found["status"], found["reason"], found["result"]) == (status, reason, None)
        assert f"small/toy seed {what.seed}: {status}: {reason}" in stream.getvalue()
    assert _kept(record.record_path(dispatcher.plan.out, trials[0])) == ["seed00.json", "seed01.json"]


def test_a_child_gets_its_job_and_its_environment(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    dispatcher, _ = child(f'read job; echo "$job" > {tmp_path}/job; env > {tmp_path}/env', threads=3, seconds=60)
    dispatcher.run([make_trial()])
    sent = json.loads((tmp_path / "job").read_text(encoding="utf-8"))
    assert sent["trial"] == json.loads(json.dumps(make_trial().to_json()))
    assert (sent["device"], sent["threads"]) == ("cpu", 3)
    assert 50 < sent["seconds"] <= 60
    environment = (tmp_path / "env").read_text(encoding="utf-8").splitlines()
    assert "OMP_NUM_THREADS=3" in environment
    assert any(line.startswith(f"PYTHONPATH={ROOT}") for line in environment)


def test_bad_input_stops_the_run_and_is_one_error(child: Callable[..., Out], make_trial: Callable[..., Trial]) -> None:
    dispatcher, _ = child("""read job; echo '{"error": "the file is cut"}'; echo '{"end": 2}'""")
    with pytest.raises(UserError, match="^the file is cut$"):
        dispatcher.run([make_trial(seed=seed) for seed in range(3)])
    assert not list(dispatcher.plan.out.rglob("*.json"))


def test_a_full_disk_stops_the_run_and_says_so(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    dispatcher, _ = child(f"echo x >> {tmp_path}/started; exit 1")
    monkeypatch.setattr(record, "write", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        dispatcher.run([make_trial(seed=seed) for seed in range(3)])
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n"


def test_a_busy_trial_is_left_to_the_other_runner(child: Callable[..., Out], make_trial: Callable[..., Trial]) -> None:
    dispatcher, stream = child("""read job; echo '{"end": 4}'""")
    assert dispatcher.run([make_trial()]) == {"busy": 1}
    assert "another runner has it" in stream.getvalue()
    assert not list(dispatcher.plan.out.rglob("*.json"))


@pytest.mark.parametrize(
    ("remark", "told"),
    [("not captured: no such kernel", ", each step call by call (not captured: no such kernel)"), ("it waits", "")],
)
def test_a_step_that_a_gpu_could_not_capture_is_told_in_the_end(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path, remark: str, told: str
) -> None:
    what, made = make_trial(), tmp_path / "made.json"
    scores = {"last": {"test": {"majority": 4.0}}}
    record.write(made, record.new_record(what, "done", None, scores, {}, {"seconds": 7.2, "engine_remark": remark}))
    path = record.record_path(tmp_path / "out", what)
    dispatcher, stream = child(f"read job; cp {made} {path}; echo '{{\"end\": 0}}'; cat")
    assert dispatcher.run([what]) == {"done": 1}
    assert stream.getvalue().endswith(f": done, test majority error 4.00 %, 7 s{told}\n")


def test_no_trial_is_started_once_the_time_is_up(child: Callable[..., Out], make_trial: Callable[..., Trial]) -> None:
    dispatcher, _ = child("exit 1", seconds=0.0)
    assert dispatcher.run([make_trial(), make_trial(seed=1)]) == {"pending": 2}
    assert not dispatcher.plan.out.exists()


def test_a_trial_with_a_result_is_not_started(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    dispatcher, _ = child(f"echo x >> {tmp_path}/started; exit 1")
    for seed, status in enumerate(("done", "diverged", "failed", "interrupted", "killed")):
        what = make_trial(seed=seed)
        record.write(record.record_path(dispatcher.plan.out, what), record.new_record(what, status, None, {}))
    assert dispatcher.run([make_trial(seed=seed) for seed in range(5)]) == {"skipped": 2, "killed": 3}
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n" * 3


def test_several_workers_run_at_once_and_each_has_its_device(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    dispatcher, _ = child(f'read job; echo "$job" >> {tmp_path}/jobs; sleep 0.3', devices=("cpu", "meta"))
    started = time.monotonic()
    assert dispatcher.run([make_trial(seed=seed) for seed in range(4)]) == {"killed": 4}
    assert time.monotonic() - started < 1.1
    devices = [json.loads(line)["device"] for line in (tmp_path / "jobs").read_text(encoding="utf-8").splitlines()]
    assert sorted(devices) == ["cpu", "cpu", "meta", "meta"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_ends_the_run(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path, number: int
) -> None:
    script = f"trap 'echo term >> {tmp_path}/said; exit 3' TERM\ntouch {tmp_path}/up\nsleep 5 >&- & wait"
    dispatcher, told = child(script)
    before = signal.getsignal(number)
    what = make_trial()
    record.write(record.record_path(dispatcher.plan.out, what), record.new_record(what, "interrupted", "at step 0"))

    def interrupt() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = dispatcher.run([what, make_trial(seed=1)])
    thread.join()
    assert outcome == {"interrupted": 1, "pending": 1}
    assert dispatcher.signal == number
    assert (tmp_path / "said").read_text(encoding="utf-8") == "term\n"
    stopping, ended = told.getvalue().splitlines()
    assert stopping.startswith("stopping: ") and "a second signal" in stopping and "interrupted: " in ended
    assert signal.getsignal(number) is before


def test_a_signal_may_come_while_a_line_is_printed() -> None:
    """Its handler prints a line itself, in the same thread."""
    board = Board(io.StringIO())
    before = signal.signal(signal.SIGUSR1, lambda *_: board.say("stopping"))
    try:
        with board.lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            board.say("done")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(board.stream.getvalue().splitlines()) == ["done", "stopping"]  # type: ignore[attr-defined]


class Gone(io.StringIO):
    """A terminal whose window was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_has_gone_stops_nothing() -> None:
    board = Board(Gone())
    board.update("one", {"step": 1, "steps": 2})
    board.say("a line")
    board.done("one", "done")
    board.close()
    assert not board.live


def test_a_child_that_left_at_a_second_signal_was_interrupted(
    child: Callable[..., Out], make_trial: Callable[..., Trial]
) -> None:
    dispatcher, _ = child(f"kill -TERM {os.getpid()}; trap '' TERM; sleep 0.2; exit 143")
    dispatcher.run([make_trial()])
    assert _stored(dispatcher, make_trial())["status"] == "interrupted"


def test_a_result_is_never_replaced_because_its_process_died_afterwards(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    what = make_trial()
    finished, target = tmp_path / "finished.json", record.record_path(tmp_path / "out", what)
    scores = {"last": {"step": 15, "test": {"majority": 3.5}}}
    record.write(finished, record.new_record(what, "done", None, scores, run={"seconds": 1.0}))
    dispatcher, _ = child(f"cp {finished} {target}; kill -SEGV $$")
    dispatcher.run([what])
    assert _stored(dispatcher, what)["status"] == "done"


def test_a_process_serves_one_trial_after_another_on_a_cpu(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    script = (
        f"""echo x >> {tmp_path}/started; while read job; do echo '{{"failed": "so"}}'; echo '{{"end": 1}}'; done"""
    )
    dispatcher, _ = child(script)
    assert dispatcher.run([make_trial(seed=seed) for seed in range(3)]) == {"failed": 3}
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n"


LOT = [("cpu", 1, [1] * 7), ("cpu", None, [1] * 7), ("cpu", 3, [3, 3, 1]), ("cpu", 9, [7])]
LOT += [("cuda:0", None, [7]), ("cuda:0", 1, [1] * 7), ("cuda:0", 4, [4, 3])]
LOT += [("cuda:0 cuda:1", None, [4, 3]), ("cuda:0 cuda:1", 2, [2, 2, 2, 1]), ("cuda:0 cuda:0 cuda:0", None, [3, 3, 1])]
LOT += [("cpu cpu", 9, [4, 3]), (" ".join(f"cuda:{n}" for n in range(8)), None, [1] * 7)]


@pytest.mark.parametrize(("devices", "share", "sizes"), LOT)
def test_seeds_of_a_row_go_together_and_are_spread_over_the_devices(
    make_trial: Callable[..., Trial], devices: str, share: int | None, sizes: list[int]
) -> None:
    rows = [("one", "a", 7), ("two", "b", 1), ("three", "a", 7)]
    trials = [make_trial(row=row, method=method, seed=seed) for row, method, n in rows for seed in range(n)]
    lots = Plan(tuple(devices.split()), 1, Path("out"), share=share).lots(trials)
    assert [len(lot) for lot in lots] == [*sizes, 1, *sizes]
    assert [trial for lot in lots for trial in lot] == trials
    assert all(len({trial.row for trial in lot}) == 1 for lot in lots)


@pytest.mark.parametrize(
    ("share", "sizes"), [(None, [3, 2, 1, 3]), (4, [4, 1, 1, 3]), (5, [5, 1, 3]), (2, [2, 2, 1, 1, 2, 1])]
)
def test_a_given_share_is_filled_with_other_rows_of_the_method(
    make_trial: Callable[..., Trial], share: int | None, sizes: list[int]
) -> None:
    rows = [("one", "a", 3), ("two", "a", 2), ("three", "b", 1), ("four", "a", 3)]
    trials = [make_trial(row=row, method=method, seed=seed) for row, method, n in rows for seed in range(n)]
    lots = Plan(("cuda:0",), 1, Path("out"), share=share).lots(trials)
    assert [len(lot) for lot in lots] == sizes and [trial for lot in lots for trial in lot] == trials
    assert all(len({trial.method for trial in lot}) == 1 for lot in lots)


def test_a_process_takes_no_more_trials_than_its_device_might_hold(make_trial: Callable[..., Trial]) -> None:
    trials = [make_trial(seed=seed) for seed in range(40)]
    assert [len(lot) for lot in Plan(("cuda:0",), 1, Path("out")).lots(trials)] == [16, 16, 8]
    assert [len(lot) for lot in Plan(("cuda:0",), 1, Path("out"), share=20).lots(trials)] == [20, 20]
    assert Plan(("cuda:0",), 1, Path("out")).lots([]) == []
    apart = [make_trial(budget=budget, seed=seed) for budget in ("quick", "paper") for seed in (0, 1)]
    assert [len(lot) for lot in Plan(("cuda:0",), 1, Path("out")).lots(apart)] == [2, 2]


def test_each_trial_of_a_lot_ends_in_its_own_way(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    script = f"""for i in 0 1 2 3; do read job; echo "$job" >> {tmp_path}/jobs; done
echo '{{"trial": 2, "failed": "so"}}'; echo '{{"trial": 2, "end": 1}}'; echo '{{"trial": 2, "end": 0}}'
echo '{{"trial": 0, "end": 4}}'; echo '{{"trial": 9, "end": 1}}'; kill -9 $$"""
    dispatcher, _ = child(script, devices=("other",), share=4, engine="eager")
    lot = [make_trial(seed=seed) for seed in range(4)]
    assert dispatcher.run(lot) == {"failed": 1, "busy": 1, "killed": 2}
    assert _stored(dispatcher, lot[2])["reason"] == "so"
    for number in (1, 3):
        assert _stored(dispatcher, lot[number])["reason"] == "its process was ended by signal 9"
    assert not record.record_path(dispatcher.plan.out, lot[0]).exists()
    sent = [json.loads(line) for line in (tmp_path / "jobs").read_text(encoding="utf-8").splitlines()]
    assert [(job["number"], job["trial"]["seed"]) for job in sent] == [(n, n) for n in range(4)]
    assert {(job["share"], job["engine"]) for job in sent} == {(4, "eager")}


@pytest.mark.parametrize(("device", "share"), [("cpu", 1), ("other", None)])
def test_how_many_share_a_device_is_left_open_on_a_gpu_alone(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path, device: str, share: int | None
) -> None:
    dispatcher, _ = child(f'read job; echo "$job" >> {tmp_path}/jobs', devices=(device,))
    dispatcher.run([make_trial()])
    assert json.loads((tmp_path / "jobs").read_text(encoding="utf-8"))["share"] == share


def test_every_lot_of_a_gpu_has_a_process_of_its_own(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    script = f"""echo x >> {tmp_path}/started
read a; read b; echo '{{"trial": 0, "end": 1}}'; echo '{{"trial": 1, "end": 1}}'; read c"""
    dispatcher, _ = child(script, devices=("other",), share=2)
    assert dispatcher.run([make_trial(seed=seed) for seed in range(4)]) == {"failed": 4}
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n" * 2


def test_a_lot_leaves_out_what_has_a_result(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    script = f'for i in 1 2; do read job; echo "$job" >> {tmp_path}/jobs; done'
    dispatcher, _ = child(script, devices=("other",), share=3)
    lot = [make_trial(seed=seed) for seed in range(3)]
    record.write(record.record_path(dispatcher.plan.out, lot[1]), record.new_record(lot[1], "done", None, {}))
    assert dispatcher.run(lot) == {"skipped": 1, "killed": 2}
    sent = [json.loads(line) for line in (tmp_path / "jobs").read_text(encoding="utf-8").splitlines()]
    assert [job["trial"]["seed"] for job in sent] == [0, 2]


def test_a_process_that_dies_between_two_trials_costs_neither(
    child: Callable[..., Out], make_trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, _ = child("""read job; echo '{"failed": "so"}'; echo '{"end": 1}'; exit 0""")
    monkeypatch.setattr(dispatcher.board, "done", lambda *_: time.sleep(0.3))
    assert dispatcher.run([make_trial(), make_trial(seed=1)]) == {"failed": 2}


def test_after_an_exception_the_next_trial_gets_a_process_of_its_own(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before may still be at work."""
    script = f'echo x >> {tmp_path}/started; while read job; do echo \'{{"step": 1, "steps": 2}}\'; done'
    dispatcher, stream = child(script)
    monkeypatch.setattr(dispatcher.board, "update", lambda *_: {}["none"])
    assert dispatcher.run([make_trial(), make_trial(seed=1)]) == {"failed": 2}
    assert stream.getvalue().count("failed: KeyError('none')") == 2
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n" * 2


def test_bytes_that_are_no_text_do_not_end_the_run(child: Callable[..., Out], make_trial: Callable[..., Trial]) -> None:
    dispatcher, _ = child(r"""read job; printf '\377\n'; echo '{"end": 1}'""")
    assert dispatcher.run([make_trial(), make_trial(seed=1)]) == {"failed": 2}


def test_a_reason_that_is_no_valid_unicode_does_not_end_the_run(
    child: Callable[..., Out], make_trial: Callable[..., Trial]
) -> None:
    dispatcher, _ = child(r"""read job; echo '{"failed": "no file \udcff"}'; echo '{"end": 1}'""")
    assert dispatcher.run([make_trial(), make_trial(seed=1)]) == {"failed": 2}


def test_another_runner_that_takes_the_empty_log_away_does_no_harm(
    child: Callable[..., Out], make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    dispatcher, _ = child(f"find {tmp_path}/out -name '*.log' -delete; exit 1")
    assert dispatcher.run([make_trial()]) == {"killed": 1}


# the dispatcher, with real trials that a few lines of code change


@pytest.fixture
def changed(child: Callable[..., Out], write_suite: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """A dispatcher and two trials of each row; `code` defines `then`, which runs after a fit or a step.

    Every process that starts is a line in `started`.
    """

    def make(code: str, *rows: str) -> tuple[Dispatcher, list[Trial]]:
        (tmp_path / "trial.py").write_text(f"{CHANGED}{code}\nsys.exit(trial.main())\n", encoding="utf-8")
        dispatcher, _ = child(f"echo x >> {tmp_path}/started; exec {sys.executable} {tmp_path}/trial.py")
        return dispatcher, trials(load_suite(write_suite(*rows, seeds="0-1")), "quick")

    return make


CHANGED = """import ctypes, functools, json, os, signal, sys
from baselines.aae import AAE
from baselines.kmeans import KMeans
from bench import trial
def finish(self, data, before=KMeans.finish):
    before(self, data)
    then()
def update(self, batch, before=AAE.update):
    losses = before(self, batch)
    then()
    return losses
KMeans.finish, AAE.update = finish, update
"""
LOUD = r"""
def then():
    print(json.dumps({"step": 1, "loss": 0.5}))
    print(json.dumps({"trial": 0, "end": 1}))
    os.write(1, b"bytes\n")
    os.system("echo a program")
    ctypes.CDLL(None).puts(b"C")
    ctypes.CDLL(None).fflush(None)
    print("fitting...", end="")
"""
ONCE = "then = functools.cache(lambda: os.kill(os.getpid(), signal.SIGTERM))"
HEARD = '{"step": 1, "loss": 0.5}\n{"trial": 0, "end": 1}\nbytes\na program\nC\nfitting...'


@pytest.mark.fault(30)
def test_what_a_method_prints_goes_to_its_log_and_never_to_the_dispatcher(
    changed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, both = changed(LOUD, "kmeans")
    paths = [record.record_path(dispatcher.plan.out, what) for what in both]
    paths[0].parent.mkdir(parents=True)
    worker = dispatcher.workers[0]
    said = worker.hand(json.dumps(asdict(trial.Job(both[0], "cpu", str(dispatcher.plan.out), 1))) + "\n")
    if (first := next(iter(said))) != json.dumps({"trial": 0, "end": trial.DONE, "leaves": False}) + "\n":
        worker.close()
        pytest.fail(first)
    monkeypatch.setattr(dispatcher.board, "live", True)
    assert dispatcher.run(both) == {"skipped": 1, "done": 1}
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n"
    assert [path.with_suffix(".log").read_text(encoding="utf-8") for path in paths] == [HEARD] * 2


@pytest.mark.fault(2)
def test_a_signal_to_a_trial_alone_costs_no_other(changed: Callable[..., Any], tmp_path: Path) -> None:
    """Its process leaves, whether the trial could leave amid its steps or had none and came to its result."""
    dispatcher, four = changed(ONCE, "aae", "kmeans")
    assert dispatcher.run(four[1:]) == {"interrupted": 1, "done": 2}
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n" * 3


# the whole command, with real trials


def _arguments(suite: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--suite", str(suite), "--budget", "quick", "--device", "cpu", "--out", str(out)),
        *("--threads", "1", "--workers", "1", "--checkpoint-every", "0", *more),
    ]


def _runner(suite: Path, out: Path) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "bench.run", *_arguments(suite, out)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _until(there: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := there():
            return found
        time.sleep(0.01)
    raise AssertionError("it took too long")


def _training(path: Path, since: int = 0) -> bool:
    """Whether the trial has written a checkpoint after the time `since`, in ns."""
    saved = path.with_suffix(".checkpoint")
    return saved.exists() and saved.stat().st_mtime_ns > since


def _child_of(parent: int) -> int:
    """The trial process of a dispatcher."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    return int(found[0])


def _meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def _records(out: Path) -> dict[str, dict[str, Any]]:
    """All records below a folder by row and seed, without what a clock or a machine decides."""
    return {str(path.relative_to(out)): _same(path) for path in sorted(out.rglob("seed*.json"))}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, dict[str, Any]]]:
    """Runs the trials of a suite one after another in this process and returns their records."""

    def run(suite: Path) -> dict[str, dict[str, Any]]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup2", lambda *_: None)  # the log takes standard error over
            for what in trials(load_suite(suite), "quick"):
                record.record_path(tmp_path / "alone", what).parent.mkdir(parents=True, exist_ok=True)
                assert attempted(trial.Job(what, "cpu", str(tmp_path / "alone"), 1)) == trial.DONE
        return _records(tmp_path / "alone")

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Filled by the first test of the whole command: what the AMM trial gives when nothing happens to it."""
    yield {}


@pytest.fixture
def amm(write_suite: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A suite of one AMM trial, its output folder, and its record."""
    suite = write_suite("amm", quick='{steps: 60, validate: 4, label: "quick: 60 steps"}')
    return suite, tmp_path / "out", tmp_path / "out" / "small" / "quick" / "amm" / "seed00.json"


@pytest.fixture
def expected(
    amm: tuple[Path, Path, Path], undisturbed: dict[str, Any], alone: Callable[[Path], dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """The record of the undisturbed trial, run once for this file."""
    if not undisturbed:
        (found,) = alone(amm[0]).values()
        undisturbed.update(found)
    return undisturbed


def test_a_run_is_done_once(
    amm: tuple[Path, Path, Path], expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, _, path = amm
    assert expected["status"] == "done" and expected["result"]["step"] == 60
    assert len(expected["result"]["curve"]) == 15
    record.write(path, {**expected, "run": {}})
    before = path.stat().st_mtime_ns
    assert main(_arguments(suite, tmp_path / "out")) == 0
    assert "all 1 trials have a result" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == before


@pytest.mark.fault(1, 2)
def test_after_kill_9_of_runner_and_of_trial_and_sigterm_the_same_command_equals_an_undisturbed_run(
    amm: tuple[Path, Path, Path], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    suite, out, path = amm

    def disturbed(act: Callable[[], None]) -> int:
        """The command's exit code when `act` comes once its trial has gone on."""
        since = path.with_suffix(".checkpoint").stat().st_mtime_ns

        def strike() -> None:
            _until(lambda: _training(path, since))
            act()

        thread = _meanwhile(strike)
        code = main(_arguments(suite, out))
        thread.join()
        return code

    with _runner(suite, out) as runner:
        _until(lambda: _training(path))
        orphan = _child_of(runner.pid)
        runner.kill()
        runner.wait()
    _until(lambda: not Path(f"/proc/{orphan}/stat").exists() or ") Z " in Path(f"/proc/{orphan}/stat").read_text())
    found = record.read(path)
    assert (found["status"], path.with_suffix(".checkpoint").exists()) == ("interrupted", True)

    assert disturbed(lambda: os.kill(_child_of(os.getpid()), signal.SIGKILL)) == 1
    found = record.read(path)
    assert (found["status"], found["reason"]) == ("killed", "its process was ended by signal 9")

    assert disturbed(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert record.read(path)["status"] == "interrupted"
    state, remarks = checkpoint.load(path.with_suffix(".checkpoint"), expected["digest"])
    assert state is not None and record.read(path)["reason"] == f"at step {state['step']} of 60" and not remarks

    assert main(_arguments(suite, out, "--time-budget", "0.000001s")) == 3
    assert main(_arguments(suite, out)) == 0
    assert _same(path) == expected
    assert record.read(path)["run"]["resumed"] == 3
    assert _kept(path) == ["seed00.json"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault(12)
def test_failures_are_recorded_and_the_others_complete(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite("mismatch", "absurd", "kmeans")
    assert main(_arguments(suite, tmp_path / "out")) == 1
    found = {
        row: record.read(tmp_path / "out/small/quick" / row / "seed00.json") for row in ("mismatch", "absurd", "kmeans")
    }
    assert {row: each["status"] for row, each in found.items()} == {
        "mismatch": "failed",
        "absurd": "diverged",
        "kmeans": "done",
    }
    assert found["mismatch"]["reason"] and "\n" not in found["mismatch"]["reason"]
    assert "is not finite between steps" in found["absurd"]["reason"]
    assert (tmp_path / "out/small/quick/mismatch/seed00.log").stat().st_size > 0
    said = capsys.readouterr().err
    assert "1 diverged, 1 done, 1 failed" in said and "Traceback" not in said


@pytest.mark.fault(11, 15)
def test_a_trial_under_way_is_told_and_left_alone_and_is_no_longer_once_killed(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, out = write_suite("amm", quick='{steps: 50000, validate: 4, label: "quick"}'), tmp_path / "out"
    path = out / "small" / "quick" / "amm" / "seed00.json"
    status = ["status", "--suite", str(suite), "--budget", "quick", "--out", str(out)]
    with _runner(suite, out) as runner:
        _until(lambda: _training(path))
        assert main(status) == 0
        assert main(_arguments(suite, out)) == 3
        os.kill(_child_of(runner.pid), signal.SIGKILL)
        assert runner.wait(timeout=60) == 1
    assert path.with_name("seed00.lock.1").exists()
    assert main(status) == 0
    said = capsys.readouterr()
    told = [line.split(maxsplit=1) for line in said.out.splitlines()]
    assert told == [["amm", "1 under way"], ["amm", "1 killed"]]
    assert "skipped: another runner has it" in said.err


# trials that share a process


TWENTY = '{steps: 20, validate: 10, label: "quick"}'


@pytest.mark.slow
@pytest.mark.fault(26)
def test_trials_that_share_a_process_have_the_results_of_each_alone(
    write_suite: Callable[..., Path], tmp_path: Path, alone: Callable[[Path], dict[str, dict[str, Any]]]
) -> None:
    """One row diverges, one takes no steps, and how steps are taken is decided by the clock."""
    suite, out = write_suite("amm", "absurd", "kmeans", seeds="0-2", quick=TWENTY), tmp_path / "out"
    assert main(_arguments(suite, out, "--share", "3", "--checkpoint-every", "60")) == 0
    expected = alone(suite)
    assert len(expected) == 9 and _records(out) == expected
    assert {found["status"] for found in expected.values()} == {"done", "diverged"}
    assert {record.read(path)["run"]["shared_by"] for path in out.rglob("seed*.json")} == {3}
    weights = {found["result"]["weights_sha256"] for name, found in expected.items() if "/amm/" in name}
    assert len(weights) == 3  # no two are the same trial
    assert {path.suffix for path in out.rglob("seed*")} == {".json"}


@pytest.mark.slow
@pytest.mark.fault(15)
def test_kill_9_of_a_shared_process_costs_what_was_under_way_and_the_same_command_mends_it(
    write_suite: Callable[..., Path], tmp_path: Path, alone: Callable[[Path], dict[str, dict[str, Any]]]
) -> None:
    suite = write_suite("absurd", "aae", seeds="0-2", quick='{steps: 60, validate: 20, label: "quick"}')
    out = tmp_path / "out"
    rows = {row: [out / "small/quick" / row / f"seed0{seed}.json" for seed in range(3)] for row in ("absurd", "aae")}

    def kill() -> None:
        _until(lambda: all(_training(path) for path in rows["aae"]))
        os.kill(_child_of(os.getpid()), signal.SIGKILL)

    thread = _meanwhile(kill)
    assert main(_arguments(suite, out, "--share", "3")) == 1
    thread.join()
    assert [record.read(path)["status"] for path in rows["absurd"]] == ["diverged"] * 3
    assert [record.read(path)["status"] for path in rows["aae"]] == ["killed"] * 3
    kept = [path.read_bytes() for path in rows["absurd"]]
    since = [path.with_suffix(".checkpoint").stat().st_mtime_ns for path in rows["aae"]]

    def terminate() -> None:
        _until(lambda: all(map(_training, rows["aae"], since)))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = _meanwhile(terminate)
    assert main(_arguments(suite, out, "--share", "3", "--engine", "graph")) == 143
    thread.join()
    assert [record.read(path)["status"] for path in rows["aae"]] == ["interrupted"] * 3

    assert main(_arguments(suite, out, "--share", "2", "--engine", "eager", "--checkpoint-every", "60")) == 0
    assert _records(out) == alone(suite)
    assert [path.read_bytes() for path in rows["absurd"]] == kept
    assert [record.read(path)["run"]["resumed"] for path in rows["aae"]] == [2] * 3
    assert _kept(rows["aae"][0]) == ["seed00.json", "seed01.json", "seed02.json"]
