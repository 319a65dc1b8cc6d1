"""Who takes turns in a measurement of speed: what each contender does, and the processes of their own in which they do it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import plain, process
from bench.cli import closed
from bench.engine import Mode, set_precision
from bench.errors import UserError
from bench.estimate import made_up
from bench.machine import cores
from bench.methods import declared
from bench.plan import trials
from bench.suite import Precision, Trial, load_suite
from bench.trainer import Run
from bench.yaml_strict import unknown
from models.method import Batch
from models.noise import Noise

SIZES = (512, 1024, 2048)  # of the matrix products; on a GPU 8192
TURN_S = 0.25  # a turn is as many steps as take about this long
AT_ONCE = 10  # trials that share a GPU: a suite's seeds


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


# what a contender does


def our_step(trial: Trial, device: str, mode: Mode, trials: int = 1) -> Callable[[], object]:
    """A step of so many trials with its share of the loop, as `bench.trainer` takes it, past warming up and recording.

    Each trial computes on a stream of its own, as those that share a GPU do (`bench.pool`).
    """
    runs = [Run(trial, torch.device(device), mode=mode, data=partial(made_up, trial)) for _ in range(trials)]
    for run in runs:
        with run.engine.on_stream():
            run.method.prepare(run.dataset.train)
            while mode != "eager" and not run.engine.settled:
                run._update()
        if mode != "eager" and run.engine.name != mode:
            raise RuntimeError(f"{trial.suite}/{trial.row} stays eager: {run.engine.remark}")

    def step() -> None:
        for run in runs:
            with run.engine.on_stream():
                run._update()

    return step


def plain_step(trial: Trial, device: str) -> Callable[[], object]:
    """The plain game with its DataLoaders, in PyTorch's own precision whatever the trial's; for a baseline its own update."""
    torch.manual_seed(0)
    trial = replace(trial, precision="fp32")
    data = made_up(trial, Noise.seeded(0)).train
    batches = plain.batches(data.x, trial.batch, data.scale, data.x_labelled, data.y_labelled)
    if plain.knows(trial):
        game = plain.game(trial, data.y_labelled).to(device)
        return lambda: game.step(*(part.to(device) for part in next(batches)))
    run = Run(trial, torch.device(device), mode="eager", data=partial(made_up, trial))
    run.method.prepare(run.dataset.train)
    index = torch.arange(trial.batch, device=device)

    def step() -> object:
        x, *labelled = (part.to(device) for part in next(batches))
        x_labelled, y_labelled = labelled or (None, None)
        return run.method.update(Batch(x, run.noise, x_labelled, y_labelled, index))

    return step


def product(device: str, precision: Precision = "fp32") -> Callable[[], float]:
    """The best rate, in floating-point operations per second, of square matrix products."""
    sizes = SIZES if device == "cpu" else (8192,)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    square = {n: torch.rand(3, n, n, device=device).to(dtype).unbind() for n in sizes}
    context = set_precision(precision, torch.device(device))

    def rate() -> float:
        with context:
            seconds = {n: _timed(partial(torch.mm, a, b, out=out), device) for n, (a, b, out) in square.items()}
        return max(2 * n**3 / seconds[n] for n in sizes)

    return rate


def _timed(action: Callable[[], object], device: str) -> float:
    wait = partial(torch.cuda.synchronize, device) if device != "cpu" else lambda: None
    wait()
    started = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - started


def count_flops(trial: Trial, device: str = "cpu") -> int:
    """Floating-point operations of one step of ours, a multiply-add counted as two."""
    step = our_step(trial, device, "eager")
    with FlopCounter() as counter:
        step()
    return counter.total


# contenders in processes of their own


@dataclass(frozen=True)
class Contender:
    """A process that takes turns.

    Attributes:
        name: plain, eager, graph or product.
        row: suite/row, with @batch where it is not the suite's.
        threads: of its CPU, 0 for as many as PyTorch takes by itself.
        copies: how many such processes work at once.
        trials: how many trials each of them trains, in turns.
    """

    name: str
    row: str
    device: str
    threads: int
    copies: int = 1
    trials: int = 1


def trial_of(row: str) -> Trial:
    """The trial of "suite/row", with another "@batch" or ":precision"; UserError for one that is not there or takes no steps."""
    rest, _, precision = row.partition(":")
    path, _, batch = rest.partition("@")
    suite, slash, name = path.partition("/")
    if not slash or (batch and not (batch.isdecimal() and int(batch))):
        raise UserError(f"a row to time is SUITE/ROW, SUITE/ROW@BATCH or SUITE/ROW@BATCH:PRECISION, got {row!r}")
    if precision and precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision), "--rows")
    trial = trials(load_suite(suite), "paper", [name], [0])[0]
    if not declared(trial.method).iterative:
        raise UserError(f"--rows {row}: {trial.method} takes no steps that could be timed; choose another row")
    trial = replace(trial, batch=int(batch)) if batch else trial
    return replace(trial, precision=cast(Precision, precision)) if precision else trial


def work(name: str, row: str, device: str, threads: int, trials: int = 1) -> int:
    """A child's life: says what it is ready for, then for each line of input takes so many steps and says the seconds."""
    if threads:
        torch.set_num_threads(threads)
    trial = trial_of(row)
    if name == "product":
        rate = product(device, trial.precision)
        return _serve(lambda steps: {"rate": rate()}, 1, 0)
    mode: Mode = "eager" if name == "eager" else "graph"
    step = plain_step(trial, device) if name == "plain" else our_step(trial, device, mode, trials)
    step()
    steps = max(1, round(TURN_S / _timed(step, device)))
    flops = count_flops(trial, device) if name == "eager" else 0

    def turn(steps: int) -> dict[str, float]:
        seconds = _timed(lambda: [step() for _ in range(steps)], device)
        return {"seconds": seconds / steps / trials, "memory": _memory(device)}

    return _serve(turn, steps, flops)


