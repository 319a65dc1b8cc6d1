"""How fast the bench is: python -m bench.speed

Each row is trained by several contenders, which take turns so that all meet the same load: plain PyTorch as a careful user
would write it (`bench.plain`; for a baseline, its own file called step by step with a DataLoader), our step call by call
and as a graph, and both again with the whole machine: plain with all cores, one trial after another, ours with as many
trials at once as there are cores. The images are noise. What is compared is the median of the ratios within a round, and the
limit is the time in which the machine's matrix product would do the step's floating-point operations.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import torch
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import overhead, plain, process, provenance
from bench.engine import Mode
from bench.errors import UserError
from bench.estimate import made_up
from bench.files import given_path, require_stem, write_output
from bench.plan import method_class, trials
from bench.run import cores, device_slots
from bench.suite import Trial, load_suite
from bench.trainer import Run
from models.method import Batch
from models.noise import Noise

SCHEMA = 2
SIZES = (512, 1024, 2048)  # of the matrix products; on a GPU 8192
TURN_S = 0.25  # a turn is as many steps as take about this long
WARM_UP = 2  # turns that are not counted
ROWS: tuple[str, ...] = (
    "mnist_unsup/amm_k10",
    "svhn_unsup/amm_k20@20",
    "svhn_semi/samm@10",
    "digits_unsup/amm",
    "plane_unsup/amm",
)
ROWS += ("mnist_unsup/gmvae_k30", "mnist_unsup/imsat", "mnist_unsup/lalnets", "mnist_unsup/catgan_k20")


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


def our_step(trial: Trial, device: str, mode: Mode) -> Callable[[], object]:
    """A step of a trial with its share of the loop, as `bench.trainer` takes it, past warming up and recording."""
    run = Run(trial, torch.device(device), mode=mode, data=partial(made_up, trial))
    run.method.prepare(run.dataset.train)
    if mode != "eager":
        while not run.engine.settled:
            run._update()
        if run.engine.name != mode:
            raise RuntimeError(f"{trial.suite}/{trial.row} stays eager: {run.engine.remark}")
    return run._update


def plain_step(trial: Trial, device: str) -> Callable[[], object]:
    """The plain game with its DataLoaders; for a baseline its own update, called with what a DataLoader brings."""
    torch.manual_seed(0)
    if plain.knows(trial):
        data = made_up(trial, Noise.seeded(0)).train
        game = plain.game(trial, data.y_labelled).to(device)
        batches = plain.batches(data.x, trial.batch, data.scale, data.x_labelled, data.y_labelled)
        return lambda: game.step(*(part.to(device) for part in next(batches)))
    run = Run(trial, torch.device(device), mode="eager", data=partial(made_up, trial))
    run.method.prepare(run.dataset.train)
    index = torch.arange(trial.batch, device=device)
    unlabelled = plain.batches(run.dataset.train.x.cpu(), trial.batch, run.dataset.scale)
    return lambda: run.method.update(Batch(next(unlabelled)[0].to(device), run.noise, index=index))


def product(device: str) -> Callable[[], float]:
    """The best rate, in floating-point operations per second, of square matrix products."""
    sizes = SIZES if device == "cpu" else (8192,)
    square = {n: torch.rand(3, n, n, device=device).unbind() for n in sizes}

    def rate() -> float:
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
    """

    name: str
    row: str
    device: str
    threads: int
    copies: int = 1


def trial_of(row: str) -> Trial:
    """The trial of "suite/row" or "suite/row@batch"; UserError for one that does not exist or takes no steps."""
    path, _, batch = row.partition("@")
    suite, slash, name = path.partition("/")
    if not slash or (batch and not (batch.isdecimal() and int(batch))):
        raise UserError(f"a row to time is SUITE/ROW or SUITE/ROW@BATCH, got {row!r}")
    trial = trials(load_suite(suite), "paper", [name], [0])[0]
    if not method_class(trial.method).iterative:
        raise UserError(f"--rows {row}: {trial.method} takes no steps that could be timed; choose another row")
    return replace(trial, batch=int(batch)) if batch else trial


