"""How fast one AMM step is: python -m bench.speed

AMM's MNIST step as a trial runs it, the same game written plainly (`bench.plain`) and a matrix product take turns, each in
a process of its own, so that all meet the same load. The comparison is the median of the ratios of neighbours; the limit
is the time in which the machine's matrix product would do the floating-point operations of our step. Images are noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import dispatch, plain, provenance
from bench.errors import UserError
from bench.files import write_output
from bench.plan import build_config, method_class, trials
from bench.suite import load_suite
from models.method import Batch, Data, Spec
from models.noise import Noise

SCHEMA = 1
IMAGES = 10_000
WARM_UP = 3  # turns that are not counted
SIZES = (512, 1024, 2048)  # of the matrix products

Turn = Callable[[], float]  # does one thing, returns what it measured


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations of matrix products and convolutions by PyTorch's own formulas, in `total`.

    PyTorch's FlopCounterMode holds the same formulas, but the hooks by which it finds the module of an operation refuse
    `torch.autograd.grad`. The second derivative of a convolution is made of convolutions, which are counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def our_turn(batch: int) -> Turn:
    """The step of Table 1's first row with its share of the loop: batches as `bench.trainer` draws them."""
    trial, noise = trials(load_suite("mnist_unsup"), "paper", only=["amm_k10"], seeds=[0])[0], Noise.seeded(0)
    method = method_class(trial.method)(build_config(trial), Spec(trial.data, (1, 28, 28), 10), noise)
    data = Data(_images(batch), 1 / 255, noise)
    used = len(data) // batch * batch
    indices = _endless(lambda: noise.permutation(len(data))[:used].split(batch))
    return lambda: _timed(lambda: method.update(Batch(data.take(next(indices)), noise)))


def plain_turn(batch: int) -> Turn:
    """The plain step with its DataLoader."""
    torch.manual_seed(0)
    trial = trials(load_suite("mnist_unsup"), "paper", only=["amm_k10"], seeds=[0])[0]
    game, loader = plain.game(trial), plain.loader(_images(batch), batch)
    batches = _endless(lambda: loader)
    return lambda: _timed(lambda: game.step(next(batches)))


def product_turn(batch: int) -> Turn:
    """The best rate, in floating-point operations per second, of square matrix products."""
    square = {n: (torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)) for n in SIZES}

    def rate() -> float:
        seconds = {n: _timed(partial(torch.mm, a, b, out=out)) for n, (a, b, out) in square.items()}
        return max(2 * n**3 / seconds[n] for n in SIZES)

    return rate


TURNS: dict[str, Callable[[int], Turn]] = {"plain": plain_turn, "ours": our_turn, "product": product_turn}


def _images(batch: int) -> Tensor:
    return torch.randint(256, (max(IMAGES, batch), 1, 28, 28), dtype=torch.uint8)


def _endless(epoch: Callable[[], Iterable[Tensor]]) -> Iterator[Tensor]:
    while True:
        yield from epoch()


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def count_flops(batch: int) -> int:
    """Floating-point operations of one step of ours, a multiply-add counted as two."""
    turn = our_turn(batch)
    with FlopCounter() as counter:
        turn()
    return counter.total


def work(name: str, batch: int, threads: int) -> int:
    """A child's life: one turn and one line of output for each line of input, until the parent closes the pipe."""
    torch.set_num_threads(threads)
    turn = TURNS[name](batch)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)
    return 0


@contextmanager
def worker(name: str, batch: int, threads: int) -> Iterator[Turn]:
    """A child process that takes a turn whenever it is called. `plain` keeps the user's environment, others get a trial's."""
    environment = dispatch.environment(threads)
    if name == "plain":
        environment = {**os.environ, "PYTHONPATH": environment["PYTHONPATH"]}
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.speed", "--worker", name, "--batch", str(batch), "--threads", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # a terminal's Ctrl-C reaches the parent alone; the child ends with its pipe
    )
    with child:
        assert child.stdin and child.stdout
        requests, answers = child.stdin, child.stdout

        def turn() -> float:
            print("go", file=requests, flush=True)
            answer = answers.readline()
            if not answer:
                raise RuntimeError(f"the process of {name!r} ended with exit code {child.wait()}")
            return float(answer)

        yield turn