def _serve(turn: Callable[[int], dict[str, float]], steps: int, flops: int) -> int:
    print(json.dumps({"steps": steps, "flops": flops}), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)
    return 0


def _memory(device: str) -> int:
    """Most bytes that this process has held: of the GPU if it computes there, with what its graphs keep for their replays."""
    if device != "cpu":
        return int(torch.cuda.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Child:
    """One process of a contender."""

    def __init__(self, contender: Contender) -> None:
        c = contender
        environment = process.environment(c.threads)
        if c.name == "plain":  # a user's own environment
            environment = {**os.environ, "PYTHONPATH": environment["PYTHONPATH"]}
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.contenders", c.name, c.row, c.device, str(c.threads), str(c.trials)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches the parent alone; the child ends with its pipe
        )

    @cached_property
    def ready(self) -> dict[str, Any]:
        """What it says first."""
        return self.hear()

    def ask(self, steps: int) -> None:
        assert self.process.stdin
        print(steps, file=self.process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            raise UserError(f"a process of bench.contenders ended with exit code {code}; what it said stands above")
        heard: dict[str, Any] = json.loads(answer)
        return heard


def _ready(children: Sequence[Child]) -> int:
    """Waits until all are ready; the steps of a turn."""
    return int(min(child.ready["steps"] for child in children))


@contextmanager
def at_work(contender: Contender) -> Iterator[Callable[[], dict[str, float]]]:
    """A function that lets all copies take a turn at once, and returns seconds a step and trial, memory and flops in all."""
    with ExitStack() as stack:
        children = []
        for _ in range(contender.copies):
            child = Child(contender)
            stack.enter_context(child.process)
            children.append(child)
        if contender.device == "cpu":  # which the contenders would fight for; on a GPU they get ready at once
            _ready(children)

        def turn() -> dict[str, float]:
            steps = _ready(children)
            started = time.perf_counter()
            for child in children:
                child.ask(steps)
            heard = [child.hear() for child in children]
            if "rate" in heard[0]:
                return heard[0]
            each = (time.perf_counter() - started) / steps / len(children) if len(children) > 1 else heard[0]["seconds"]
            return {
                "seconds": each,
                "memory": sum(one["memory"] for one in heard),
                "flops": children[0].ready["flops"],
            }

        yield turn


def contenders(row: str, device: str, threads: int) -> dict[str, Contender]:
    """Who trains a row, by what they are called in the table."""
    found = {name: Contender(name, row, device, threads) for name in ("product", "plain", "eager", "graph")}
    if device == "cpu" and cores() > 1:
        found["plain, all cores"] = Contender("plain", row, device, 0)
        found["graph, all cores"] = Contender("graph", row, device, 1, cores())
    if device != "cpu":
        found[f"graph, {AT_ONCE} at once"] = Contender("graph", row, device, threads, trials=AT_ONCE)
    return found


if __name__ == "__main__":  # a child's process
    _name, _row, _device, _threads, _trials = sys.argv[1:]
    sys.exit(closed(lambda: work(_name, _row, _device, int(_threads), int(_trials))))
