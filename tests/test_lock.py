"""The lock of a trial: one holder among processes, on file systems where flock reaches other machines and where it does not."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import lock, record
from bench.plan import trials
from bench.pool import BUSY, DONE
from bench.suite import Trial, load_suite
from bench.trial import Job

ROOT = Path(__file__).resolve().parent.parent
FAR = """
import fcntl, sys
from bench import lock, trial
fcntl.flock = lambda *_: None  # as on a file system where it stays on one machine
lock.machine = lambda: sys.argv[1]
lock.BEAT_S, lock.STALE_S = 0.1, 2.0
sys.exit(trial.main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "row" / "seed00.lock"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "STALE_S", 0.5)


def acquired(path: Path, meanwhile: Callable[[], object] = lambda: None, stop: bool = False) -> lock.Lock | None:
    """The lock, if it could be had; `meanwhile` is called whenever the acquirer watches."""
    going = lock.acquire(path, lambda: stop)
    while True:
        try:
            next(going)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        meanwhile()


def of_another_machine(path: Path, number: int = 1, beat: int = 1) -> Path:
    """A lock file whose flock does not reach here."""
    file = path.with_name(f"{path.name}.{number}")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": "elsewhere", "beat": beat}))
    return file


@pytest.mark.fault(11)
def test_the_lock_has_one_holder_and_is_free_again(path: Path) -> None:
    first = acquired(path)
    assert first and first.held()
    assert acquired(path) is None
    assert first.held()
    first.release()
    assert os.listdir(path.parent) == []
    second = acquired(path)
    assert second and second.number == 1
    second.release()


@pytest.mark.fault(9)
def test_a_full_disk_leaves_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no space"):
        acquired(path)
    assert os.listdir(path.parent) == []


def test_a_lock_says_who_has_it(path: Path) -> None:
    with acquired(path) or pytest.fail("not acquired"):
        said = json.loads((path.parent / "seed00.lock.1").read_bytes())
    assert (said["pid"], said["machine"]) == (os.getpid(), lock.machine()) and said["host"] and said["time"]


@pytest.mark.fault(11)
def test_a_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(path: Path) -> None:
    code = f"import os, signal; from bench import lock; from pathlib import Path\nlist(lock.acquire(Path({str(path)!r})))\n"
    code += "os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert os.listdir(path.parent) == ["seed00.lock.1"]
    watched: list[None] = []
    second = acquired(path, lambda: watched.append(None))
    assert second and second.held() and not watched
    assert os.listdir(path.parent) == ["seed00.lock.2"]
    second.release()


@pytest.mark.fault(11)
def test_another_machine_is_believed_dead_after_its_silence_alone(path: Path, quick: None) -> None:
    of_another_machine(path)
    began = time.monotonic()
    mine = acquired(path)
    assert mine and mine.number == 2 and time.monotonic() - began >= lock.STALE_S
    mine.release()


@pytest.mark.parametrize("hour", [-1, 0, 1])
def test_a_beat_of_another_machine_means_life_whatever_its_clock_says(path: Path, quick: None, hour: int) -> None:
    file = of_another_machine(path)
    beats = iter(range(2, 10**6))

    def beat() -> None:
        of_another_machine(path, beat=next(beats))
        os.utime(file, (time.time() + 3600 * hour,) * 2)

    assert acquired(path, beat) is None
    assert os.listdir(path.parent) == ["seed00.lock.1"]


def test_a_holder_whose_life_one_look_cannot_tell_is_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lock.under_way(path)
    file = of_another_machine(path)
    assert lock.under_way(path)
    file.write_text(json.dumps({"machine": lock.machine(), "beat": 1}))
    assert not lock.under_way(path)
    monkeypatch.setattr(lock, "_flock", lambda *_: None)  # as where the file system knows no locks
    assert lock.under_way(path)


def test_the_lock_of_another_user_is_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = of_another_machine(path)

    def closed(self: Path, *_: object) -> None:  # permissions do not bind an administrator
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        assert lock.under_way(path)
        assert acquired(path) is None
    assert os.listdir(path.parent) == [file.name]


