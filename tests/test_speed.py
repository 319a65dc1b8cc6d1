"""The speed command: it counts what it should, its contenders do their steps, and the answer is complete."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
import torch
from torch import Tensor, nn

from bench import speed
from models.amm import AMM, AMMConfig
from models.method import Spec
from models.noise import Noise

SECONDS = {"plain": [3.0, 8.0, 6.0], "eager": [2.0, 4.0, 3.0], "graph": [1.0, 4.0, 2.0]}
SECONDS |= {"plain, all cores": [4.0, 4.0, 4.0], "graph, all cores": [0.5, 1.0, 2.0]}
SAMPLES: dict[str, list[dict[str, float]]] = {
    name: [{"seconds": value, "memory": 1e6 * value, "flops": 2e9} for value in values]
    for name, values in SECONDS.items()
} | {"product": [{"rate": 1e9}, {"rate": 2e9}, {"rate": 4e9}]}


@pytest.fixture(scope="module")
def ours() -> AMM:
    return AMM(AMMConfig(nets="mnist"), Spec("mnist", (1, 28, 28), 10), Noise.seeded(0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda *options: SAMPLES)
    monkeypatch.setattr(speed.overhead, "measure", lambda repeats: {"list": [0.25] * repeats, "table": [1.5] * repeats})


# counting


def _flops(action: Any) -> int:
    with speed.FlopCounter() as counter:
        action()
    return counter.total


def test_forward_passes_count_as_by_hand(ours: AMM) -> None:
    """Multiply-adds of one image: outputs x inputs x width² at each position, written out from Tables 3, 5 and 6."""
    shapes = ((1, 32, 2, 27), (32, 32, 3, 13), (32, 64, 3, 6), (64, 64, 3, 4), (64, 128, 4, 1))
    branch = sum(a * b * width**2 * size**2 for a, b, width, size in shapes)
    back = ((128, 64, 4, 1), (64, 64, 3, 4), (64, 32, 3, 6), (32, 32, 3, 13), (32, 1, 2, 27))  # positions of the input
    forth = sum(a * b * width**2 * size**2 for a, b, width, size in back)
    x, y, z, noise = torch.rand(2, 1, 28, 28), torch.rand(2, 10), torch.rand(2, 64), Noise.seeded(0)
    encoder = 2 * branch + 128 * 2 * (10 + 64)
    decoder = 2 * forth + 128 * (10 + 64)
    discriminator = branch + 64 * (10 + 64 + 64 + 64) + 256 * (256 + 256 + 1)
    assert [round(n / 1e6, 1) for n in (encoder, decoder, discriminator)] == [6.1, 6.1, 3.2]
    assert _flops(lambda: ours.encoder(noise, x=x)) == 2 * 2 * encoder
    assert _flops(lambda: ours.decoder(noise, y=y, z=z)) == 2 * 2 * decoder
    assert _flops(lambda: ours.discriminator(noise, x=x, y=y, z=z)) == 2 * 2 * discriminator


@pytest.mark.parametrize("transposed", [False, True])
def test_second_derivatives_of_a_convolution_are_counted(transposed: bool) -> None:
    conv = nn.ConvTranspose2d(3, 5, 2, bias=False) if transposed else nn.Conv2d(3, 5, 2, bias=False)
    x, cotangent = (
        torch.rand(4, 3, 6, 6).requires_grad_(),
        torch.rand(4, 5, *2 * [7 if transposed else 5]).requires_grad_(),
    )
    once = 2 * 4 * (3 * 5 * 2**2) * (6**2 if transposed else 5**2)  # one pass

    def first() -> Tensor:
        return torch.autograd.grad(conv(x), x, cotangent, create_graph=True)[0]

    assert _flops(first) == 2 * once  # forward, and the gradient of the input
    assert _flops(lambda: first().square().sum().backward()) == 4 * once  # and of that by weight and cotangent


def test_a_step_counts_what_it_must() -> None:
    """Three passes through the generators, three of D's for two tuples each, four for the penalty, first rows less."""
    generators, d = 6.09 + 6.08, 3.18
    per_image = speed.count_flops(speed.trial_of("mnist_unsup/amm_k10@4")) / 4 / 2 / 1e6
    assert 3 * generators + 9.5 * d < per_image < 3 * generators + 11.5 * d


