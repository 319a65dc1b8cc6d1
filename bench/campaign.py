"""Fill the paper's tables in the time that there is: the next trials by value, packed to be carried away, merged at home.

    python -m bench.campaign --plan                                  # what would run, in which order, and what is there already
    python -m bench.campaign --time-budget 9m --out DIR              # runs or resumes below DIR, then packs DIR into a few files
    python -m bench.campaign --merge DIR                             # brings records and checkpoints home to results/runs

First come the paper's own cells, then the rivals, those with the least arithmetic first; three seeds of every row, which allow a
verdict, before the seven others. Trials with a result below --out, --home or results/reference are not run again. Options that
it does not know are those of `bench.run`.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import run
from bench.errors import UserError
from bench.files import given_path, write_output
from bench.lines import results
from bench.plan import method_class, trials
from bench.progress import duration
from bench.record import FINAL, is_of, parse, read, record_path
from bench.seeds import spans
from bench.sources import SOURCES
from bench.statistics import ENOUGH, Record
from bench.suite import Trial, load_suite

HEADLINE = (  # the paper's own numbers: Table 1's MNIST, Table 2, Table 1's SVHN; before each row as printed the one that works
    ("mnist_unsup", "amm_k10_works"),
    ("mnist_unsup", "amm_k10"),
    ("mnist_unsup", "amm_k20_works"),
    ("mnist_unsup", "amm_k20"),
    ("mnist_unsup", "amm_k30_works"),
    ("mnist_unsup", "amm_k30"),
    ("svhn_semi", "samm_noise"),
    ("svhn_semi", "samm"),
    ("svhn_unsup", "amm_k30"),
    ("svhn_unsup", "amm_k20"),
)
SUITES = ("mnist_unsup", "svhn_semi", "svhn_unsup")
PART = 15 * 2**20  # bytes of a packed file
CARRIED = (".json", ".checkpoint", ".weights")  # not the checkpoint before, locks and logs
Cell = tuple[str, str]


def ordered(only: Sequence[str] | None = None) -> list[Trial]:
    """All trials of the paper's tables, the most valuable first; `only` keeps the suites of these names."""
    found = [trial for name in SUITES if not only or name in only for trial in trials(load_suite(name), "paper")]
    return sorted(found, key=_value)


def _value(trial: Trial) -> tuple[bool, int, float]:
    """What comes first sorts first: three seeds before the rest, the paper's cells before the rivals, little before much."""
    cell = trial.suite, trial.row
    place = HEADLINE.index(cell) if cell in HEADLINE else len(HEADLINE)
    steps = trial.steps if method_class(trial.method).iterative else 0
    arithmetic = steps * trial.batch * math.prod(SOURCES[trial.data].shape)  # in proportion, for nets of a size
    return trial.seed >= ENOUGH, place, 0.0 if cell in HEADLINE else arithmetic


# carrying


def packed(out: Path) -> list[Path]:
    """Packs records, checkpoints and weights below `out` into <out>/campaign.tar.000 and so on, each below 16 MiB."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for path in sorted(path for path in out.rglob("seed*") if path.suffix in CARRIED):
            tar.add(path, path.relative_to(out).as_posix(), recursive=False)
    content = file.getvalue()
    for old in out.glob("campaign.tar.*"):
        old.unlink()
    parts = [out / f"campaign.tar.{start // PART:03d}" for start in range(0, len(content), PART)]
    for number, path in enumerate(parts):
        write_output(path, content[number * PART : (number + 1) * PART])
    return parts


def unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file that `packed` put into the parts in `folder`; without parts of the files themselves."""
    parts = sorted(folder.glob("campaign.tar.*"))
    if not parts:
        for path in sorted(path for path in folder.rglob("seed*") if path.suffix in CARRIED):
            yield path.relative_to(folder).as_posix(), path.read_bytes()
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
    except tarfile.TarError as error:
        raise UserError(f"{parts[0]} and the parts after it are damaged or not all there: {error}") from None


def merge(folder: Path, home: Path, allow_mixed: bool) -> list[str]:
    """Brings what `folder` holds to `home`, all of it or nothing; one line for each trial that came.

    UserError: two results of one trial, results of other code beside those at home, or files that no campaign made.
    """
    content = dict(unpacked(folder))
    if not content:
        raise UserError(f"{folder} holds neither records nor campaign.tar.000; name the folder of a campaign")
    targets = {name: _inside(home, name) for name in content}
    final = set()
    for name in [name for name in content if name.endswith(".json")]:
        trial, status, sources = _examined(name, content[name])
        if status in FINAL:
            final.add(name.removesuffix(".json"))
            _require_no_other(home, trial, content[name])
            if not allow_mixed:
                _require_same_code(home, trial, sources)
    came = []
    for name, data in content.items():
        stem = name.rpartition(".")[0]
        target = targets[name]
        known = target.with_suffix(".json")
        if known.exists() and _final(known) and stem not in final:
            continue  # home is further
        write_output(target, data)
        came += [f"{name}: {'a result' if stem in final else 'under way'}"] if name.endswith(".json") else []
    return came


def _examined(name: str, data: bytes) -> tuple[Trial, str, str]:
    """The trial, status and code of a packed record, which must lie where it belongs."""
    record = parse(data, name)
    trial = Trial.from_json(record["trial"])
    if record_path(Path(), trial).as_posix() != name:
        raise UserError(f"{name}: holds the trial of {record_path(Path(), trial).as_posix()}; put it where it belongs")
    return trial, record["status"], _sources(record)


