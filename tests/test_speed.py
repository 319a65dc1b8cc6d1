"""The speed command: it counts what it should, and the answer is complete."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import speed
from models.amm import AMM, AMMConfig
from models.method import Spec
from models.noise import Noise

SAMPLES = {"plain": [3.0, 8.0, 6.0], "ours": [1.0, 4.0, 3.0], "product": [1e9, 2e9, 4e9]}


@pytest.fixture(scope="module")
def ours() -> AMM:
    return AMM(AMMConfig(nets="mnist"), Spec("mnist", (1, 28, 28), 10), Noise.seeded(0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda *options: SAMPLES)
    monkeypatch.setattr(speed, "count_flops", lambda batch: 2_000_000_000)


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
    """Three passes through the generators, four of D's for two tuples each or nearly so, four to six for the penalty."""
    generators, d = 6.09 + 6.08, 3.18
    per_image = speed.count_flops(4) / 4 / 2 / 1e6
    assert 3 * generators + 10 * d - 1 < per_image < 3 * generators + 14 * d


# the answer


def test_ratios_are_taken_within_a_round() -> None:
    found = speed.summarise(SAMPLES, 2_000_000_000)
    assert found["seconds"]["plain"]["median"] == 6.0 and found["seconds"]["ours"]["median"] == 3.0
    assert found["plain_over_ours"] == {"median": 2.0, "quartiles": [2.0, 2.5]}
    assert found["limit_over_ours"]["median"] == pytest.approx(0.25)  # of 2/1, 1/4, 0.5/3
    assert found["seconds"]["limit"]["median"] == pytest.approx(1.0)


@pytest.mark.usefixtures("measured")
def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--repeats", "3", "--batch", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "| | median | quartiles |",
        "|---|---|---|",
        "| plain PyTorch, s per step | 6.000 | 4.500 to 7.000 |",
        "| ours, s per step | 3.000 | 2.000 to 3.500 |",
    ]
    assert "| plain / ours | 2.000 | 2.000 to 2.500 |" in lines
    assert "(2.0 GFLOP at 2 GFLOP/s)" in lines[4]
    assert "threads: 1" in lines[-2] and torch.__version__ in lines[-2]
    assert lines[-1] == "`python -m bench.speed --repeats 3 --threads 1 --batch 8`"


@pytest.mark.usefixtures("measured")
def test_the_json_holds_the_numbers_and_their_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "speed.json"
    assert speed.main(["--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["schema"], found["batch"], found["threads"], found["repeats"]) == (1, 100, 1, 20)
    assert found["samples"] == SAMPLES and found["flops"] == 2_000_000_000
    assert {"command", "device", "torch", "git", "rate", "seconds", "plain_over_ours", "limit_over_ours"} <= set(found)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repeats", "0"], "error: --repeats: expected a number of at least 1, got 0\n"),
        (["--threads", "-1"], "error: --threads: expected a number of at least 1, got -1\n"),
        (["--batch", "1"], "error: --batch: expected a number of at least 2, got 1\n"),
        (["--json", "{folder}"], "error: cannot write {folder} "),
        (["--json", "{folder}/file/x.json"], "error: cannot write {folder}/file/x.json "),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert speed.main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    assert capsys.readouterr().err.startswith(said.format(folder=tmp_path))


def test_a_worker_answers_every_line_and_ends_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setitem(speed.TURNS, "plain", lambda batch: lambda: batch / 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("go\ngo\n"))
    assert speed.main(["--worker", "plain", "--batch", "5", "--threads", str(threads)]) == 0
    assert capsys.readouterr().out == "2.5\n2.5\n"


def test_turns_measure_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "IMAGES", 5)
    monkeypatch.setattr(speed, "SIZES", (8, 16))
    for make in speed.TURNS.values():
        turn = make(2)
        assert all(turn() > 0 for _ in range(3))  # into the second epoch


@pytest.mark.slow
def test_processes_take_turns() -> None:
    found = speed.benchmark(repeats=1, threads=1, batch=8)
    assert all(len(values) == 1 and values[0] > 0 for values in found["samples"].values())
    assert speed.render(found).startswith("| | median | quartiles |\n|---|---|---|\n| plain PyTorch, s per step | ")
