"""The command: what it prints, its exit codes, and one clear line for every mistake."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import estimate, machine, official, run
from bench.dispatch import Dispatcher
from bench.errors import UserError
from bench.machine import device_slots
from bench.plan import trials
from bench.record import new_record, record_path, write
from bench.run import execute, main, parse_duration, parser, report
from bench.suite import Trial, load_suite, names

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def suite(write_suite: Callable[..., Path]) -> Path:
    return write_suite("kmeans", "aae", seeds="0-2")


def _refused(capsys: Captured, *arguments: str | Path) -> str:
    """The one line that the command says before it leaves with 2."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert code == 2, said
    assert said.out == ""
    assert len(lines) == 1 and lines[0].startswith("error: "), said.err
    return lines[0]


# options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--suite is missing; choices: "),
        (["--suite", "mnist_unsupp"], "unknown suite 'mnist_unsupp'; did you mean 'mnist_unsup'?"),
        (["--suite", "absent.yaml"], "absent.yaml: cannot be read (No such file or directory); check the path"),
        (["status", "--suite", "plane_unsup", "--budget", "papr"], "unknown budget 'papr'; did you mean 'paper'?"),
    ],
)
def test_a_wrong_suite_is_one_line(capsys: Captured, arguments: list[str], words: str) -> None:
    assert words in _refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "kmean"], "unknown row 'kmean'; did you mean 'kmeans'?"),
        (["--only", "aae,kmean"], "unknown row 'kmean'; did you mean 'kmeans'?"),
        (["--only", "aae,"], "unknown row ''"),
        (["--budget", "quik"], "unknown budget 'quik'; did you mean 'quick'?"),
        (["--budget", ""], "unknown budget ''"),
        (["--seeds", "a-b"], "--seeds: expected seeds like 0-9"),
        (["--seeds", ""], "--seeds: expected seeds like 0-9"),
        (["--seeds", "3-1"], "--seeds: 3-1 holds 0 seeds"),
        (["--seeds", "0-9999,10000-10001"], "--seeds: 10002 seeds; expected 1 to 10000"),
        (["--seeds", "1,2,1"], "--seeds: seed 1 stands twice"),
        (["--seeds", "0-2,2"], "--seeds: seed 2 stands twice"),
        (["--device", "gpu"], "--device: unknown device 'gpu'"),
        (["--device", "cuda:99"], "--device: unknown device 'cuda:99'"),
        (["--workers", "0"], "--workers: expected a number from 1 to 1024, got 0"),
        (["--workers", "100000"], "--workers: expected a number from 1 to 1024, got 100000"),
        (["--threads", "-1"], "--threads: expected a number from 1 to 1024, got -1"),
        (["--share", "0", "--dry-run"], "--share: expected a number from 1 to 1024, got 0"),
        (["--dry-run", "--print-commands"], "--dry-run and --print-commands: choose one"),
        (["--print-commands", "--backend", "dask"], "--print-commands: its lines run where they are pasted; remove"),
        (["--watch", "5"], "--watch: run does not read it; remove it"),
        (["status", "--dry-run"], "--dry-run: status does not read it; remove it"),
        (["list"], "--suite: list does not read it; remove it"),
        (["--time-budget", "9"], "--time-budget: expected a time like 90s"),
        (["--time-budget", "ten minutes"], "--time-budget: expected a time like 90s"),
        (["--time-budget=-9m"], "--time-budget: expected a time like 90s"),
        (["--time-budget", "0s"], "--time-budget: expected a time like 90s"),
        (["--checkpoint-every", "inf"], "--checkpoint-every: expected seconds from 0 to 31622400, got inf"),
        (["--checkpoint-every", "nan"], "--checkpoint-every: expected seconds from 0 to"),
        (["--checkpoint-every=-1"], "--checkpoint-every: expected seconds from 0 to"),
        (["status", "--watch", "1e10"], "--watch: expected seconds above 0, at most 31622400, got"),
        (["status", "--watch", "nan"], "--watch: expected seconds above 0"),
        (["--print-commands", "--time-budget", "9x"], "--time-budget: expected a time like 90s"),
        (["--print-commands", "--device", "foo"], "--device: unknown device 'foo'; choices: auto, cpu, cuda, cuda:N"),
        (["--print-commands", "--threads", "0"], "--threads: expected a number from 1 to 1024, got 0"),
        (["--print-commands", "--workers", "0"], "--workers: expected a number from 1 to 1024, got 0"),
        (["--print-commands", "--checkpoint-every", "inf"], "--checkpoint-every: expected seconds"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    suite: Path, tmp_path: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    rest = [] if "--budget" in arguments else ["--budget", "quick"]
    assert words in _refused(capsys, "--suite", suite, "--out", tmp_path / "out", *rest, *arguments)
    assert not list((tmp_path / "out").rglob("*.*"))


def test_components_are_at_least_one(tmp_path: Path, capsys: Captured) -> None:
    shipped = Path(load_suite("plane_unsup").source.file).read_text(encoding="utf-8")
    path = tmp_path / "plane_unsup.yaml"
    path.write_text(shipped.replace("components: 6", "components: -6"), encoding="utf-8")
    assert "row amm: components: expected at least 1, got -6" in _refused(capsys, "--suite", path, "--dry-run")


def test_components_are_a_whole_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    """A method's file may say otherwise in its Config."""
    monkeypatch.setattr("bench.plan._resolve", lambda *_: {"components": None})
    assert "components: expected a whole number, got None" in _refused(capsys, "--suite", "plane_unsup", "--dry-run")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hidden: 16", "hidden: 16, learning_rate: -1e-3", "(ValueError: Invalid learning rate"),
        ("hidden: 16", "hidden: -3", "(RuntimeError: "),
    ],
)
def test_a_dry_run_names_the_row_that_cannot_take_a_step(
    suite: Path, capsys: Captured, old: str, new: str, words: str
) -> None:
    suite.write_text(suite.read_text().replace(old, new))
    assert main(["--suite", str(suite), "--budget", "quick", "--dry-run", "--device", "cpu"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: small/aae: cannot take a step {words}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["--sed", "3"],
        ["--workers", "two"],
        ["--out", ""],
        ["--out", "a\nb"],
        ["--seeds"],
        ["--checkpoint-every", "often"],
    ],
)
def test_what_argparse_refuses_is_exit_2_too(capsys: Captured, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(("built", "why"), [(True, "finds no GPU"), (False, "was built without CUDA")])
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_without_a_gpu_is_named(name: str, built: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: built)
    with pytest.raises(UserError) as caught:
        device_slots(name, None)
    line = f"--device: unknown device {name!r}: PyTorch {torch.__version__} {why}; choices: auto, cpu"
    assert str(caught.value) == line
    with pytest.raises(UserError, match="--device: unknown device 'cudax'; choices: auto, cpu"):
        device_slots("cudax", None)
    assert device_slots("auto", 3) == ("cpu", "cpu", "cpu")


@pytest.mark.parametrize(
    ("cores", "memory", "trials", "workers", "threads"),
    [(2, 24, 50, 2, 1), (64, 256, 50, 32, 2), (64, 512, 10, 10, 6), (8, 4, 50, 1, 8), (1, 64, 0, 1, 1)],
)
def test_cpucores_are_shared_out_among_trials_that_fit(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, trials: int, workers: int, threads: int
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "memory", lambda: memory * 2**30)
    assert device_slots("cpu", None, trials) == ("cpu",) * workers
    assert machine.threads_each(None, workers) == threads


def test_workers_go_round_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_slots("auto", None) == ("cuda:0", "cuda:1")
    assert device_slots("cuda", 3) == ("cuda:0", "cuda:1", "cuda:0")
    assert device_slots("cuda:1", None) == ("cuda:1",)
    assert set(device_slots("cpu", None)) == {"cpu"}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("9m", 540), ("2h", 7200), ("1.5h", 5400), ("0.5s", 0.5)])
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "9", "9d", "1e3s", "nans", "infs", "1.2.3s", ".s", "9 m", "1_0s", "--9s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="expected a time like"):
        parse_duration(text)


