"""Faults of the surroundings: no network, no GPU, no terminal, no home, no signs but ASCII; and of what a table is made of."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import figures, report, reproduce, run, study, table
from bench.plan import trials
from bench.record import new_record, read, record_path, write
from bench.suite import load_suite

ROOT = Path(__file__).resolve().parent.parent.parent
Captured = pytest.CaptureFixture[str]


@pytest.mark.fault(17)
def test_without_a_network_the_command_says_in_one_line_what_to_do(
    write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """All of the code that downloads runs; only the system knows no host."""

    def nowhere(*_: object, **__: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    suite = write_suite("kmeans", data="mnist", validation="5000")
    where = ["--data-root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert run.main(["--suite", str(suite), "--budget", "quick", *where]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Name or service not known" in line and "https://" in line and str(tmp_path / "root") in line
    assert list((tmp_path / "root").rglob("*")) == [] and not list((tmp_path / "out").rglob("*.json"))


def _hostile(tmp_path: Path) -> dict[str, str]:
    """An environment without home, terminal, colours, GPU, and with ASCII alone."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF"))
    }
    env |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    return env | {"HOME": str(tmp_path / "absent"), "NO_COLOR": "1", "COLUMNS": "80", "CUDA_VISIBLE_DEVICES": ""}


def _command(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)


