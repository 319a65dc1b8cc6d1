"""Results and models for other programs.

    python -m bench.export records results/records.csv      # every record below results/reference and results/runs, a line each
    python -m bench.export model results/runs/.../seed00.json encoder.safetensors

Weights are written by the safetensors library (pip install safetensors); the file's metadata hold the trial.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cli import Parser, closed, one_line
from bench.errors import UserError
from bench.files import below, given_folder, given_path, write_output
from bench.record import place, read

DROPPED = (
    "result.curve",
    "result.trace",
    "result.confusion",
    "departures",
    "run.remarks",
)  # lists; the records keep them


def records(roots: Sequence[Path]) -> str:
    """CSV of all records below `roots`, one line each, nested keys joined by dots; UserError if there are none."""
    import pandas

    rows: list[dict[str, Any]] = []
    files = {
        path.resolve(): path for root in reversed(roots) for path in below(root, "seed*.json")
    }  # one may hold another
    for path in sorted(files.values()):
        try:
            found = read(path)
            if path.parts[-4:] != place(found).parts:
                raise UserError(f"{path}: holds the trial of {place(found)}; left out")
            rows.append({"path": path.as_posix(), **found})
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
    if not rows:
        raise UserError(f"no record below {' or '.join(map(str, roots))}; run a suite with bench.run first")
    frame = pandas.json_normalize(rows)
    gone = [name for name in frame.columns if name.startswith(DROPPED)]
    return str(frame.drop(columns=gone).to_csv(index=False, lineterminator="\n"))


def model(path: Path) -> bytes:
    """The trained weights of a record in the safetensors format. UserError: no weights, or no library."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("weights are written by safetensors, which is not installed: pip install safetensors") from None
    from bench.trained import load  # here, because it imports torch

    trained = load(path)
    tensors = {name: value.contiguous() for name, value in trained.method.state_dict().items()}
    return save(
        tensors, {"format": "pt", "trial": json.dumps(trained.trial.to_json()), "digest": trained.record["digest"]}
    )


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 bad input."""
    parser = Parser(prog="python -m bench.export", description="Results and models for other programs.")
    what = parser.add_subparsers(dest="what", required=True)
    table = what.add_parser("records", help="all records as one CSV")
    table.add_argument("out", type=given_path)
    table.add_argument("--runs", type=given_folder, default=Path("results/runs"), help="default: %(default)s")
    table.add_argument("--reference", type=given_folder, default=Path("results/reference"), help="default: %(default)s")
    weights = what.add_parser("model", help="the weights of a trial that ran with --keep-weights, as safetensors")
    weights.add_argument("record", type=given_path)
    weights.add_argument("out", type=given_path)
    options = parser.parse_args(argv)
    records_of = options.what == "records"
    write_output(options.out, records((options.reference, options.runs)) if records_of else model(options.record))
    return 0


if __name__ == "__main__":
    sys.exit(closed(main))
