"""What each measure that makes a step fast is worth: python -m bench.gains

AMM's MNIST step is taken as it is and with one measure after another taken away, in turns in one process. Each line is the
median, with quartiles, of how many times as long the step then takes. The images are noise.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import process, provenance
from bench.cli import Parser, closed, one_line
from bench.contenders import our_step, trial_of
from bench.engine import Mode
from bench.errors import UserError
from bench.machine import positive
from models import amm, convolution, layers, noise
from models.adversarial import discriminator_loss
from models.method import Batch

Away = Callable[[], AbstractContextManager[Any]]


def _leaky_relu(x: Tensor, slope: float, mask: Tensor | None = None) -> Tensor:
    out = F.leaky_relu(x, slope)
    return out if mask is None else out * mask


def _kept(self: noise.Noise, n: int, p: float) -> Tensor:
    return torch.empty(n).bernoulli_(1 - p, generator=self.generator)


def _update(self: amm.AMM, batch: Batch) -> dict[str, Tensor]:
    """AMM's step with a backward pass of D for each player."""
    q, p = self.tuples(batch)
    logit_q, logit_p = self.logits(q, p, batch.noise)
    l_d, penalty = discriminator_loss(logit_q, logit_p), self.penalty(q, p, batch.noise)
    l_q, l_p = self.generator_losses(logit_q, logit_p)
    d_gradients = torch.autograd.grad(l_d + penalty, self.d_parameters, retain_graph=True)
    g_gradients = torch.autograd.grad(l_q + l_p, self.g_parameters)
    amm._step(self.d_adam, self.d_parameters, d_gradients)
    amm._step(self.g_adam, self.g_parameters, g_gradients)
    self._average()
    return amm._report(l_d, penalty, l_q, l_p, logit_q, logit_p)


@contextmanager
def _contiguous() -> Iterator[None]:
    """Weights, and so images, in PyTorch's default layout; the same masks."""
    masks = noise.Noise.masks

    def drawn(self: noise.Noise, shapes: Any, p: float, layout: Any) -> list[Tensor]:
        return masks(self, shapes, p)

    with (
        mock.patch.object(layers, "layout", lambda device: torch.contiguous_format),
        mock.patch.object(noise.Noise, "masks", drawn),
    ):
        yield


MEASURES: dict[str, Away] = {
    "leak and mask in one product": lambda: mock.patch.object(layers, "leaky_relu", _leaky_relu),
    "patches for layers with few inputs or outputs": lambda: mock.patch.dict(convolution.FEW_TAPS, cpu=0),
    "second derivatives of convolutions as first ones": lambda: mock.patch.object(
        convolution._Convolution, "apply", F.conv2d
    ),
    "masks from few random bits, by SFC64": lambda: mock.patch.object(noise.Noise, "_kept", _kept),
    "one backward pass of D for both players": lambda: mock.patch.object(amm.AMM, "update", _update),
    "channels-last memory": _contiguous,
}


def steps(row: str) -> dict[str, Callable[[], None]]:
    """A step of ours by what was taken away; "" with everything. Each has weights of its own.

    UserError for another row than AMM's with simultaneous updates.
    """
    trial = trial_of(row)
    if trial.method != "models.amm:AMM" or trial.config["schedule"] != "simultaneous":
        raise UserError(f"--row {row}: the measures are of AMM's step; give a row of AMM with schedule: simultaneous")

    def step(away: Away, mode: Mode) -> Callable[[], None]:
        with away():
            ours = our_step(trial, "cpu", mode)
            ours()

        def take() -> None:
            with away():
                ours()

        return take

    found = {"": step(nullcontext, "graph")} | {name: step(away, "graph") for name, away in MEASURES.items()}
    return found | {"the recorded step (bench/tape.py)": step(nullcontext, "eager")}


def measure(row: str, rounds: int) -> dict[str, list[float]]:
    """How many times as long the step takes without each measure, by rounds."""
    found = steps(row)
    taken: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        seconds = {}
        for name, step in found.items():
            started = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - started
        taken.append(seconds)
    return {name: [each[name] / each[""] for each in taken[1:]] for name in found if name}


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 2 bad input."""
    parser = Parser(prog="python -m bench.gains", description="What each measure for speed is worth.")
    parser.add_argument(
        "--row", default="mnist_unsup/amm_k10", metavar="SUITE/ROW[@BATCH]", help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="default: %(default)s")
    options = parser.parse_args(argv)
    positive("--rounds", options.rounds)
    torch.set_num_threads(1)
    found = measure(options.row, options.rounds)
    print("| without | times as long |\n|---|---|")
    for name, ratios in found.items():
        low, median, high = numpy.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"| {name} | {median:.2f} ({low:.2f} to {high:.2f}) |")
    print(
        f"\n`python -m bench.gains --row {options.row} --rounds {options.rounds}`, one thread of {provenance.cpu_name()}"
    )
    return 0


if __name__ == "__main__":
    if "MALLOC_TOP_PAD_" not in os.environ:  # as the process of a trial begins; here, for it replaces the whole process
        os.execve(sys.executable, [sys.executable, "-m", "bench.gains", *sys.argv[1:]], process.environment(1))
    sys.exit(closed(main))
