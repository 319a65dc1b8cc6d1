"""Curves of finished trials and of those under way, for other programs.

    python -m bench.curves curves.jsonl                                # every scoring a JSON line
    python -m bench.curves --tensorboard results/tensorboard --watch 30  # event files (pip install tensorboard)

A trial under way keeps its curve in `seed00.curve.jsonl` beside the place of its record, written anew at every scoring; once
there is a record, that holds it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.files import below, given_path, write_atomic, write_output
from bench.record import FINAL, read
from bench.run import check_wait

LIVE = ".curve.jsonl"
NAMES = ("run", "suite", "budget", "row", "seed")  # of a trial: whose run it is, "yours" or "reference", then its place
Roots = Mapping[str, Path]  # of records, by whose they are
Point = dict[str, Any]  # step, losses, scores of both splits, instruments


def keep(record: Path, curve: Sequence[Point]) -> None:
    """Leaves the curve of a trial under way beside the place of its record; OSError if that cannot be written."""
    text = "".join(json.dumps(point) + "\n" for point in curve)
    write_atomic(record.with_suffix(LIVE), text.encode())


def remove(record: Path) -> None:
    """Deletes what `keep` left."""
    record.with_suffix(LIVE).unlink(missing_ok=True)


def curves(roots: Roots) -> Iterator[tuple[tuple[str, ...], list[Point]]]:
    """The names (NAMES) of each trial below `roots`, its seed as "seed00", and its curve so far, if it has a point."""
    for whose, root in roots.items():
        places = {path.with_name(path.name.removesuffix(LIVE) + ".json") for path in below(root, f"seed*{LIVE}")}
        for place in sorted(places | set(below(root, "seed*.json"))):
            try:
                name = place.relative_to(root).with_suffix("").parts
                if len(name) != 4 or not name[3].removeprefix("seed").isdecimal():
                    raise UserError(f"{place}: is not at <suite>/<budget>/<row>/seed00.json below {root}; move it away")
                points = _points(place)
            except UserError as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            if points:
                yield (whose, *name), points


def _points(place: Path) -> list[Point]:
    if place.exists() and (record := read(place))["status"] in FINAL:
        return (record["result"] or {}).get("curve", [])
    live = place.with_suffix(LIVE)
    try:
        points = [json.loads(line) for line in live.read_bytes().splitlines()]
    except FileNotFoundError:  # none yet, or its trial has just ended
        return []
    except (OSError, ValueError, RecursionError):
        points = [None]
    if not all(isinstance(point, dict) and isinstance(point.get("step"), int) for point in points):
        raise UserError(f"{live}: is not a curve; remove it")
    return points


def lines(roots: Roots) -> str:
    """A JSON line for every point: whose, suite, budget, row and seed, then the point; UserError if there are none."""
    told = [
        json.dumps(dict(zip(NAMES, name, strict=True)) | {"seed": int(name[-1].removeprefix("seed"))} | point)
        for name, points in curves(roots)
        for point in points
    ]
    if not told:
        raise UserError(_none(roots))
    return "\n".join(told) + "\n"


def _none(roots: Roots) -> str:
    return f"no curve below {' or '.join(map(str, roots.values()))}; run a suite with bench.run first"


class Events:
    """TensorBoard's event files, a run for every trial, below a folder that must be new or empty."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "event files are written by tensorboard, which is not installed: pip install tensorboard"
            ) from None
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"--tensorboard: {folder} is not an empty folder; event files are never mixed: choose another"
            )
        self.folder, self.writer, self.written = folder, SummaryWriter, dict[tuple[str, ...], int]()

    def add(self, roots: Roots) -> int:
        """Writes the points that are new since the last call; how many. UserError if the folder cannot be written."""
        added = 0
        for name, points in curves(roots):
            new = [point for point in points if point["step"] > self.written.get(name, -1)]
            if not new:
                continue
            try:
                self._write(name, new)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(
                    f"--tensorboard {self.folder}: cannot write there ({reason}); choose another folder"
                ) from None
            self.written[name] = new[-1]["step"]
            added += len(new)
        return added

    def _write(self, name: tuple[str, ...], points: Sequence[Point]) -> None:
        with self.writer(str(self.folder.joinpath(*name))) as writer:
            for point in points:
                for path, value in scalars(point):
                    writer.add_scalar(path, value, point["step"])


def scalars(point: Point, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a point by path, such as ("test/majority", 3.3); its step is none of them."""
    for name, value in point.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and (prefix or name != "step"):
            yield prefix + name, value


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 bad input, 130 stopped by a person who watched."""
    parser = Parser(prog="python -m bench.curves", description="The curves of all trials, also while they run.")
    parser.add_argument("out", type=given_path, nargs="?", help="a file of JSON lines")
    parser.add_argument(
        "--tensorboard", type=given_path, metavar="DIR", help="event files below this new folder instead"
    )
    parser.add_argument(
        "--watch", type=float, metavar="S", help="with --tensorboard: look for new points every S seconds"
    )
    parser.add_argument("--runs", type=given_path, default=Path("results/runs"), help="default: %(default)s")
    parser.add_argument("--reference", type=given_path, default=Path("results/reference"), help="default: %(default)s")
    options = parser.parse_args(argv)
    roots = {"reference": options.reference, "yours": options.runs}
    if (options.out is None) == (options.tensorboard is None):
        raise UserError("name either a file for JSON lines or --tensorboard DIR")
    if options.watch is not None:
        if options.tensorboard is None:
            raise UserError("--watch: goes with --tensorboard")
        check_wait("--watch", options.watch)
    if options.out is not None:
        write_output(options.out, lines(roots))
        return 0
    events = Events(options.tensorboard)
    if not events.add(roots) and options.watch is None:
        raise UserError(_none(roots))
    while options.watch is not None:
        time.sleep(options.watch)
        events.add(roots)
    return 0


if __name__ == "__main__":
    sys.exit(closed(main))
