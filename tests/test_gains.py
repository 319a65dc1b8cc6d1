"""Taking a measure for speed away changes no step, so what `bench.gains` compares is the same game."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench import gains
from bench.contenders import trial_of
from bench.estimate import made_up
from bench.trainer import Run

CPU = torch.device("cpu")
OTHER_DRAWS = {"masks from few random bits, by SFC64"}


def _after_two_steps(away: gains.Away) -> Run:
    trial = trial_of("mnist_unsup/amm_k10@6")
    with away():
        run = Run(trial, CPU, mode="eager", data=partial(made_up, trial))
        for _ in range(2):
            run._update()
    return run


@pytest.mark.parametrize("name", [name for name in gains.MEASURES if name not in OTHER_DRAWS])
def test_without_a_measure_the_step_is_the_same(name: str) -> None:
    """Adam's first moments after two steps: sums of gradients, which are compared with the largest of their tensor."""
    ours, other = _after_two_steps(gains.nullcontext), _after_two_steps(gains.MEASURES[name])
    assert other.trace.totals["d"].item() == pytest.approx(ours.trace.totals["d"].item(), rel=1e-4)
    parameters = zip(ours.method.named_parameters(), other.method.parameters(), strict=True)
    for (parameter, a), b in parameters:
        adam = "d_adam" if parameter.startswith("discriminator") else "g_adam"
        m, n = (run.method.optimizers()[adam].state[p]["exp_avg"] for run, p in ((ours, a), (other, b)))
        assert (m - n).abs().max() <= 0.02 * m.abs().max() + 1e-9, parameter


def test_each_is_compared_with_the_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(gains, "steps", lambda row: {"": lambda: None, "this": lambda: None})
    monkeypatch.setattr(gains.time, "perf_counter", lambda: float(next(clock)))
    assert gains.main(["--rounds", "2"]) == 0
    assert "| this | 1.00 (1.00 to 1.00) |" in capsys.readouterr().out


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)  # main must not replace the process of its caller
    assert gains.main(["--rounds", "0"]) == 2 and gains.main(["--row", "x"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    for row in ("digits_unsup/imsat", "plane_unsup/amm"):  # of another method, and with alternating updates
        assert gains.main(["--row", row]) == 2
        assert f"--row {row}: the measures are of AMM's step" in capsys.readouterr().err