def test_two_who_look_at_a_dead_holder_see_the_same(path: Path) -> None:
    file = of_another_machine(path)
    file.write_text(json.dumps({"machine": lock.machine(), "beat": 1}))
    with file.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not lock.under_way(path)


def test_a_watcher_that_shall_stop_leaves_the_lock_alone(path: Path) -> None:
    of_another_machine(path)
    assert acquired(path, stop=True) is None
    assert os.listdir(path.parent) == ["seed00.lock.1"]


@pytest.mark.fault(11)
def test_of_two_that_find_the_same_dead_holder_one_takes_over(path: Path, quick: None) -> None:
    of_another_machine(path)
    taken: list[lock.Lock] = []

    def other() -> None:
        if not taken:
            taken.append(lock.Lock(path, 2))
            assert taken[0].claim()

    assert acquired(path, other) is None
    assert taken[0].held()
    taken[0].release()


def test_a_lock_that_is_released_while_its_thread_asks_is_not_held(path: Path) -> None:
    mine = acquired(path)
    assert mine and mine.file
    mine.ended.set()
    mine.file.close()  # as `release` does; the name still lies there
    assert not mine.held() and mine.lost


def test_a_holder_whose_lock_was_taken_over_notices_and_removes_nothing(path: Path, quick: None) -> None:
    first = acquired(path)
    assert first
    second = lock.Lock(path, 2)
    assert second.claim()
    with pytest.raises(lock.Lost):
        first.require()
    first.release()
    assert second.held() and os.listdir(path.parent) == ["seed00.lock.2"]
    second.release()


def test_a_holder_notices_also_when_the_one_who_took_over_has_left(path: Path) -> None:
    first, second = acquired(path), lock.Lock(path, 2)
    assert first and second.claim()
    second.release()
    third = acquired(path)
    assert third and third.number == first.number  # the same name, not the same file
    assert not first.held() and third.held()
    first.release()
    assert third.held()
    third.release()


# trials as processes of two machines whose flock does not reach each other


@pytest.fixture
def far(tmp_path: Path, write_suite: Callable[..., Path]) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the trial `TRIAL` on a machine of this name."""
    what = trial_of(write_suite("amm", quick="{steps: 200, validate: 50, label: short}"))
    record.record_path(tmp_path / "out", what).parent.mkdir(parents=True)
    children = []

    def start(name: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", FAR, name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin
        child.stdin.write(json.dumps(asdict(Job(what, "cpu", str(tmp_path / "out"), 1, checkpoint_every=0.2))) + "\n")
        child.stdin.flush()
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def trial_of(suite: Path) -> Trial:
    return trials(load_suite(str(suite)), "quick", ["amm"], [0])[0]


def heard(child: subprocess.Popen[str], key: str) -> Any:
    """The value that a trial says next under a key."""
    assert child.stdout
    for line in child.stdout:
        if key in (said := json.loads(line)):
            return said[key]
    pytest.fail(f"nothing said of {key}")


@pytest.mark.slow
@pytest.mark.fault(11)
def test_a_trial_that_slept_while_its_lock_was_taken_over_leaves_without_writing(
    far: Callable[[str], subprocess.Popen[str]], tmp_path: Path, write_suite: Callable[..., Path]
) -> None:
    folder = tmp_path / "out" / "small" / "quick" / "amm"
    sleeper = far("one")
    heard(sleeper, "step")
    os.kill(sleeper.pid, signal.SIGSTOP)
    second = far("two")
    assert heard(second, "end") == DONE
    content = (folder / "seed00.json").read_bytes()
    os.kill(sleeper.pid, signal.SIGCONT)
    assert heard(sleeper, "end") == BUSY
    assert (folder / "seed00.json").read_bytes() == content
    assert json.loads(content)["status"] == "done"
    assert sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".log") == ["seed00.json"]


@pytest.mark.slow
@pytest.mark.fault(11)
def test_a_trial_under_way_on_another_machine_is_left_to_it(
    far: Callable[[str], subprocess.Popen[str]],
) -> None:
    first = far("one")
    heard(first, "step")
    assert heard(far("two"), "end") in (BUSY, DONE)
    assert heard(first, "end") == DONE