def test_a_superscript_is_no_time() -> None:
    with pytest.raises(UserError):
        parse_duration("9²s")


@pytest.mark.parametrize(
    ("outcomes", "signal", "whole", "code"),
    [
        ({"done": 2}, 0, True, 0),
        ({"done": 1, "diverged": 1, "skipped": 1}, 0, True, 0),
        ({"done": 1, "failed": 1}, 0, False, 1),
        ({"killed": 1, "pending": 1}, 0, False, 1),
        ({"interrupted": 1}, 0, False, 3),
        ({"pending": 1}, 0, False, 3),
        ({"busy": 1}, 0, False, 3),
        ({"busy": 1}, 0, True, 0),  # its other runner has ended since
        ({"interrupted": 1}, 2, False, 130),
        ({"done": 1}, 15, True, 143),
        ({}, 0, True, 0),
    ],
)
def test_exit_codes(capsys: Captured, outcomes: dict[str, int], signal: int, whole: bool, code: int) -> None:
    assert report(Counter(outcomes), 4, signal, whole) == code
    assert "4 had a result before" in capsys.readouterr().err


@pytest.mark.parametrize(("ended", "code"), [(("done", "diverged"), 0), (("done", "interrupted"), 3)])
def test_the_last_of_two_runners_says_that_all_is_done(
    ended: tuple[str, str], code: int, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first seed was the other runner's when its turn came, and had ended when the second did."""

    def together(self: Dispatcher, left: list[Trial]) -> Counter[str]:
        for trial, status in zip(left, ended, strict=True):
            write(record_path(tmp_path, trial), new_record(trial, status, None, {}))
        return Counter(["busy", "done"])

    monkeypatch.setattr(Dispatcher, "run", together)
    arguments = ["--suite", str(suite), "--budget", "quick", "--only", "kmeans", "--seeds", "0,1"]
    assert main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == code


# suite files


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch: 50", "batch: 50\nbatch: 60", "small.yaml:11: duplicate key 'batch', first on line 10"),
        ("batch: 50", "batch:\t50", "small.yaml:10: a tab is not allowed"),
        ("batch: 50", "bach: 50", "small.yaml:10: unknown key 'bach'; did you mean 'batch'?"),
        ("batch: 50", "batch: 10:30", "small.yaml:10: batch: expected a whole number"),
        ("batch: 50", "batch: 5700000", "a batch of 5700000 is more than"),
        ("hidden: 16", "hiden: 16", "unknown key 'hiden'; did you mean 'hidden'?"),
        ("hidden: 16", "hidden: 16.5", "hidden: expected a whole number, got 16.5"),
        ("baselines.aae:AAE", "baselines.aea:AAE", "unknown module 'baselines.aea'; did you mean 'baselines.aae'?"),
        ("baselines.aae:AAE", "baselines.aae:AEA", "unknown class in baselines.aae 'AEA'; did you mean 'AAE'?"),
        ("baselines.aae:AAE", "os:system", "must look like models.file:Class or baselines.file:Class"),
        ("data: plane", "data: plain", "unknown data 'plain'; did you mean 'plane'?"),
        ("validation: 300", "validation: 6000", "validation: too many"),
        ("row: aae", "row: kmeans", "row kmeans stands twice"),
        ("row: aae", "row: ../aae", "names a file"),
        ("seeds: 0-2", "seeds: 0,1,0", "seed 0 stands twice"),
        ("suite: small", "suite: other", "must be named like its file"),
        ("suite: small", "suite: [small", "small.yaml:"),
        ("suite: small", "suite: !!python/name:os.system", "is not allowed"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_with_its_place(
    suite: Path, tmp_path: Path, capsys: Captured, old: str, new: str, words: str
) -> None:
    text = suite.read_text(encoding="utf-8")
    assert old in text
    suite.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert words in _refused(capsys, "--suite", suite, "--budget", "quick", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("1", 1.0)])
def test_a_learning_rate_is_a_number_however_it_is_written(suite: Path, number: str, value: float) -> None:
    text = suite.read_text(encoding="utf-8").replace("hidden: 16", f"hidden: 16, learning_rate: {number}")
    suite.write_text(text, encoding="utf-8")
    rate = trials(load_suite(suite), "quick", ["aae"])[0].config["learning_rate"]
    assert isinstance(rate, float) and rate == value


def test_a_suite_without_validation_examples_is_refused(
    write_suite: Callable[..., Path], tmp_path: Path, capsys: Captured
) -> None:
    path = write_suite("kmeans", validation="0")
    assert main(["--suite", str(path), "--budget", "quick", "--out", str(tmp_path / "out"), "--dry-run"]) == 2


# data


@pytest.fixture
def mnist(write_suite: Callable[..., Path]) -> Path:
    return write_suite("kmeans", data="mnist", validation="5000")


def _no_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no trial may be started")

    monkeypatch.setattr("bench.dispatch.Dispatcher.run", refuse)


@pytest.mark.fault(16)
def test_a_cut_mnist_file_is_named(
    mnist: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_dispatch(monkeypatch)
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in official.MNIST_FILES:
        (raw / name).write_bytes(b"\x00\x00\x08\x03" + b"x" * 1000)
    options = ("--budget", "quick", "--data-root", tmp_path / "root", "--out", tmp_path / "out")
    said = _refused(capsys, "--suite", mnist, *options)
    assert str(raw / "train-images-idx3-ubyte") in said and "1004 bytes" in said and "expected 47040016 bytes" in said
    assert all((raw / name).stat().st_size == 1004 for name in official.MNIST_FILES)


def test_no_network_and_no_files_is_one_line(
    mnist: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_dispatch(monkeypatch)

    def offline(*_: object, **__: object) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    options = ("--budget", "quick", "--data-root", tmp_path / "root", "--out", tmp_path / "out")
    said = _refused_last(capsys, "--suite", mnist, *options)
    assert "MNIST is not in" in said and "no route to host" in said and "--data-root or AMM_DATA_ROOT" in said
    assert not (tmp_path / "root").exists()


def test_all_data_are_looked_for_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_for(trial: Trial, noise: object, root: object) -> None:
        asked.append(trial.data)
        if trial.data == "svhn":
            raise UserError("no SVHN")

    monkeypatch.setattr("bench.data.load_for", load_for)
    _no_dispatch(monkeypatch)
    found = [trials(load_suite(name), "quick", ["kmeans"], [0, 1]) for name in ("plane_unsup", "svhn_unsup")]
    options = parser().parse_args(["--out", str(tmp_path / "out"), "--device", "cpu"])
    with pytest.raises(UserError, match="no SVHN"):
        execute([*found[0], *found[1]], options)
    assert asked == [found[0][0].data, "svhn"]


def _refused_last(capsys: Captured, *arguments: str | Path) -> str:
    """Like _refused, where torchvision may tell of its tries before."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 2 and said.out == "" and "Traceback" not in said.err
    assert sum(line.startswith("error: ") for line in said.err.splitlines()) == 1
    return said.err.splitlines()[-1]


# folders


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nothing", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_one_line(
    suite: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    _no_dispatch(monkeypatch)
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    said = _refused(capsys, "--suite", suite, "--budget", "quick", "--out", tmp_path / out)
    assert "cannot write there" in said and "choose another folder" in said
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_a_read_only_folder_is_one_line(
    suite: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root a mode does not help, so the system call answers for the disk."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    _no_dispatch(monkeypatch)
    monkeypatch.setattr("bench.files.TemporaryFile", read_only)
    said = _refused(capsys, "--suite", suite, "--budget", "quick", "--out", tmp_path)
    assert "cannot write there (Read-only file system)" in said


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_folder_that_cannot_be_looked_at_is_one_line(
    suite: Path, tmp_path: Path, capsys: Captured, command: str
) -> None:
    _refused(capsys, command, "--suite", suite, "--budget", "quick", "--out", tmp_path / ("x" * 300))


# list, status, dry run


def test_list_names_every_suite_without_loading_torch() -> None:
    code = (
        "import sys, bench.run; code = bench.run.main(['list']); "
        "heavy = {'torch', 'pandas', 'matplotlib', 'sklearn', 'joblib'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    root = Path(official.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert [line.split()[0] for line in done.stdout.splitlines()] == names()


def test_status_is_watched_until_all_have_a_result(
    suite: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = trials(load_suite(suite), "quick")
    paths = [record_path(tmp_path, trial) for trial in plan]
    paths[0].parent.mkdir(parents=True)
    lock = paths[0].with_name(paths[0].stem + ".lock.1")
    lock.write_text("beat")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        lock.unlink()
        for path, trial in zip(paths, plan, strict=True):
            write(path, new_record(trial, "diverged"))

    monkeypatch.setattr(run.time, "sleep", wait)
    arguments = ["status", "--suite", str(suite), "--budget", "quick", "--out", str(tmp_path), "--watch", "0.5"]
    assert main(arguments) == 0
    assert waits == [0.5]
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    before = [["kmeans", "2 pending, 1 under way"], ["aae", "3 pending"]]
    assert lines == [*before, ["kmeans", "3 diverged"], ["aae", "3 diverged"]]
    assert main([*arguments[:-1], "0"]) == 2
    assert "--watch: expected seconds above 0" in capsys.readouterr().err


def test_status_counts_the_trials_of_each_row(suite: Path, tmp_path: Path, capsys: Captured) -> None:
    plan = {(trial.row, trial.seed): trial for trial in trials(load_suite(suite), "quick")}
    for seed, status in enumerate(("done", "killed")):
        trial = plan["aae", seed]
        write(record_path(tmp_path / "out", trial), new_record(trial, status, None, {}))
    record_path(tmp_path / "out", plan["kmeans", 0]).parent.mkdir(parents=True)
    record_path(tmp_path / "out", plan["kmeans", 0]).write_text("{", encoding="utf-8")
    assert main(["status", "--suite", str(suite), "--budget", "quick", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in said.out.splitlines()]
    assert lines == [["kmeans", "2 pending, 1 unreadable"], ["aae", "1 done, 1 killed, 1 pending"]]
    assert said.err == ""


def test_a_dry_run_prints_the_plan_and_writes_nothing(suite: Path, tmp_path: Path, capsys: Captured) -> None:
    arguments = ["--suite", str(suite), "--budget", "quick", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, "--only", "aae", "--seeds", "4,7"]) == 0
    *plan, estimate, total = capsys.readouterr().out.splitlines()
    assert plan == [
        "small/quick/aae seed 4: baselines.aae:AAE, 30 steps of 50",
        "small/quick/aae seed 7: baselines.aae:AAE, 30 steps of 50",
        "2 of 2 trials to run",
    ]
    assert re.fullmatch(r"small/aae: 0\.\d+ s a step x 30 steps = \d s a trial, 2 trials \d s", estimate)
    assert re.match(r"on \d x (cpu|cuda:0), \d+ threads each: about \d s", total)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["small.yaml"]


def test_a_dry_run_does_not_guess_the_time_of_what_learns_at_once(
    suite: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = [
        "--suite",
        str(suite),
        "--budget",
        "quick",
        "--out",
        str(tmp_path / "out"),
        "--dry-run",
        "--seeds",
        "4,7",
    ]
    assert main([*arguments, "--only", "kmeans"]) == 0
    first, *_, row, total = capsys.readouterr().out.splitlines()
    assert first == "small/quick/kmeans seed 4: baselines.kmeans:KMeans, no steps"
    assert row == "small/kmeans: learns at once, without steps: not timed, 2 trials"
    assert total.partition(": ")[2].startswith("2 trials that learn at once, not timed")
    assert main(arguments) == 0
    total = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r": about \d s, and 2 trials that learn at once, not timed", total)


def test_rows_of_one_name_in_two_suites_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed:
        def __init__(self, trial: Trial, *_: object, **__: object) -> None:
            self.steps, self.seconds = trial.steps, {"mnist": 1.0, "svhn": 100.0}[trial.data]

        def time_step(self) -> float:
            return self.seconds

    monkeypatch.setattr("bench.trainer.Run", Timed)
    told: list[str] = []
    mnist, svhn = (trials(load_suite(suite), "quick", ["amm_k30"], [0, 1]) for suite in ("mnist_unsup", "svhn_unsup"))
    seconds, untimed = estimate.total([*mnist, *svhn], "cpu", torch.get_num_threads(), told.append)
    assert seconds == 2 * mnist[0].steps + 200 * svhn[0].steps and untimed == 0
    assert [line.partition(":")[0] for line in told] == ["mnist_unsup/amm_k30", "svhn_unsup/amm_k30"]


def test_a_dry_run_leaves_out_what_has_a_result(suite: Path, tmp_path: Path, capsys: Captured) -> None:
    done = trials(load_suite(suite), "quick", ["kmeans"])[0]
    write(record_path(tmp_path / "out", done), new_record(done, "done", None, {}))
    options = ["--suite", str(suite), "--budget", "quick", "--out", str(tmp_path / "out")]
    assert main([*options, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "kmeans seed 0" not in out and "5 of 6 trials to run" in out
    assert main([*options, "--only", "kmeans, aae", "--dry-run"]) == 0
    assert "5 of 6 trials to run" in capsys.readouterr().out
    assert main([*options, "--only", "kmeans", "--seeds", "0"]) == 0
    assert "all 1 trials have a result" in capsys.readouterr().err


def test_the_same_command_gives_the_last_trial_as_many_threads_as_the_first(
    suite: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU they decide the order in which numbers are added, so the last seed must not get those of the others."""
    monkeypatch.setattr(machine, "cores", lambda: 4)
    options = ["--suite", str(suite), "--budget", "quick", "--out", str(tmp_path), "--seeds", "0,1", "--only", "kmeans"]
    assert main([*options, "--device", "cpu", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("on 2 x cpu, 2 threads each: ")
    done = trials(load_suite(suite), "quick", ["kmeans"])[0]
    write(record_path(tmp_path, done), new_record(done, "done", None, {}))
    assert main([*options, "--device", "cpu", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("on 1 x cpu, 2 threads each: ")


def test_methods_and_data_are_looked_for_before_any_trial_is_started(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr("bench.run.require", lambda *_: order.append("require") or set())

    def run(dispatcher: Dispatcher, left: list[Trial]) -> Counter[str]:
        order.append("run")
        for trial in left:
            write(record_path(tmp_path, trial), new_record(trial, "done", None, {}))
        return Counter({"done": 6})

    monkeypatch.setattr(Dispatcher, "run", run)
    assert main(["--suite", str(suite), "--budget", "quick", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert order == ["require", "run"]