def work(name: str, row: str, device: str, threads: int) -> int:
    """A child's life: says what it is ready for, then for each line of input takes so many steps and says the seconds."""
    if threads:
        torch.set_num_threads(threads)
    trial = trial_of(row)
    if name == "product":
        rate = product(device)
        return _serve(lambda steps: {"rate": rate()}, 1, 0)
    step = (
        plain_step(trial, device)
        if name == "plain"
        else our_step(trial, device, "eager" if name == "eager" else "graph")
    )
    step()
    steps = max(1, round(TURN_S / _timed(step, device)))
    flops = count_flops(trial, device) if name == "eager" else 0

    def turn(steps: int) -> dict[str, float]:
        seconds = _timed(lambda: [step() for _ in range(steps)], device)
        return {"seconds": seconds / steps, "memory": _memory(device)}

    return _serve(turn, steps, flops)


def _serve(turn: Callable[[int], dict[str, float]], steps: int, flops: int) -> int:
    print(json.dumps({"steps": steps, "flops": flops}), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)
    return 0


def _memory(device: str) -> int:
    """Most bytes that this process has held: of the GPU if it computes there."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated(device))
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
        arguments = ["--worker", c.name, "--rows", c.row, "--device", c.device, "--threads", str(c.threads)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.speed", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches the parent alone; the child ends with its pipe
        )
        self.ready = self.hear()

    def ask(self, steps: int) -> None:
        assert self.process.stdin
        print(steps, file=self.process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process of bench.speed ended with exit code {self.process.wait()}")
        heard: dict[str, Any] = json.loads(answer)
        return heard


@contextmanager
def at_work(contender: Contender) -> Iterator[Callable[[], dict[str, float]]]:
    """A function that lets all copies take a turn at once, and returns seconds a step and trial, memory and flops in all."""
    with ExitStack() as stack:
        children = []
        for _ in range(contender.copies):
            child = Child(contender)
            stack.enter_context(child.process)
            children.append(child)
        steps = children[0].ready["steps"]

        def turn() -> dict[str, float]:
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


# one row


def contenders(row: str, device: str, threads: int) -> dict[str, Contender]:
    """Who trains a row, by what they are called in the table."""
    found = {name: Contender(name, row, device, threads) for name in ("product", "plain", "eager", "graph")}
    if device == "cpu" and cores() > 1:
        found["plain, all cores"] = Contender("plain", row, device, 0)
        found["graph, all cores"] = Contender("graph", row, device, 1, cores())
    return found


def measure(row: str, device: str, threads: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each contender measured in so many rounds of turns."""
    with ExitStack() as stack:
        turns = {name: stack.enter_context(at_work(c)) for name, c in contenders(row, device, threads).items()}
        taken = [{name: turn() for name, turn in turns.items()} for _ in range(WARM_UP + rounds)]
    return {name: [each[name] for each in taken[WARM_UP:]] for name in turns}


def summarise(row: str, batch: int, samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians with quartiles; ratios are taken within each round. `limit` is the share of the matrix product's rate."""
    seconds = {name: _column(turns, "seconds") for name, turns in samples.items() if name != "product"}
    rate, flops = _column(samples["product"], "rate"), samples["eager"][0]["flops"]
    best = min(("eager", "graph"), key=lambda name: float(numpy.median(seconds[name])))
    found = {
        "row": row,
        "batch": batch,
        "flops": flops,
        "rate": _spread(rate),
        "engine": best,
        "seconds": {name: _spread(values) for name, values in seconds.items()},
        "memory": {name: int(_column(turns, "memory").max()) for name, turns in samples.items() if name != "product"},
        "plain_over_eager": _spread(seconds["plain"] / seconds["eager"]),
        "plain_over_ours": _spread(seconds["plain"] / seconds[best]),
        "limit": _spread(flops / rate / seconds[best]),
    }
    if "graph, all cores" in seconds:
        # plain trials one after another take the number of threads that suits them
        one_by_one = min((seconds["plain"], seconds["plain, all cores"]), key=numpy.median)
        found["plain_over_ours_all_cores"] = _spread(one_by_one / seconds["graph, all cores"])
    return found


def _column(turns: Sequence[dict[str, float]], key: str) -> Any:
    return numpy.array([turn[key] for turn in turns], dtype=float)


def _spread(values: Any) -> dict[str, Any]:
    low, median, high = (float(value) for value in numpy.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "quartiles": [low, high]}


# the answer


def render(found: dict[str, Any]) -> str:
    """The answer as Markdown tables, and below them what one needs to repeat it."""
    first = [_ratios(row) for row in found["rows"]]
    second = [line for row in found["rows"] for line in _rates(row)]
    own = [{"the harness itself": name, "seconds": _text(spread, 4)} for name, spread in found["overhead"].items()]
    tables = [tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) for rows in (first, second, own)]
    about = f"{found['rounds']} rounds; {found['device']}, {found['cores']} cores, threads: {found['threads']} but where all "
    about += f"cores are named; float32, torch {found['torch']}. Medians, quartiles in brackets."
    return "\n\n".join(["# Speed", *tables, about, f"`{found['command']}`"]) + "\n"


