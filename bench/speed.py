"""How fast the bench is: python -m bench.speed

Each row is trained by several contenders, which take turns so that all meet the same load: plain PyTorch as a careful user
would write it (`bench.plain`; for a baseline, its own file called step by step with a DataLoader), our step call by call
and as a graph, and both again with the whole machine: plain with all cores, one trial after another, ours with as many
trials at once as there are cores, on a GPU with ten. The images are noise. What is compared is the median of the ratios
within a round, and the limit is the time in which the machine's matrix product would do the step's floating-point
operations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy
import torch

from bench import overhead, provenance
from bench.cli import Parser, closed, one_line
from bench.contenders import at_work, contenders, trial_of
from bench.engine import require_device
from bench.files import ended, given_path, require_stem, writable, write_output
from bench.formats import github
from bench.machine import cores, device_slots, positive

SCHEMA = 2
WARM_UP = 2  # turns that are not counted
ROWS: tuple[str, ...] = (
    "mnist_unsup/amm_k10",
    "svhn_unsup/amm_k20@20",
    "svhn_semi/samm@10",
    "digits_unsup/amm",
    "plane_unsup/amm",
)
ROWS += ("mnist_unsup/gmvae_k30", "mnist_unsup/imsat", "mnist_unsup/lalnets", "mnist_unsup/catgan_k20")


# one row


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
    together = next((name for name in seconds if name.startswith("graph, ")), "")
    if together:
        # plain trials one after another take the number of threads that suits them
        one_by_one = min((seconds[name] for name in ("plain", "plain, all cores") if name in seconds), key=numpy.median)
        found["plain_over_ours_all_cores"] = _spread(one_by_one / seconds[together])
        if "plain, all cores" not in seconds:  # a GPU, whose product has all of it too
            found["limit_at_once"] = _spread(flops / rate / seconds[together])
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
    kinds = [rows for rows in (first, second, own) if rows]
    tables = [github(rows) for rows in kinds]
    about = f"{found['rounds']} rounds; {found['device']}, {found['cores']} cores, threads: {found['threads']} but where all "
    about += (
        f"cores are named; float32 unless a row says otherwise, torch {found['torch']}. Medians, quartiles in brackets."
    )
    return "\n\n".join(["# Speed", *tables, about, f"`{found['command']}`"]) + "\n"


def _ratios(row: dict[str, Any]) -> dict[str, str]:
    every, at_once = row.get("plain_over_ours_all_cores"), row.get("limit_at_once")
    together = next(
        (name.removeprefix("graph, ") for name in row["seconds"] if name.startswith("graph, ")), "all cores"
    )
    further = {f"the same, {together}": _text(at_once)} if at_once else {}
    return {
        "row": row["row"],
        "batch": str(row["batch"]),
        "plain / eager": _text(row["plain_over_eager"]),
        "plain / ours": _text(row["plain_over_ours"]),
        "ours": row["engine"],
        f"{together}: plain / ours": _text(every) if every else "-",
        "GFLOP a step": f"{row['flops'] / 1e9:.3g}",
        "of the matrix product's rate": _text(row["limit"]),
        **further,
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
    found = Parser(prog="python -m bench.speed", description="Time training steps against plain PyTorch.")
    found.add_argument(
        "--rows",
        action="append",
        metavar="SUITE/ROW[@BATCH][:PRECISION]",
        help=f"may be given several times (default: {', '.join(ROWS)})",
    )
    found.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds of turns (default: %(default)s)")
    found.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    found.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    found.add_argument("--out", type=given_path, metavar="STEM", help="write STEM.md, and STEM.json with all samples")
    return found


def benchmark(rows: Sequence[str], device: str, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Measures, row after row, and says with what: the answer so far after each, so that what ends one row costs no other."""
    known = {row: trial_of(row) for row in rows}
    for trial in known.values():
        require_device(trial.precision, device)
    options = {"device": device, "threads": threads, "rounds": rounds}
    name = provenance.cpu_name() if device == "cpu" else torch.cuda.get_device_name(device)
    # the harness itself runs on the CPU whatever the device: it is measured there alone
    harness = overhead.measure(rounds) if device == "cpu" else {}
    told = [] if tuple(rows) == ROWS else [f"--rows {row}" for row in rows]
    about = {
        "schema": SCHEMA,
        "command": " ".join(["python -m bench.speed", *told, *(f"--{key} {value}" for key, value in options.items())]),
        **options,
        "device": name,
        "cores": cores(),
        "torch": torch.__version__,
        "git": provenance.code(),
        "overhead": {what: _spread(numpy.array(seconds)) for what, seconds in harness.items()},
    }
    found: list[dict[str, Any]] = []
    for row, trial in known.items():
        print(row, file=sys.stderr, flush=True)
        samples = measure(row, device, threads, rounds)
        found.append({**summarise(row, trial.batch, samples), "samples": samples})
        yield {**about, "rows": found}


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 2 bad input."""
    options = parser().parse_args(argv)
    for name in ("rounds", "threads"):
        positive(f"--{name}", getattr(options, name))
    if options.out:
        require_stem(options.out)
        writable(options.out.parent)
    rows = options.rows or ROWS
    (device,) = device_slots(options.device, 1)  # refuses one that is not there
    for found in benchmark(rows, device, options.threads, options.rounds):
        if options.out:
            write_output(ended(options.out, ".md"), render(found))
            write_output(ended(options.out, ".json"), json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(render(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(closed(main))