@pytest.mark.fault(25)
def test_a_gpu_that_is_hidden_is_named_and_the_cpu_not_taken_unasked(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    where = ("--budget", "quick", "--out", str(tmp_path / "out"), "--device", "cuda")
    done = _command(_hostile(tmp_path), "bench.run", "--suite", str(write_suite("kmeans")), *where)
    assert (done.returncode, done.stdout) == (2, b"")
    why = "finds no GPU" if torch.backends.cuda.is_built() else "was built without CUDA"
    line = f"error: --device: unknown device 'cuda': PyTorch {torch.__version__} {why}; choices: auto, cpu\n"
    assert done.stderr.decode("ascii") == line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.fault(28)
def test_without_home_terminal_and_signs_a_suite_runs_and_its_table_is_printed(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite, env = write_suite("kmeans", seeds="0-2"), _hostile(tmp_path)
    where = ("--suite", str(suite), "--budget", "quick")
    done = _command(env, "bench.run", *where, "--out", str(tmp_path / "out"), "--workers", "1")
    assert done.returncode == 0 and b"\x1b" not in done.stderr, done.stderr
    done.stderr.decode("ascii")
    shown = _command(env, "bench.table", *where, "--runs", str(tmp_path / "out"))
    assert shown.returncode == 0, shown.stderr
    assert "+/-" in shown.stdout.decode("ascii")


@pytest.fixture
def nine(write_suite: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Options of a table over nine results, of two revisions of the code, and one failure."""
    suite = write_suite("kmeans", seeds="0-9")
    for trial in trials(load_suite(suite), "quick"):
        score = {"step": 0, "test": {"majority": 3.0 + trial.seed}}
        result = {"last": score, "weights_sha256": f"{trial.seed}"} if trial.seed else None
        git = {"sha": f"{trial.seed // 5}" * 40, "sources": "ab" * 32, "dirty": False}
        status, reason = ("done", None) if trial.seed else ("failed", "no space")
        one = new_record(trial, status, reason, result, {"digest": "d"}, {"git": git})
        write(record_path(tmp_path / "out", trial), one)
    return ["--suite", str(suite), "--budget", "quick", "--runs", str(tmp_path / "out")]


@pytest.mark.fault(20)
def test_nine_of_ten_are_shown_as_nine_and_refused_if_all_are_wanted(nine: list[str], capsys: Captured) -> None:
    assert table.main(nine) == 0
    shown = capsys.readouterr().out
    assert "8.00 ± 2.74 (9 of 10), 1/10 failed" in shown and "seed 0 failed (no space)" in shown
    assert table.main([*nine, "--strict"]) == 1
    assert capsys.readouterr().err == "incomplete: kmeans: 9 of 10\n"


@pytest.mark.fault(22)
def test_results_of_two_revisions_are_never_mixed_in_silence(nine: list[str], capsys: Captured) -> None:
    for fmt in ("markdown", "latex", "csv"):
        assert table.main([*nine, "--format", fmt]) == 0
        assert "Mixes git revisions: 000000000000, 111111111111." in capsys.readouterr().out


@pytest.mark.fault(22)
@pytest.mark.parametrize("what", ["code", "code that began it", "data"])
def test_results_of_other_code_or_data_are_refused_unless_asked_for(
    nine: list[str], tmp_path: Path, capsys: Captured, what: str
) -> None:
    trial = trials(load_suite(Path(nine[1])), "quick", seeds=[3])[0]
    path = record_path(tmp_path / "out", trial)
    told = read(path)
    path.unlink()
    if what == "code":
        told["run"]["git"]["sources"] = "cd" * 32
    elif what == "code that began it":
        told["run"]["git"]["before"] = ["cd" * 32]
    else:
        told["data"]["digest"] = "e"
    write(path, told)
    assert table.main([*nine, "--out", str(tmp_path / "table.md")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    assert f"row kmeans mixes different {what.split()[0]} (" in said and "seeds 3" in said and "--allow-mixed" in said
    assert not (tmp_path / "table.md").exists()
    assert table.main([*nine, "--allow-mixed"]) == 0
    assert "Mixes git revisions" in capsys.readouterr().out


@pytest.mark.fault(22)
def test_mixed_results_are_refused_by_every_command_that_makes_tables(
    nine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A working tree that was edited between two seeds: the same commit, other sources."""
    suite = Path(nine[1])
    suite.write_text(suite.read_text().replace("  quick: {", "  paper: {steps: 30, comparable: true}\n  quick: {"))
    for trial in trials(load_suite(suite), "paper", seeds=range(3)):
        score = {"step": 0, "test": {"majority": 3.0 + trial.seed}}
        result = {"last": score, "curve": [score], "weights_sha256": f"{trial.seed}"}
        git = {"sha": "a" * 40, "sources": ("ab" if trial.seed else "cd") * 32, "dirty": True}
        one = new_record(trial, "done", None, result, {"digest": "d"}, {"git": git})
        write(record_path(tmp_path / "out", trial), one)
    monkeypatch.setitem(reproduce.TABLES, "table1", (str(suite),))
    monkeypatch.setattr("bench.run.main", lambda arguments: 3)
    out, page = str(tmp_path / "out"), tmp_path / "made"
    where = ["--suite", str(suite), "--runs", out, "--reference", str(tmp_path)]
    made: dict[Callable[[list[str]], int], list[str]] = {
        table.main: [*where, "--out", str(page / "table.md")],
        report.main: [*where, "--out", str(page / "r")],
        reproduce.main: ["table1", "--yes", "--out", out, "--results", str(page)],
        figures.main: [*where, "--out", str(page / "figures")],
        study.main: [*where, "--out", str(page / "s")],
    }
    for main, options in made.items():
        assert main(options) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert "row kmeans mixes different code (abababababab: seeds 1, 2; cdcdcdcdcdcd: seeds 0)" in said
        assert "--allow-mixed" in said and not page.exists()
    for main, options in made.items():
        assert main([*options, "--allow-mixed"]) in (0, 3)
    assert (page / "figures/small/comparison.png").is_file() and (page / "s.png").is_file()
    for name in ("table.md", "table1.md", "table1.tex", "table1.csv", "r.md", "r.html"):
        assert "aaaaaaaaaaaa with sources abababababab" in (page / name).read_text(), name


@pytest.mark.fault(20)
def test_a_whole_suite_is_enough_if_all_are_wanted(nine: list[str], capsys: Captured) -> None:
    (trial,) = trials(load_suite(Path(nine[1])), "quick", seeds=[0])
    result = {"last": {"step": 0, "test": {"majority": 3.0}}, "weights_sha256": "0"}
    write(record_path(Path(nine[-1]), trial), new_record(trial, "done", None, result, {"digest": "d"}))
    assert table.main([*nine, "--strict"]) == 0
    assert capsys.readouterr().err == ""


UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "yaml.unsafe_load", "marshal.loads"}


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    "path", [p for root in ("bench", "models", "baselines") for p in sorted((ROOT / root).rglob("*.py"))]
)
def test_no_source_could_run_what_it_reads(path: Path) -> None:
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        safe = name == "yaml.load" and "Loader" in ast.unparse(call)  # bench.yaml_strict's own, a SafeLoader
        safe |= name == "exec" and path.name == "tape.py"  # of a program that it has just recorded itself
        safe |= name == "exec" and path.name == "methods.py"  # of a method's own file, which an import would run whole
        assert name not in UNSAFE or safe, f"{path.name}:{call.lineno}"
        if name == "torch.load":
            assert "weights_only=True" in ast.unparse(call), f"{path.name}:{call.lineno}"
