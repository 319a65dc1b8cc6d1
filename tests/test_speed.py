"""The speed command: it counts what it should, its contenders do their steps, and the answer is complete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch

from bench import speed
from bench.errors import UserError

SECONDS = {"plain": [3.0, 8.0, 6.0], "eager": [2.0, 4.0, 3.0], "graph": [1.0, 4.0, 2.0]}
SECONDS |= {"plain, all cores": [4.0, 4.0, 4.0], "graph, all cores": [0.5, 1.0, 2.0]}
SAMPLES: dict[str, list[dict[str, float]]] = {
    name: [{"seconds": value, "memory": 1e6 * value, "flops": 2e9} for value in values]
    for name, values in SECONDS.items()
} | {"product": [{"rate": 1e9}, {"rate": 2e9}, {"rate": 4e9}]}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda *options: SAMPLES)
    monkeypatch.setattr(speed.overhead, "measure", lambda repeats: {"list": [0.25] * repeats, "table": [1.5] * repeats})


@pytest.mark.slow
def test_processes_take_turns() -> None:
    (found,) = speed.benchmark(["plane_unsup/amm"], "cpu", 1, 1)
    (row,) = found["rows"]
    assert row["plain_over_ours"]["median"] > 0 and row["flops"] > 1e6
    assert "| plane_unsup/amm " in speed.render(found)


# the answer


def test_ratios_are_taken_within_a_round() -> None:
    found = speed.summarise("a/b", 10, SAMPLES)
    assert found["engine"] == "graph" and found["seconds"]["plain"]["median"] == 6.0
    assert found["plain_over_eager"]["median"] == 2.0
    assert found["plain_over_ours"] == {"median": 3.0, "quartiles": [2.5, 3.0]}
    assert found["limit"]["median"] == pytest.approx(0.25)  # of 2/1, 1/4, 0.5/2
    assert found["memory"]["plain"] == 8e6
    # plain takes all cores, which suits it better here: 4/0.5, 4/1, 4/2
    assert found["plain_over_ours_all_cores"]["median"] == 4.0


def test_a_gpu_has_trials_at_once_and_no_all_cores() -> None:
    samples = {name: SAMPLES[name] for name in ("plain", "eager", "graph", "product")}
    samples["graph, 10 at once"] = SAMPLES["graph, all cores"]
    found = speed.summarise("a/b", 10, samples)
    assert found["plain_over_ours_all_cores"]["median"] == 6.0  # of 3/0.5, 8/1, 6/2
    assert found["limit_at_once"]["median"] == 1.0  # 2 GFLOP take 2, 1 and 0.5 s by the product, 0.5, 1 and 2 s here
    about = {"rounds": 3, "device": "a GPU", "cores": 1, "threads": 1, "torch": "2", "command": "x", "overhead": {}}
    page = speed.render({"rows": [found], **about})
    heads = [head.strip() for head in page.splitlines()[2].split("|")]
    assert heads[6:10] == [
        "10 at once: plain / ours",
        "GFLOP a step",
        "of the matrix product's rate",
        "the same, 10 at once",
    ]
    assert "the harness itself" not in page


@pytest.mark.usefixtures("measured")
def test_the_command_prints_tables_and_writes_them_with_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = tmp_path / "new" / "speed"
    assert speed.main(["--rows", "plane_unsup/amm@50", "--rounds", "3", "--out", str(stem)]) == 0
    said = capsys.readouterr().out
    assert stem.with_suffix(".md").read_text() == said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    first = "| plane_unsup/amm@50 | 50 | 2.00 (1.75 to 2.00) | 3.00 (2.50 to 3.00) | graph | 4.00 (3.00 to 6.00) | 2 |"
    assert f"{first} 0.25 (0.25 to 1.12) |" in lines
    assert "| plane_unsup/amm@50 | graph, all cores | 1000 | 50 | 2 |" in lines
    assert torch.__version__ in said
    assert (
        said.splitlines()[-1] == "`python -m bench.speed --rows plane_unsup/amm@50 --device cpu --threads 1 --rounds 3`"
    )
    found = json.loads(stem.with_suffix(".json").read_text())
    assert found["rows"][0]["samples"] == SAMPLES and found["overhead"]["table"]["median"] == 1.5
    assert {"schema", "command", "device", "cores", "torch", "git"} <= set(found)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "error: --rounds: expected a number from 1 to 1024, got 0\n"),
        (["--threads", "0"], "error: --threads: expected a number from 1 to 1024, got 0\n"),
        (
            ["--rows", "amm"],
            "error: a row to time is SUITE/ROW, SUITE/ROW@BATCH or SUITE/ROW@BATCH:PRECISION, got 'amm'\n",
        ),
        (
            ["--rows", "plane_unsup/amm@x"],
            "error: a row to time is SUITE/ROW, SUITE/ROW@BATCH or SUITE/ROW@BATCH:PRECISION, got 'plane_unsup/amm@x'\n",
        ),
        (["--rows", "plane_unsup/amm@0"], "error: a row to time is SUITE/ROW, SUITE/ROW@BATCH"),
        (["--rows", "plane_unsup/amm", "--device", "cuda:99"], "error: --device: unknown device 'cuda:99'"),
        (["--rows", "plane_unsup/amm", "--out", "/"], "error: --out /: names a folder"),
        (["--rows", "mnist_unsup/kmeans"], "error: --rows mnist_unsup/kmeans: baselines.kmeans:KMeans takes no steps"),
        (["--rows", "plane_unsup/amm:half"], "error: --rows: unknown precision 'half'"),
        (["--rows", "plane_unsup/amm:tf32"], "error: precision: tf32 needs a GPU, the device is cpu"),
        (["--rows", "plane_unsup/am"], "error: suite plane_unsup: unknown row 'am'"),
        (
            ["--rows", "plane_unsup/amm", "--out", "{folder}/file/x"],
            "error: --out {folder}/file: cannot write there (Not a directory); choose another folder",
        ),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert speed.main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    assert said.format(folder=tmp_path) in capsys.readouterr().err


def test_the_device_auto_is_the_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def benchmark(rows: object, device: str, *_: int) -> dict[str, object]:
        asked.append(device)
        raise UserError("measured")

    monkeypatch.setattr(speed, "benchmark", benchmark)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert speed.main(["--rows", "plane_unsup/amm", "--device", "auto"]) == 2
    assert asked == ["cpu"]


def test_the_default_rows_exist() -> None:
    assert all(speed.trial_of(row).steps > 0 for row in speed.ROWS)
    assert numpy.unique(speed.ROWS).size == len(speed.ROWS)