def measure(repeats: int, batch: int, threads: int) -> dict[str, list[float]]:
    """What the processes measured in `repeats` rounds of turns, by name: seconds, but the rate for `product`."""
    with ExitStack() as stack:
        turns = {name: stack.enter_context(worker(name, batch, threads)) for name in TURNS}
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(WARM_UP + repeats)]
    return {name: [measured[name] for measured in rounds[WARM_UP:]] for name in TURNS}


def summarise(samples: dict[str, list[float]], flops: int) -> dict[str, Any]:
    """Medians with quartiles; ratios are taken within each round."""
    seconds, plain_seconds, rate = (numpy.array(samples[name]) for name in ("ours", "plain", "product"))
    return {
        "flops": flops,
        "rate": _spread(rate),
        "seconds": {"plain": _spread(plain_seconds), "ours": _spread(seconds), "limit": _spread(flops / rate)},
        "plain_over_ours": _spread(plain_seconds / seconds),
        "limit_over_ours": _spread(flops / rate / seconds),
        "samples": samples,
    }


def _spread(values: Any) -> dict[str, Any]:
    low, median, high = (float(value) for value in numpy.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "quartiles": [low, high]}


def render(found: dict[str, Any]) -> str:
    """The answer as a Markdown table, and below it what one needs to repeat it."""
    limit = f"limit, s per step ({found['flops'] / 1e9:.1f} GFLOP at {found['rate']['median'] / 1e9:.0f} GFLOP/s)"
    labels = {"plain": "plain PyTorch, s per step", "ours": "ours, s per step", "limit": limit}
    rows = [(label, found["seconds"][name]) for name, label in labels.items()]
    rows += [("plain / ours", found["plain_over_ours"]), ("limit / ours", found["limit_over_ours"])]
    table = [f"| {label} | {s['median']:.3f} | {'{:.3f} to {:.3f}'.format(*s['quartiles'])} |" for label, s in rows]
    about = f"AMM on MNIST, batch {found['batch']}, {found['repeats']} rounds; {found['device']}, "
    about += f"threads: {found['threads']}, torch {found['torch']}"
    return "\n".join(["| | median | quartiles |", "|---|---|---|", *table, "", about, f"`{found['command']}`"])


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m bench.speed", description="Time one AMM step on the CPU.")
    numbers = {"repeats": (20, "rounds of turns"), "threads": (1, "CPU threads"), "batch": (100, "examples in a step")}
    for name, (default, meaning) in numbers.items():
        text = f"{meaning} (default: {default})"
        found.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    found.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, samples included, to this file")
    found.add_argument("--worker", choices=tuple(TURNS), help=argparse.SUPPRESS)
    return found


def benchmark(repeats: int, threads: int, batch: int) -> dict[str, Any]:
    """Measures and says with what."""
    options = {"repeats": repeats, "threads": threads, "batch": batch}
    return {
        "schema": SCHEMA,
        "command": " ".join(["python -m bench.speed", *(f"--{name} {value}" for name, value in options.items())]),
        **options,
        "device": provenance.cpu_name(),
        "torch": torch.__version__,
        "git": provenance.code(),
        **summarise(measure(repeats, batch, threads), count_flops(batch)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 2 bad input."""
    options = parser().parse_args(argv)
    try:
        for name, least in (("repeats", 1), ("threads", 1), ("batch", 2)):  # batch normalisation needs two examples
            if (value := getattr(options, name)) < least:
                raise UserError(f"--{name}: expected a number of at least {least}, got {value}")
        if options.worker:
            return work(options.worker, options.batch, options.threads)
        found = benchmark(options.repeats, options.threads, options.batch)
        print(render(found))
        if options.json:
            write_output(options.json, json.dumps(found, indent=1, allow_nan=False) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
