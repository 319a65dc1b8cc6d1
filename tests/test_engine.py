"""The precision of a step: what is asked of PyTorch, and what bfloat16 changes in a trial and what it must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import nn

from bench import trainer
from bench.engine import set_precision
from bench.errors import UserError
from bench.plan import method_class
from bench.suite import Precision, Trial
from bench.trainer import Run, weights_digest

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def flags() -> Iterator[Callable[[], tuple[str, str]]]:
    """What float32 products are computed in: matrix products, convolutions. Put back after the test."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "tf32"
    yield lambda: (matmul.fp32_precision, conv.fp32_precision)
    matmul.fp32_precision, conv.fp32_precision = before


def test_fp32_is_asked_for_and_changes_no_step(flags: Callable[[], tuple[str, str]]) -> None:
    context = set_precision("fp32", CPU)
    assert flags() == ("ieee", "ieee")
    with context:
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_runs_products_in_bfloat16_and_leaves_everything_else(flags: Callable[[], tuple[str, str]]) -> None:
    context, net, x = set_precision("bf16", CPU), nn.Linear(4, 3), torch.rand(2, 4)
    assert flags() == ("ieee", "ieee")  # what autocast leaves alone is not rounded either
    for _ in range(2):  # one context serves every step
        with context:
            out = net(x)
            loss = nn.functional.cross_entropy(out, torch.tensor([0, 1]))
        assert (out.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
        assert not torch.is_autocast_enabled("cpu")
    loss.backward()
    assert net.weight.dtype == torch.float32 and net.weight.grad is not None and net.weight.grad.dtype == torch.float32


def test_tf32_without_a_gpu_is_refused_in_one_line_and_nothing_is_set(flags: Callable[[], tuple[str, str]]) -> None:
    set_precision("fp32", CPU)
    with pytest.raises(UserError, match="^precision: tf32 needs a GPU, the device is cpu; use fp32 or bf16$"):
        set_precision("tf32", CPU)
    assert flags() == ("ieee", "ieee")


def test_tf32_is_for_a_gpu_and_the_next_trial_of_the_process_is_fp32_again(
    flags: Callable[[], tuple[str, str]],
) -> None:
    set_precision("fp32", CPU)
    with set_precision("tf32", torch.device("cuda")):
        assert flags() == ("tf32", "tf32")
    set_precision("fp32", CPU)
    assert flags() == ("ieee", "ieee")


def test_a_trial_in_tf32_on_a_cpu_does_not_begin(make_trial: Callable[..., Trial], toy: object) -> None:
    with pytest.raises(UserError, match="tf32 needs a GPU"):
        Run(make_trial(precision="tf32"), CPU)


# whole trials on the digits

ADVERSARIAL = {"nets": "digits", "learning_rate": 5e-4, "d_learning_rate": 1e-3, "init_std": 0.1}
DIGITS = {"data": "digits", "validation": 1000, "batch": 20, "steps": 4, "validate": 4}


def _trial(
    make_trial: Callable[..., Trial], precision: Precision, method: str = "models.amm:AMM", **config: Any
) -> Trial:
    full = asdict(method_class(method).Config(**{**ADVERSARIAL, **config}))
    task = "classification" if method.endswith("SAMM") else "clustering"
    trial: Trial = make_trial(**DIGITS, labels=60, task=task, precision=precision)
    return replace(trial, method=method, config=full)


def _finished(run: Run) -> Run:
    assert run.advance(lambda: False, lambda step, of: None, lambda run: None)
    return run


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("method", ["models.amm:AMM", "models.samm:SAMM"])
def test_bf16_changes_a_trial_and_keeps_weights_and_optimiser_in_fp32(
    make_trial: Callable[..., Trial], method: str, schedule: str
) -> None:
    fp32, bf16 = (
        _finished(Run(_trial(make_trial, precision, method, schedule=schedule), CPU)) for precision in ("fp32", "bf16")
    )
    for name, value in bf16.method.state_dict().items():
        other = fp32.method.state_dict()[name]
        assert value.dtype == other.dtype and (value.dtype == torch.float32 or not value.is_floating_point()), name
        assert bool(value.isfinite().all()), name
    for optimizer in bf16.method.optimizers().values():
        moments = list(_tensors(optimizer.state_dict()["state"]))
        assert moments and all(each.dtype == torch.float32 and bool(each.isfinite().all()) for each in moments)
    assert weights_digest(bf16.method) != weights_digest(fp32.method)
    losses = [run.curve[-1]["losses"] for run in (fp32, bf16)]
    assert losses[0] != losses[1]
    # bfloat16 keeps 8 bits, so four steps may not lead far away
    assert losses[1] == pytest.approx(losses[0], rel=0.1, abs=0.1)


def test_scores_are_computed_in_fp32(make_trial: Callable[..., Trial]) -> None:
    """Both runs are scored with the same weights, which bfloat16 products would answer otherwise."""
    fp32, bf16 = (Run(_trial(make_trial, precision), CPU) for precision in ("fp32", "bf16"))
    seen: list[tuple[torch.dtype, bool]] = []
    for run in (fp32, bf16):
        hook = run.method.get_submodule("encoder").register_forward_hook(
            lambda module, args, out: seen.append((out["yμ"].dtype, torch.is_autocast_enabled("cpu")))
        )
        run._score()
        hook.remove()
    assert seen and set(seen) == {(torch.float32, False)}
    assert fp32.curve == bf16.curve


def test_scores_of_a_tf32_trial_are_computed_in_fp32(
    make_trial: Callable[..., Trial], flags: Callable[[], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where the flags change nothing, with a trial that takes it for a GPU."""
    monkeypatch.setattr(trainer, "set_precision", lambda precision, _: set_precision(precision, torch.device("cuda")))
    run, seen = Run(_trial(make_trial, "tf32"), CPU), []
    run.method.get_submodule("encoder").register_forward_hook(
        lambda module, *_: seen.append((module.training, flags()))
    )
    _finished(run)
    assert set(seen) == {(True, ("tf32", "tf32")), (False, ("ieee", "ieee"))}


# autocast's cache of cast weights


def _within(context: Callable[[], AbstractContextManager[object]], part: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any) -> Any:
        with context():
            return part(*args)

    return inside


def _alternating(make_trial: Callable[..., Trial], precision: Precision) -> Run:
    return Run(_trial(make_trial, precision, schedule="alternating", d_steps=2), CPU)


def test_a_step_of_the_optimiser_amid_an_update_is_not_hidden_by_the_cache_of_autocast(
    make_trial: Callable[..., Trial],
) -> None:
    """The same trial with an autocast of its own, and so an empty cache, around each pass between two steps of an Adam."""
    apart = _alternating(make_trial, "fp32")
    for name in ("tuples", "logits", "penalty"):
        inside = _within(lambda: torch.autocast("cpu", torch.bfloat16), getattr(apart.method, name))
        setattr(apart.method, name, inside)
    expected = weights_digest(_finished(apart).method)
    assert weights_digest(_finished(_alternating(make_trial, "bf16")).method) == expected

    stale = _alternating(make_trial, "bf16")
    stale.precision = torch.autocast("cpu", torch.bfloat16)  # with its cache
    assert weights_digest(_finished(stale).method) != expected  # so the comparison can tell
