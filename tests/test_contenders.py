"""The contenders of a measurement of speed: what they do, what is counted of it, and how they take turns."""

from __future__ import annotations

import io
import json
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench import contenders
from models.amm import AMM, AMMConfig
from models.method import Spec
from models.noise import Noise


@pytest.fixture(scope="module")
def ours() -> AMM:
    return AMM(AMMConfig(nets="mnist"), Spec("mnist", (1, 28, 28), 10), Noise.seeded(0))


# counting


def _flops(action: Any) -> int:
    with contenders.FlopCounter() as counter:
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
    per_image = contenders.count_flops(contenders.trial_of("mnist_unsup/amm_k10@4")) / 4 / 2 / 1e6
    assert 3 * generators + 9.5 * d < per_image < 3 * generators + 11.5 * d


# contenders


@pytest.mark.parametrize(
    "row",
    [
        "plane_unsup/amm@20",
        "digits_semi/samm@20",
        "digits_semi/vat_small@20",
        "digits_unsup/catgan@20",
        "mnist_unsup/amm_k10@4",
    ],
)
def test_every_contender_takes_steps(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = contenders.trial_of(row)
    assert trial.batch == int(row.partition("@")[2])
    runs = []
    update = contenders.Run._update
    monkeypatch.setattr(contenders.Run, "_update", lambda run: (runs.append(run.engine.name), update(run)))
    for step in (
        contenders.plain_step(trial, "cpu"),
        contenders.our_step(trial, "cpu", "eager"),
        contenders.our_step(trial, "cpu", "graph"),
    ):
        step()
        step()
    assert runs[:2] == ["eager", "eager"] and runs[-1] == "graph"


def test_trials_at_once_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = contenders.trial_of("plane_unsup/amm@20:bf16")
    assert trial.precision == "bf16"
    runs: list[Any] = []
    update = contenders.Run._update
    monkeypatch.setattr(contenders.Run, "_update", lambda run: (runs.append(run), update(run)))
    step = contenders.our_step(trial, "cpu", "graph", 3)
    runs.clear()
    step()
    step()
    assert len({id(run) for run in runs}) == 3 and runs[:3] == runs[3:]
    assert all(run.engine.name == "graph" for run in runs)


def test_a_gpu_is_given_trials_at_once_and_a_cpu_processes() -> None:
    on_gpu, on_cpu = (contenders.contenders("plane_unsup/amm", device, 1) for device in ("cuda:0", "cpu"))
    assert on_gpu["graph, 10 at once"].trials == 10 and on_gpu["graph, 10 at once"].copies == 1
    assert all(contender.trials == 1 for contender in on_cpu.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_product_has_a_rate(precision: contenders.Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "SIZES", (8, 16))
    assert contenders.product("cpu", precision)() > 0


def test_a_worker_answers_every_line_and_ends_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(contenders, "plain_step", lambda trial, device: lambda: taken.append(trial.batch))
    monkeypatch.setattr(contenders, "TURN_S", 0.0)
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n3\n"))
    assert contenders.work("plain", "plane_unsup/amm@7", "cpu", torch.get_num_threads()) == 0
    ready, *turns = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"steps": 1, "flops": 0} and taken == [7] * (2 + 2 + 3)
    assert all(turn["seconds"] > 0 and turn["memory"] > 1e6 for turn in turns) and len(turns) == 2


def test_copies_work_at_once_and_share_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Child:
        ready: ClassVar[dict[str, int]] = {"steps": 4, "flops": 5}
        process = open(__file__)  # noqa: SIM115 - closed like a process

        def __init__(self, contender: contenders.Contender) -> None: ...

        def ask(self, steps: int) -> None:
            asked.append(steps)

        def hear(self) -> dict[str, float]:
            return {"seconds": 0.5, "memory": 10}

    clock = iter([10.0, 18.0])
    monkeypatch.setattr(contenders, "Child", Child)
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: next(clock))
    with contenders.at_work(contenders.Contender("graph", "plane_unsup/amm", "cpu", 1, copies=2)) as turn:
        assert turn() == {"seconds": 1.0, "memory": 20, "flops": 5}  # 8 s for 4 steps of 2 trials
    assert asked == [4, 4]
