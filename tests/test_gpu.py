"""A GPU computes what the CPU computes, and a captured graph what the steps compute: equal weights, draws and losses.

    python -m pytest -m gpu

`AMM_TEST_DEVICE=cpu` tries the tests themselves where there is no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import checkpoint, engine, record
from bench.data import Dataset
from bench.engine import Mode, set_precision
from bench.methods import method_class
from bench.plan import build_config, trials
from bench.pool import DONE, Going, Pool
from bench.run import main
from bench.sources import SOURCES
from bench.suite import Precision, Trial, load_suite
from bench.trainer import Run
from models.method import Batch, Data, Method, Spec
from models.noise import Noise

pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ.get("AMM_TEST_DEVICE", "cuda"))
CPU = torch.device("cpu")
ROWS = [("mnist_unsup", "amm_k10"), ("mnist_unsup", "amm_k10_fixed"), ("mnist_unsup", "amm_k10_works")]
ROWS += [("mnist_unsup", "amm_k30_draws"), ("svhn_unsup", "amm_k20"), ("svhn_semi", "samm"), ("svhn_semi", "samm_two")]
ROWS += [("svhn_semi", row) for row in ("supervised", "vat_small", "vat_large", "improvedgan", "badgan", "ali", "aae")]
ROWS += [("svhn_semi", row) for row in ("triplegan", "sgan")]
ROWS += [("digits_semi", "samm"), ("digits_unsup", "aae"), ("digits_unsup", "ali_kmeans")]
TOLERANCE: dict[Precision, float] = {"fp32": 2e-4, "tf32": 2e-2, "bf16": 5e-2}  # of a loss near 1


class Carried(Noise):
    """Draws on the CPU, so that two devices see the same numbers, and carries them to `device`."""

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__(torch.Generator("cpu").manual_seed(seed))
        self.to = device
        self.drawing = Noise(self.generator)

    @property
    def device(self) -> torch.device:
        return self.to

    def normal(self, *shape: int) -> Tensor:
        return self.drawing.normal(*shape).to(self.to)

    def uniform(self, *shape: int) -> Tensor:
        return self.drawing.uniform(*shape).to(self.to)

    def keep(self, like: Tensor, p: float) -> Tensor:
        layout = torch.empty_like(like, device="cpu")
        return self.drawing.keep(layout, p).to(self.to)

    def masks(self, shapes: Any, p: float, layout: Any = torch.channels_last) -> list[Tensor]:
        scale = 1 / (1 - p) if self.scales else 1.0
        masks = self.drawing.masks(shapes, p)  # the same elements in either layout
        return [mask.mul(scale).to(self.to).contiguous(memory_format=layout) for mask in masks]

    def categorical(self, probabilities: Tensor, n: int) -> Tensor:
        return self.drawing.categorical(probabilities.cpu(), n).to(self.to)

    def integers(self, high: int, n: int) -> Tensor:
        return self.drawing.integers(high, n).to(self.to)

    def permutation(self, n: int) -> Tensor:
        return self.drawing.permutation(n).to(self.to)


def _steps(suite: str, row: str, device: torch.device, precision: Precision, n: int = 3) -> tuple[Method, list[Any]]:
    """A method after `n` steps of 16 made-up examples, and its losses."""
    trial = trials(load_suite(suite), "paper", [row], [0])[0]
    if "xi" in trial.config:  # a millionth of a pixel, whose direction hangs on the last bits of the logits
        trial = replace(trial, config={**trial.config, "xi": 1e-2})
    source = SOURCES[trial.data]
    images = torch.randint(256, (64, *source.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    y = (torch.arange(64) % source.n_classes).to(device)
    noise, context = Carried(3, device), set_precision(precision, device)
    with context:  # as a run makes it
        method = method_class(trial.method)(build_config(trial), Spec(trial.data, source.shape, 10), noise).to(device)
    data = Data(images.to(device), 1 / 255, noise, images.to(device), y)
    method.prepare(data)
    losses = []
    for _ in range(n):
        index = noise.permutation(64)[:16]
        x = data.take(index)
        with context:
            losses.append(method.update(Batch(x, noise, x, y[index], index)))
    return method, [{name: float(value) for name, value in step.items()} for step in losses]


@cache
def _on_the_cpu(suite: str, row: str) -> list[Any]:
    """The losses that every precision of a GPU is held against."""
    return _steps(suite, row, CPU, "fp32")[1]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("suite", "row"), ROWS)
def test_a_few_steps_agree_with_the_cpu(suite: str, row: str, precision: Precision) -> None:
    if precision == "tf32" and DEVICE.type == "cpu":
        pytest.skip("a CPU has no tf32")
    if row.startswith("vat") and precision == "bf16":
        pytest.skip("the worst direction is that of a difference of logits, which eight bits outdo")
    method, losses = _steps(suite, row, DEVICE, precision)
    for step, (found, wanted) in enumerate(zip(losses, _on_the_cpu(suite, row), strict=True)):
        for name, value in wanted.items():
            # Adam's first steps are as long for a gradient that is rounding as for any other
            close = TOLERANCE[precision] * (1 + 4 * step) * max(1.0, abs(value))
            assert found[name] == pytest.approx(value, abs=close), (name, step)
    assert all(bool(p.isfinite().all()) and p.device.type == DEVICE.type for p in method.parameters())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_trial_runs_and_resumes_on_the_device(precision: Precision, tmp_path: Path) -> None:
    if precision == "tf32" and DEVICE.type == "cpu":
        pytest.skip("a CPU has no tf32")
    (trial,) = trials(load_suite("digits_semi"), "quick", ["samm"], [0])
    trial = replace(trial, steps=40, validate=20, precision=precision)
    whole, first, second = (Run(trial, DEVICE) for _ in range(3))
    assert whole.advance(lambda: False, lambda *_: None, lambda _: None)
    assert not first.advance(lambda: first.step == 15, lambda *_: None, lambda _: None)
    second.restore(first.state())
    assert second.advance(lambda: False, lambda *_: None, lambda _: None)
    result = second.result()
    assert result is not None and 0 <= result["last"]["test"]["error"] < 100
    last = whole.curve[-1]["losses"]
    assert second.curve[-1]["losses"] == pytest.approx(last, rel=0.2, abs=0.2)  # a GPU adds in any order


def test_masks_and_draws_on_the_device() -> None:
    noise = Noise.seeded(1, DEVICE)
    like = torch.zeros(64, 32, 9, 9, device=DEVICE).to(memory_format=torch.channels_last)
    mask = noise.keep(like, 0.2)
    assert mask.stride() == like.stride() and set(mask.unique().tolist()) == {0.0, 1.25}
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    again = Noise.seeded(1, DEVICE)
    assert torch.equal(again.keep(like, 0.2), mask) and torch.equal(again.normal(5), noise.normal(5))
    y = noise.categorical(torch.tensor([0.25, 0.75, 0.0], device=DEVICE), 4000)
    assert y.bincount(minlength=3)[2] == 0 and y.float().mean().item() == pytest.approx(0.75, abs=0.05)


# a captured graph


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are eager, and the third is captured."""
    monkeypatch.setattr(engine, "WARM_UP", 1)
    monkeypatch.setattr(engine, "TIMED", 1)