# contenders


@pytest.mark.parametrize(
    "row", ["plane_unsup/amm@20", "digits_semi/samm@20", "digits_unsup/catgan@20", "mnist_unsup/amm_k10@4"]
)
def test_every_contender_takes_steps(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = speed.trial_of(row)
    assert trial.batch == int(row.partition("@")[2])
    runs = []
    update = speed.Run._update
    monkeypatch.setattr(speed.Run, "_update", lambda run: (runs.append(run.engine.name), update(run)))
    for step in (
        speed.plain_step(trial, "cpu"),
        speed.our_step(trial, "cpu", "eager"),
        speed.our_step(trial, "cpu", "graph"),
    ):
        step()
        step()
    assert runs[:2] == ["eager", "eager"] and runs[-1] == "graph"


def test_the_product_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SIZES", (8, 16))
    assert speed.product("cpu")() > 0


def test_a_worker_answers_every_line_and_ends_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(speed, "plain_step", lambda trial, device: lambda: taken.append(trial.batch))
    monkeypatch.setattr(speed, "TURN_S", 0.0)
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n3\n"))
    arguments = ["--worker", "plain", "--rows", "plane_unsup/amm@7", "--threads", str(torch.get_num_threads())]
    assert speed.main(arguments) == 0
    ready, *turns = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"steps": 1, "flops": 0} and taken == [7] * (2 + 2 + 3)
    assert all(turn["seconds"] > 0 and turn["memory"] > 1e6 for turn in turns) and len(turns) == 2


def test_copies_work_at_once_and_share_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Child:
        ready: ClassVar[dict[str, int]] = {"steps": 4, "flops": 5}
        process = open(__file__)  # noqa: SIM115 - closed like a process

        def __init__(self, contender: speed.Contender) -> None: ...

        def ask(self, steps: int) -> None:
            asked.append(steps)

        def hear(self) -> dict[str, float]:
            return {"seconds": 0.5, "memory": 10}

    clock = iter([10.0, 18.0])
    monkeypatch.setattr(speed, "Child", Child)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    with speed.at_work(speed.Contender("graph", "plane_unsup/amm", "cpu", 1, copies=2)) as turn:
        assert turn() == {"seconds": 1.0, "memory": 20, "flops": 5}  # 8 s for 4 steps of 2 trials
    assert asked == [4, 4]


@pytest.mark.slow
def test_processes_take_turns() -> None:
    found = speed.benchmark(["plane_unsup/amm"], "cpu", 1, 1)
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
        (["--rounds", "0"], "error: --rounds: expected a number of at least 1, got 0\n"),
        (["--threads", "0"], "error: --threads: expected a number of at least 1, got 0\n"),
        (["--rows", "amm"], "error: a row to time is SUITE/ROW or SUITE/ROW@BATCH, got 'amm'\n"),
        (
            ["--rows", "plane_unsup/amm@x"],
            "error: a row to time is SUITE/ROW or SUITE/ROW@BATCH, got 'plane_unsup/amm@x'\n",
        ),
        (["--rows", "plane_unsup/amm@0"], "error: a row to time is SUITE/ROW or SUITE/ROW@BATCH"),
        (["--rows", "plane_unsup/amm", "--device", "cuda:99"], "error: --device: unknown device 'cuda:99'"),
        (["--rows", "plane_unsup/amm", "--out", "/"], "error: --out /: names a folder"),
        (["--rows", "mnist_unsup/kmeans"], "error: --rows mnist_unsup/kmeans: baselines.kmeans:KMeans takes no steps"),
        (["--rows", "plane_unsup/am"], "error: suite plane_unsup: unknown row 'am'"),
        (["--rows", "plane_unsup/amm", "--out", "{folder}/file/x"], "error: cannot write {folder}/file/x.md "),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert speed.main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    assert said.format(folder=tmp_path) in capsys.readouterr().err


def test_the_default_rows_exist() -> None:
    assert all(speed.trial_of(row).steps > 0 for row in speed.ROWS)
    assert numpy.unique(speed.ROWS).size == len(speed.ROWS)
