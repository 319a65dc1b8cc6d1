"""Fill the paper's tables in the time that there is: the next trials by value, packed to be carried away, merged at home.

    python -m bench.campaign --plan                                  # what would run, in which order, and what is there already
    python -m bench.campaign --time-budget 9m --out DIR              # runs or resumes below DIR, then packs DIR into a few files
    python -m bench.campaign --merge DIR                             # brings records and checkpoints home to results/runs

First come the paper's own cells, then the rivals, those with the least arithmetic first; three seeds of every row, which allow a
verdict, before the seven others. Trials with a result below --out, --home or results/reference are not run again. Options that
it does not know are those of `bench.run` that say how to run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import statistics
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from bench import checkpoint, run
from bench.errors import UserError
from bench.files import given_path, write_output
from bench.lines import results
from bench.plan import method_class, trials
from bench.progress import duration
from bench.record import FINAL, digest_today, parse, read, record_path, store
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
MANIFEST = "manifest.json"  # the last member of a pack
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
    sums = {}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, path in _carried(out):
            data = path.read_bytes()
            sums[name] = hashlib.sha256(data).hexdigest()
            _add(tar, name, data)
        _add(tar, MANIFEST, _manifest(sums))
    content = file.getvalue()
    for old in out.glob("campaign.tar.*"):
        old.unlink()
    parts = [out / f"campaign.tar.{start // PART:03d}" for start in range(0, len(content), PART)]
    for number, path in enumerate(parts):
        write_output(path, content[number * PART : (number + 1) * PART])
    return parts


def unpacked(folder: Path) -> dict[str, bytes]:
    """Every file that `packed` put into the parts in `folder`, by name; without parts the files below `folder` themselves.

    UserError: a part is missing, or a single bit of a file is not as packed.
    """
    parts = _parts(folder)
    if not parts:
        return {name: path.read_bytes() for name, path in _carried(folder)}
    content = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts)), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                content[member.name] = file.read() if file else b""
    except (tarfile.TarError, OverflowError) as error:
        raise UserError(f"{parts[0]} and the parts after it are damaged or not all there: {error}") from None
    manifest = content.pop(MANIFEST, None)
    if manifest is None:  # tarfile takes a damaged head for the end
        raise UserError(f"{parts[0]} and the parts after it are damaged or not all there: they end without a manifest")
    if manifest != _manifest({name: hashlib.sha256(data).hexdigest() for name, data in content.items()}):
        raise UserError(f"{parts[0]} and the parts after it are damaged: they hold other files than were packed")
    return content


def _carried(root: Path) -> list[tuple[str, Path]]:
    """Name and path of every file below `root` that is carried."""
    return [(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("seed*")) if path.suffix in CARRIED]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _manifest(sums: Mapping[str, str]) -> bytes:
    """What a pack says of itself: how many files it holds, and the sha256 (hex) of each by name."""
    return json.dumps({"files": len(sums), "sha256": sums}, indent=1, sort_keys=True).encode()


def _parts(folder: Path) -> list[Path]:
    """The parts of the pack in `folder`, in their order; UserError for one that is missing or has not its size."""
    numbers = sorted(int(path.suffix[1:]) for path in folder.glob("campaign.tar.*") if path.suffix[1:].isdecimal())
    parts = [folder / f"campaign.tar.{number:03d}" for number in range(len(numbers))]
    for part, number in zip(parts, numbers, strict=True):
        if part.suffix != f".{number:03d}":
            raise UserError(f"{part} is missing; bring all parts of the pack")
        if part != parts[-1] and part.stat().st_size != PART:
            raise UserError(f"{part} has {part.stat().st_size} bytes, expected {PART}; bring it again")
    return parts


class Coming(NamedTuple):
    """A file on its way home: its name below the root, and the digest of its trial."""

    name: str
    content: bytes
    digest: str


def merge(folder: Path, home: Path, allow_mixed: bool) -> list[str]:
    """Brings what `folder` holds to `home`; a line for each trial that came, and for what stayed behind or was put aside.

    Everything is looked at before anything is written. What home has further, as a result or by its checkpoint, stays. What
    it has of another configuration is put aside: a record as by `record.write`, checkpoints and weights as by `checkpoint.load`.

    UserError: two results of one trial, results of different code in one row, a damaged record at home, or files that no campaign
    made. Also for what cannot be written, when a part may have come; merging again brings the rest.
    """
    content = unpacked(folder)
    if not content:
        raise UserError(f"{folder} holds neither records nor campaign.tar.000; name the folder of a campaign")
    for name in content:
        _require_ours(name)
    records = {name: _examined(name, data) for name, data in content.items() if name.endswith(".json")}
    final = {name: record for name, record in records.items() if record["status"] in FINAL}
    for name, record in final.items():
        _require_no_other(home / name, record, content[name])
    if not allow_mixed:
        _require_same_code(home, final)
    trials: dict[str, dict[str, bytes]] = {}
    for name, data in content.items():
        stem, dot, ending = name.rpartition(".")
        trials.setdefault(stem, {})[dot + ending] = data
    try:
        looked = [_looked_at(home, stem, files, records.get(f"{stem}.json")) for stem, files in trials.items()]
        return [line for coming, lines in looked for line in [*lines, *_brought(home, coming)]]
    except OSError as error:
        raise UserError(f"cannot merge into {home} ({error.strerror}); mend that and merge again") from None


def _looked_at(
    home: Path, stem: str, files: Mapping[str, bytes], record: Record | None
) -> tuple[list[Coming], list[str]]:
    """Which files of a trial, given by their endings, come home, and what there is to say."""
    path = home / f"{stem}.json"
    there = read(path) if path.exists() else None
    final = record is not None and record["status"] in FINAL
    if not final and there is not None and there["status"] in FINAL:
        return [], [f"{stem}: under way, but home has a result; left out"]
    kind = ".weights" if final else ".checkpoint"  # a result needs no checkpoint, and nothing else has weights
    state = checkpoint.parse(files[kind]) if kind in files else None
    lines = [f"{stem}{kind}: damaged; left out"] if kind in files and state is None else []
    coming = [] if record is None else [Coming(f"{stem}.json", files[".json"], record["digest"])]
    coming += [] if state is None else [Coming(stem + kind, files[kind], state["digest"])]
    if coming and not final:
        step = 0 if state is None else state["step"]
        reached = checkpoint.step_reached(path.with_suffix(".checkpoint"), coming[-1].digest)
        if reached > step:
            return [], [*lines, f"{stem}: under way at step {step}, but home is at step {reached}; left out"]
    if record is not None and there is not None and there["digest"] != record["digest"]:
        lines.append(f"{stem}: the record at home is of another configuration; kept beside it")
    came = [f"{stem}: {'a result' if final else 'under way'}"] if coming else []
    return coming, came + lines


def _brought(home: Path, coming: Sequence[Coming]) -> list[str]:
    """Writes the files of a trial; a line for each checkpoint at home that had to be put aside."""
    lines = []
    for name, content, digest in coming:
        target = home / name
        if name.endswith(".json"):
            store(target, content, digest)
        elif not target.exists() or target.read_bytes() != content:
            _, remarks = checkpoint.load(target, digest)
            checkpoint.store(target, content)
            lines += [f"{name}: {remark}" for remark in remarks]
    return lines


def _examined(name: str, data: bytes) -> Record:
    """A packed record, which must lie where it belongs."""
    record = parse(data, name)
    place = record_path(Path(), Trial.from_json(record["trial"])).as_posix()
    if place != name:
        raise UserError(f"{name}: holds the trial of {place}; put it where it belongs")
    return record


def _sources(record: Record) -> str:
    """Digest of the code that made a record."""
    return str((record["run"].get("git") or {}).get("sources"))


def _require_no_other(path: Path, record: Record, data: bytes) -> None:
    if not path.exists() or path.read_bytes() == data:
        return
    there = read(path)
    if there["status"] in FINAL and digest_today(there) == digest_today(record):
        raise UserError(f"{path}: another result of the same trial is there already; move one of the two away")


def _require_same_code(home: Path, final: Mapping[str, Record]) -> None:
    """UserError if a row would hold results of different code once `final` are at home beside what is there."""
    for row in sorted({str(Path(name).parent) for name in final}):
        there = {f"{row}/{path.name}": read(path) for path in sorted((home / row).glob("seed*.json"))}
        come = {name: record for name, record in final.items() if str(Path(name).parent) == row}
        after = {name: record for name, record in {**there, **come}.items() if record["status"] in FINAL}
        first = min(after)
        for name, record in after.items():
            if _sources(record) != _sources(after[first]):
                raise UserError(
                    f"{name}: made by other code than {first}; --allow-mixed takes results of both into one row"
                )


def _require_ours(name: str) -> None:
    """UserError for a packed file that no campaign packed, or that would leave the home."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) != 4 or path.suffix not in CARRIED:
        raise UserError(
            f"{name!r} is no name of a record, checkpoint or weights; the pack was not made by bench.campaign"
        )


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
    parser.add_argument("--allow-mixed", action="store_true", help="merge results of different code into one row")
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
        _refuse_unused(own, rest)
        if own.merge:
            print("\n".join(merge(own.merge, own.home, own.allow_mixed)))
            return 0
        options = _how(rest, own.out)
        found, roots = ordered(own.suite), (own.out, own.home, own.reference)
        if own.plan:
            print(page(found, roots), end="")
            return 0
        code = run.execute(run.unfinished(found, *roots), options)
        if own.out != own.home and not options.dry_run:
            print("\n".join(str(path) for path in packed(own.out)))
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while no trial was running
        return 130


def _refuse_unused(own: argparse.Namespace, rest: Sequence[str]) -> None:
    """UserError for one of our own options, or for one of `bench.run`, that --merge or --plan would pass over."""
    if rest and (own.merge or own.plan):
        raise UserError(f"{rest[0]}: --{'merge' if own.merge else 'plan'} does not read it; remove it")
    if own.merge and (own.plan or own.suite):
        raise UserError(f"--{'plan' if own.plan else 'suite'}: --merge does not read it; remove it")
    if own.allow_mixed and not own.merge:
        raise UserError("--allow-mixed: belongs to --merge")


def _how(rest: Sequence[str], out: Path) -> argparse.Namespace:
    """The options of `bench.run` that say how to run; UserError for one that says what to run."""
    options, unset = run.parser().parse_args([*rest, "--out", str(out)]), run.parser().parse_args([])
    for name in ("command", "only", "seeds", "budget", "print_commands", "watch"):
        if getattr(options, name) != getattr(unset, name):
            said = options.command if name == "command" else f"--{name.replace('_', '-')}"
            raise UserError(f"{said}: a campaign chooses its trials itself; python -m bench.run reads it")
    return options


if __name__ == "__main__":
    sys.exit(main())