def _ratios(row: dict[str, Any]) -> dict[str, str]:
    every = row.get("plain_over_ours_all_cores")
    return {
        "row": row["row"],
        "batch": str(row["batch"]),
        "plain / eager": _text(row["plain_over_eager"]),
        "plain / ours": _text(row["plain_over_ours"]),
        "ours": row["engine"],
        "all cores: plain / ours": _text(every) if every else "-",
        "GFLOP a step": f"{row['flops'] / 1e9:.3g}",
        "of the matrix product's rate": _text(row["limit"]),
    }


def _rates(row: dict[str, Any]) -> Iterator[dict[str, str]]:
    for name, spread in row["seconds"].items():
        yield {
            "row": row["row"],
            "contender": name,
            "ms a step": f"{1000 * spread['median']:.4g}",
            "images a second": f"{row['batch'] / spread['median']:,.0f}",
            "peak memory, MB": f"{row['memory'][name] / 1e6:,.0f}",
        }


def _text(spread: dict[str, Any], digits: int = 2) -> str:
    low, high = spread["quartiles"]
    return f"{spread['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m bench.speed", description="Time training steps against plain PyTorch."
    )
    found.add_argument("--rows", action="append", metavar="SUITE/ROW[@BATCH]", help=f"(default: {' '.join(ROWS)})")
    found.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds of turns (default: %(default)s)")
    found.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    found.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    found.add_argument("--out", type=given_path, metavar="STEM", help="write STEM.md, and STEM.json with all samples")
    found.add_argument("--worker", choices=("plain", "eager", "graph", "product"), help=argparse.SUPPRESS)
    return found


def benchmark(rows: Sequence[str], device: str, threads: int, rounds: int) -> dict[str, Any]:
    """Measures, row after row, and says with what."""
    known = {row: trial_of(row) for row in rows}
    found = []
    for row, trial in known.items():
        print(row, file=sys.stderr, flush=True)
        samples = measure(row, device, threads, rounds)
        found.append({**summarise(row, trial.batch, samples), "samples": samples})
    options = {"device": device, "threads": threads, "rounds": rounds}
    name = provenance.cpu_name() if device == "cpu" else torch.cuda.get_device_name(device)
    own = {what: _spread(numpy.array(seconds)) for what, seconds in overhead.measure(rounds).items()}
    told = [] if tuple(rows) == ROWS else [f"--rows {row}" for row in rows]
    return {
        "schema": SCHEMA,
        "command": " ".join(["python -m bench.speed", *told, *(f"--{key} {value}" for key, value in options.items())]),
        **options,
        "device": name,
        "cores": cores(),
        "torch": torch.__version__,
        "git": provenance.code(),
        "overhead": own,
        "rows": found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 2 bad input."""
    options = parser().parse_args(argv)
    try:
        for name, least in (("rounds", 1), ("threads", 0 if options.worker else 1)):
            if (value := getattr(options, name)) < least:
                raise UserError(f"--{name}: expected a number of at least {least}, got {value}")
        if options.out:
            require_stem(options.out)
        rows = options.rows or ROWS
        if options.worker:
            return work(options.worker, rows[0], options.device, options.threads)
        device_slots(options.device, 1)  # refuses a device that is not there
        found = benchmark(rows, options.device, options.threads, options.rounds)
        print(render(found), end="")
        if options.out:
            write_output(options.out.with_suffix(".md"), render(found))
            write_output(options.out.with_suffix(".json"), json.dumps(found, indent=1, allow_nan=False) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