def _sources(record: dict[str, Any]) -> str:
    """Digest of the code that made a record."""
    return str((record["run"].get("git") or {}).get("sources"))


def _require_no_other(home: Path, trial: Trial, data: bytes) -> None:
    path = record_path(home, trial)
    if path.exists() and _final(path) and path.read_bytes() != data and is_of(read(path), trial):
        raise UserError(f"{path}: another result of the same trial is there already; move one of the two away")


def _require_same_code(home: Path, trial: Trial, sources: str) -> None:
    for path in sorted(record_path(home, trial).parent.glob("seed*.json")):
        record = read(path)
        if record["status"] in FINAL and _sources(record) != sources:
            raise UserError(
                f"{path}: made by other code than the results to be merged; --allow-mixed takes them all the same"
            )


def _final(path: Path) -> bool:
    return read(path)["status"] in FINAL


def _inside(home: Path, name: str) -> Path:
    """Where a packed file goes; UserError for a name that leaves `home`."""
    target = home / name
    if Path(name).is_absolute() or ".." in Path(name).parts or len(Path(name).parts) != 4:
        raise UserError(
            f"{name!r} is no name of a record, checkpoint or weights; the pack was not made by bench.campaign"
        )
    return target


# the command


def left(found: Sequence[Trial], roots: Sequence[Path]) -> dict[Cell, tuple[int, list[int]]]:
    """How many trials of every row are planned, and the seeds of those without a result."""
    missing = {trial.digest for trial in run.unfinished(found, *roots)}
    cells: dict[Cell, tuple[int, list[int]]] = {}
    for trial in found:
        planned, seeds = cells.get((trial.suite, trial.row), (0, []))
        if trial.digest in missing:
            seeds.append(trial.seed)
        cells[trial.suite, trial.row] = planned + 1, seeds
    return cells


def page(found: Sequence[Trial], roots: Sequence[Path]) -> str:
    """Markdown: how many rows are full, and of every row what is there and the command that runs the rest."""
    cells = left(found, roots)
    full = sum(not seeds for _, seeds in cells.values())
    enough = sum(planned - len(seeds) >= ENOUGH for planned, seeds in cells.values()) - full
    none = sum(planned == len(seeds) for planned, seeds in cells.values())
    records = [each for name in {suite for suite, _ in cells} for each in results(load_suite(name), "paper", roots)]
    lines = []
    for (suite, row), (planned, seeds) in cells.items():
        mine = [r for r in records if (r["trial"]["suite"], r["trial"]["row"]) == (suite, row)]
        command = f"`{_command(suite, row, seeds)}`" if seeds else ""
        lines.append([suite, row, f"{planned - len(seeds)} of {planned}", _took(mine), command])
    told = (
        f"## What has run of the paper's tables\n\n{len(cells)} rows: {full} full, {enough} more with the {ENOUGH} trials that "
        f"allow a verdict, {len(cells) - full - enough - none} with fewer, {none} with none. In the order of their worth; "
        "`--dry-run` with a command says how long it takes on your machine, and `python -m bench.campaign` runs them all. What a "
        "trial took is the median, with that of other work beside it."
    )
    heads = ["suite", "row", "results", "a trial took", "what is left"]
    return f"{told}\n\n{tabulate(lines, heads, tablefmt='github', disable_numparse=True)}\n"


def _took(records: Sequence[Record]) -> str:
    """The median time of a row's trials, and what they ran on."""
    runs = [record["run"] for record in records if record["run"]]
    if not runs:
        return ""
    on = sorted(
        {
            f"{each['threads']} core{'s' * (each['threads'] > 1)}" if each["device"] == "cpu" else each["device_name"]
            for each in runs
        }
    )
    return f"{duration(statistics.median(each['seconds'] for each in runs))}, {', '.join(on)}"


def _command(suite: str, row: str, seeds: Sequence[int]) -> str:
    return f"python -m bench.run --suite {suite} --only {row} --seeds {spans(seeds)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes are those of `bench.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.campaign",
        description="Fill the paper's tables by value.",
        epilog="All other options, such as --time-budget 9m, go to bench.run.",
    )
    parser.add_argument("--plan", action="store_true", help="print what is there and what comes next, and stop")
    parser.add_argument(
        "--merge", type=given_path, metavar="DIR", help="bring the results of a campaign home, and stop"
    )
    parser.add_argument("--allow-mixed", action="store_true", help="merge results of other code than those at home")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be given several times")
    parser.add_argument(
        "--out", type=given_path, default=Path("results/runs"), help="where it runs (default: %(default)s)"
    )
    parser.add_argument(
        "--home", type=given_path, default=Path("results/runs"), help="your records (default: %(default)s)"
    )
    parser.add_argument("--reference", type=given_path, default=Path("results/reference"), help="default: %(default)s")
    own, rest = parser.parse_known_args(argv)
    try:
        if rest and (own.merge or own.plan):
            raise UserError(f"{rest[0]}: --{'merge' if own.merge else 'plan'} does not read it; remove it")
        if own.merge:
            print("\n".join(merge(own.merge, own.home, own.allow_mixed)))
            return 0
        found, roots = ordered(own.suite), (own.out, own.home, own.reference)
        if own.plan:
            print(page(found, roots), end="")
            return 0
        options = run.parser().parse_args([*rest, "--out", str(own.out)])
        code = run.execute(run.unfinished(found, *roots), options)
        if own.out != own.home:
            print("\n".join(str(path) for path in packed(own.out)))
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