def _trial(suite: str, row: str, **fields: Any) -> Trial:
    """A row of a suite with little before and after its few steps, a point of the trace for each."""
    trial = trials(load_suite(suite), "paper", [row], [0])[0]
    less = {key: 1 for key in ("pretraining_epochs", "n_init") if key in trial.config}
    small = {
        "batch": 16,
        "steps": 6,
        "validate": 99,
        "labels": min(trial.labels, 40),
        "config": {**trial.config, **less},
    }
    return replace(trial, **{**small, **fields})


def _made_up(trial: Trial) -> Callable[[Noise], Dataset]:
    """64 examples in the shape of the trial's data."""
    source = SOURCES[trial.data]

    def make(noise: Noise) -> Dataset:
        x = torch.randint(256, (64, *source.shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        x, y = x.to(noise.device), (torch.arange(64) % source.n_classes).to(noise.device)
        labelled = (x[: trial.labels], y[: trial.labels]) if trial.labels else (None, None)
        spec = Spec(trial.data, source.shape, source.n_classes)
        return Dataset(spec, Data(x, 1 / 255, noise, *labelled), x[:8], y[:8], x[:16], y[:16], 1 / 255, "", "", {})

    return make


def _run(trial: Trial, mode: Mode) -> Run:
    return Run(trial, DEVICE, mode=mode, data=_made_up(trial))


def _advance(run: Run, until: int | None = None) -> Run:
    assert run.advance(lambda: run.step == until, lambda *_: None, lambda _: None) == (until is None)
    return run


def _weights(run: Run) -> Tensor:
    run.engine.wait()
    return torch.cat([value.detach().double().flatten().cpu() for value in run.method.parameters()])


def _agree(found: Run, expected: Run, tolerance: float) -> None:
    """Losses of each step and weights after the last; a GPU adds in any order, so not to the bit there."""
    exact = DEVICE.type == "cpu"
    start = _weights(_run(expected.trial, "eager"))
    moved, apart = _weights(expected) - start, _weights(found) - _weights(expected)
    assert float(moved.norm()) > 0
    # what one step more or less, or the same draws twice, would change is of the size of a step
    assert float(apart.norm()) <= (0.0 if exact else 0.1) * float(moved.norm())
    assert len(found.trace.points) == len(expected.trace.points)
    for step, (point, wanted) in enumerate(zip(found.trace.points, expected.trace.points, strict=True)):
        for name, value in wanted.items():
            close = 0.0 if exact else tolerance * (1 + 4 * step) * max(1.0, abs(value))
            assert point[name] == pytest.approx(value, abs=close, rel=0), (name, step)
    # the streams have come equally far: a replay draws what the step draws
    assert torch.equal(found.noise.generator.get_state(), expected.noise.generator.get_state())


GRAPHS = [("mnist_unsup", "amm_k10"), ("mnist_unsup", "amm_k10_fixed"), ("digits_semi", "samm"), ("plane_unsup", "amm")]
GRAPHS += [
    ("digits_unsup", row) for row in ("aae", "ali_kmeans", "gmvae", "vade", "imsat", "lalnets", "catgan", "infogan")
]
GRAPHS += [("mnist_unsup", "lalnets"), ("mnist_unsup", "aae_k30_appendix"), ("digits_semi", "samm_two")]
GRAPHS += [
    ("digits_semi", row)
    for row in ("supervised", "vat_small", "improvedgan", "badgan", "ali", "aae", "triplegan", "sgan")
]


@pytest.mark.parametrize(("suite", "row"), GRAPHS)
def test_a_graph_takes_the_steps(suite: str, row: str, soon: None) -> None:
    """Both players, the penalty and its second derivatives, optimisers, masks and draws, running statistics."""
    trial = _trial(suite, row)
    eager, graph = (_advance(_run(trial, mode)) for mode in ("eager", "graph"))
    assert (eager.engine.name, graph.engine.name, graph.engine.remark) == ("eager", "graph", "")
    _agree(graph, eager, TOLERANCE["fp32"])
    for name, value in graph.method.named_buffers():
        other = eager.method.get_buffer(name)
        assert torch.allclose(value.double(), other.double(), rtol=0.05, atol=0.05), name


def test_a_graph_takes_the_steps_of_the_largest_game(soon: None) -> None:
    trial = _trial("svhn_semi", "samm", batch=4, steps=4)
    eager, graph = (_advance(_run(trial, mode)) for mode in ("eager", "graph"))
    assert (graph.engine.name, graph.engine.remark) == ("graph", "")
    _agree(graph, eager, TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_graph_computes_in_the_precision_of_its_trial(precision: Precision, soon: None) -> None:
    if precision == "tf32" and DEVICE.type == "cpu":
        pytest.skip("a CPU has no tf32")
    trial = _trial("digits_semi", "samm", precision=precision)
    eager, graph = (_advance(_run(trial, mode)) for mode in ("eager", "graph"))
    assert (graph.engine.name, graph.engine.remark) == ("graph", "")
    _agree(graph, eager, TOLERANCE[precision])


@pytest.mark.parametrize("modes", [("graph", "graph"), ("eager", "graph"), ("graph", "eager")])
def test_a_trial_goes_on_from_a_checkpoint_whichever_way_its_steps_were_taken(
    modes: tuple[Mode, Mode], soon: None, tmp_path: Path
) -> None:
    trial = _trial("digits_semi", "samm", steps=10)
    first = _advance(_run(trial, modes[0]), 5)
    checkpoint.save(tmp_path / "saved", first.state())
    state, _ = checkpoint.load(tmp_path / "saved", trial.digest)
    second = _run(trial, modes[1])
    assert state is not None and second.fits(state)
    second.restore(state)
    groups = [group for optimizer in second.method.optimizers().values() for group in optimizer.param_groups]
    assert all(group["capturable"] == (DEVICE.type == "cuda") for group in groups)
    _advance(second)
    assert (first.engine.name, second.engine.name) == modes and second.engine.remark == ""
    _agree(second, _advance(_run(trial, "eager")), TOLERANCE["fp32"])


def test_a_checkpoint_of_the_cpu_is_for_the_cpu_alone() -> None:
    trial = _trial("plane_unsup", "amm")
    of_the_cpu = Run(trial, CPU, data=_made_up(trial))
    of_the_cpu.advance(lambda: of_the_cpu.step == 2, lambda *_: None, lambda _: None)
    assert _run(trial, "auto").fits(of_the_cpu.state()) == (DEVICE.type == "cpu")


def test_buffers_that_are_replaced_between_steps_are_captured_anew(soon: None) -> None:
    trial = _trial("digits_unsup", "aae", steps=12)
    moved, still = _run(trial, "graph"), _run(trial, "graph")
    _advance(moved, 6)
    assert moved.engine.name == "graph"
    for parameter in moved.method.parameters():
        with moved.engine.on_stream():
            parameter.data = parameter.data.clone()
    moved.engine.forget_if_moved()
    assert moved.engine.name == "eager"
    _advance(moved)
    assert (moved.engine.name, moved.engine.remark) == ("graph", "")
    _agree(moved, _advance(still), TOLERANCE["fp32"])


# several trials on one device


def _going(run: Run) -> Going:
    for _ in run.stages(lambda *_: None, lambda _: None):
        yield
    return DONE


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("suite", "row"), [("mnist_unsup", "amm_k10_fixed"), ("digits_semi", "samm"), ("plane_unsup", "aae")]
)
def test_three_trials_that_share_the_device_are_what_each_is_alone(suite: str, row: str, soon: None) -> None:
    """Each in a graph on a stream of its own, with scores amid the replays of the others."""
    seeds = [replace(_trial(suite, row, steps=8, validate=3 + seed), seed=seed) for seed in range(3)]
    alone = [_advance(_run(trial, "eager")) for trial in seeds]
    pool, shared = Pool(3, DEVICE, lambda: False), [_run(trial, "graph") for trial in seeds]
    for number, run in enumerate(shared):
        pool.add(number, lambda run=run: _going(run))  # type: ignore[misc]
    ends: dict[int, int] = {}
    while pool.busy():
        ends |= dict(pool.turn())
    assert ends == dict.fromkeys(range(3), DONE) and pool.most == 3
    for found, expected in zip(shared, alone, strict=True):
        assert (found.engine.name, found.engine.remark) == ("graph", "")
        _agree(found, expected, TOLERANCE["fp32"])
        assert [point["step"] for point in found.curve] == [point["step"] for point in expected.curve]


@pytest.mark.fault(25)
@pytest.mark.parametrize("share", ["3", None])
def test_the_whole_command_on_the_device(share: str | None, write_suite: Callable[..., Path], tmp_path: Path) -> None:
    suite = write_suite("amm", "kmeans", seeds="0-2")
    arguments = ["--suite", str(suite), "--budget", "quick", "--device", DEVICE.type, "--out", str(tmp_path / "out")]
    arguments += ["--threads", "1", "--workers", "1", *(("--share", share) if share else ())]
    assert main([*arguments, "--time-budget", "0.000001s"]) == 3
    assert main(arguments) == 0
    found = [record.read(path) for path in sorted((tmp_path / "out").rglob("amm/seed*.json"))]
    assert [each["status"] for each in found] == ["done"] * 3
    assert {each["run"]["device"] for each in found} == {DEVICE.type}
    assert {each["run"]["engine"] for each in found} <= {"eager", "graph"}
    assert not share or {each["run"]["shared_by"] for each in found} == {3}
