"""What a campaign has made elsewhere: packed into a few files to be carried away, merged at home.

A pack is a tar, cut into parts, whose last member names every file with its sha256.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from bench import checkpoint
from bench.errors import UserError, unread
from bench.files import below, beside, listed, sweep
from bench.lock import under_way
from bench.record import FINAL, Record, digest_today, parse, place, read, sources, store

PART = 15 * 2**20  # bytes of a packed file
MOST = 4 * PART  # bytes of a pack: few files, and of these a part alone is worth nothing
PARTS = "campaign.tar.[0-9][0-9][0-9]"
MANIFEST = "manifest.json"  # the last member of a pack
CARRIED = (".json", ".checkpoint", ".weights")  # not locks and logs


def packed(out: Path) -> tuple[list[Path], list[str]]:
    """Packs records, checkpoints and weights below `out` into <out>/campaign.tar.000 and so on, each below 16 MiB.

    Returns these, and the names of the files that stay: they found no room in MOST bytes, or are damaged records. Without any
    file there is no pack.
    """
    chosen, stay = _chosen(_carried(out))
    if not chosen:
        return [], stay
    file = io.BytesIO()
    sums = {}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in chosen.items():
            sums[name] = hashlib.sha256(data).hexdigest()
            _add(tar, name, data)
        _add(tar, MANIFEST, _manifest(sums))
    content = file.getvalue()
    starts = range(0, len(content), PART)
    parts = {out / f"campaign.tar.{start // PART:03d}": content[start : start + PART] for start in starts}
    _put(out, parts)
    for old in set(listed(out, PARTS)) - set(parts):
        try:
            old.unlink()
        except OSError as error:
            raise UserError(
                f"{old}: is of the pack before and cannot be removed ({error.strerror}); remove it"
            ) from None
    return list(parts), stay


def _put(out: Path, parts: Mapping[Path, bytes]) -> None:
    """Puts a pack in the place of the one before, which stays until every part of the new one is written.

    Whatever ends that, no half of a pack is left, which would stop every later run. UserError if it cannot be written.
    """
    sweep(out / "campaign.tar")  # what a run left that was killed here
    moved = False
    try:
        with ExitStack() as written:
            new = {path: written.enter_context(beside(path, content)) for path, content in parts.items()}
            for path, part in new.items():
                part.replace(path)
                moved = True
    except BaseException as error:
        # once one has been moved, the pack before is lost too; all that was in it lies below `out`
        for path in listed(out, PARTS) if moved else ():
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write a pack into {out} ({error.strerror}); mend that and run it again") from None
        raise


def _chosen(content: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[str]]:
    """What fits into MOST bytes: results, then trials under way, the furthest first, then weights; and the names of the rest.

    A damaged record stays too: `merge` would refuse all that comes with it.
    """
    found: list[tuple[tuple[int, int], dict[str, bytes]]] = []
    stay: list[str] = []
    for stem, files in _by_trial(content).items():
        final, step = _reach(files, stem)
        named = {stem + ending: data for ending, data in files.items()}
        if ".json" in files and _record(files, stem) is None:
            del named[f"{stem}.json"]
            stay.append(f"{stem}.json")
        if final:  # whose record comes without the rest rather than not at all
            found.append(((0, 0), {f"{stem}.json": named.pop(f"{stem}.json")}))
            found += [((2, 0), {name: data}) for name, data in named.items()]
        else:
            found.append(((1, -step), named))
    chosen: dict[str, bytes] = {}
    room = MOST
    for _, named in sorted(found, key=lambda each: each[0]):
        size = sum(len(data) + 2 * tarfile.BLOCKSIZE for data in named.values())  # with its head, and filled to a block
        if size > room:
            stay += named
        else:
            chosen, room = chosen | named, room - size
    return chosen, sorted(stay)


def laid_out(out: Path) -> list[str]:
    """Lays the trials of a pack in `out` beside it, so that a campaign goes on from them; as `merge`, which see."""
    return merge(out, out, allow_mixed=True) if _parts(out) else []


def unpacked(folder: Path) -> dict[str, bytes]:
    """Every file that `packed` put into the parts in `folder` or that lies below it, by name.

    Of a trial that is in both, the files of the one that is further: a run that was killed has packed nothing.
    UserError: a part is missing, or a single bit of a file is not as packed.
    """
    parts, loose = _parts(folder), _carried(folder)
    if not parts:
        return loose
    content = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(_read(part) or b"" for part in parts)), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                content[member.name] = file.read() if file else b""
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two for heads with wrong numbers
        raise UserError(f"{parts[0]} and the parts after it are damaged or not all there: {error}") from None
    manifest = content.pop(MANIFEST, None)
    if manifest is None:  # tarfile takes a damaged head for the end
        raise UserError(f"{parts[0]} and the parts after it are damaged or not all there: they end without a manifest")
    if manifest != _manifest({name: hashlib.sha256(data).hexdigest() for name, data in content.items()}):
        raise UserError(f"{parts[0]} and the parts after it are damaged: they hold other files than were packed")
    old, new = _by_trial(content), _by_trial(loose)
    further = {stem for stem, files in new.items() if stem not in old or _reach(files, stem) > _reach(old[stem], stem)}
    kept = {name: data for name, data in content.items() if _stem(name) not in further}
    return kept | {name: data for name, data in loose.items() if _stem(name) in further}


def _carried(root: Path) -> dict[str, bytes]:
    """Every file below `root` that is carried, by name; of two checkpoints the last sound one, under the name of the last."""
    names = {path.relative_to(root).as_posix().removesuffix(checkpoint.PREVIOUS): None for path in below(root, "seed*")}
    found = {name: _content(root / name) for name in names if Path(name).suffix in CARRIED}
    return {name: data for name, data in found.items() if data is not None}


def _content(path: Path) -> bytes | None:
    """What is carried of a file; None where it has gone since it was listed, as a checkpoint of another run's trial does."""
    found = [data for place in (path, checkpoint.previous(path)) if (data := _read(place)) is not None]
    sound = (data for data in found if path.suffix != ".checkpoint" or checkpoint.parse(data) is not None)
    return next(sound, found[0] if found else None)


def _read(path: Path) -> bytes | None:
    """The bytes of a file, or None where there is none; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unread(error, path) from None


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _by_trial(content: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Files by the names of their trials, then by their endings."""
    trials: dict[str, dict[str, bytes]] = {}
    for name, data in content.items():
        trials.setdefault(_stem(name), {})[Path(name).suffix] = data
    return trials


def _reach(files: Mapping[str, bytes], stem: str) -> tuple[bool, int]:
    """Whether a trial has a result, and the step of its checkpoint."""
    record = _record(files, stem)
    final = record is not None and record["status"] in FINAL
    state = checkpoint.parse(files[".checkpoint"]) if ".checkpoint" in files else None
    return final, 0 if state is None else state["step"]


def _record(files: Mapping[str, bytes], stem: str) -> Record | None:
    """The record of a trial; None where there is none, or a damaged one, which is no result."""
    try:
        return parse(files[".json"], f"{stem}.json") if ".json" in files else None
    except UserError:
        return None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _manifest(sums: Mapping[str, str]) -> bytes:
    """What a pack says of itself: how many files it holds, and the sha256 (hex) of each by name."""
    return json.dumps({"files": len(sums), "sha256": sums}, indent=1, sort_keys=True).encode()


def _parts(folder: Path) -> list[Path]:
    """The parts of the pack in `folder`, in their order; UserError for one that is missing or has not its size."""
    numbers = sorted(int(path.suffix[1:]) for path in listed(folder, PARTS))
    parts = [folder / f"campaign.tar.{number:03d}" for number in range(len(numbers))]
    for part, number in zip(parts, numbers, strict=True):
        if part.suffix != f".{number:03d}":
            raise UserError(f"{part} is missing; bring all parts of the pack")
        try:
            size = part.stat().st_size
        except OSError as error:  # such as a link to a file that is not there
            raise unread(error, part, "bring it again") from None
        if part != parts[-1] and size != PART:
            raise UserError(f"{part} has {size} bytes, expected {PART}; bring it again")
    return parts


class Coming(NamedTuple):
    """A file on its way home: its name below the root, and the digest of its trial as planned today."""

    name: str
    content: bytes
    digest: str


def merge(folder: Path, home: Path, allow_mixed: bool) -> list[str]:
    """Brings what `folder` holds to `home`; a line for each trial that came, and for what stayed behind or was put aside.

    Everything is looked at before anything is written. What home has further, as a result or by its checkpoint, stays, and so
    does what it is running. What it has of another configuration is put aside: a record as by `record.write`, checkpoints and
    weights as by `checkpoint.load`.

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
    trials = _by_trial(content).items()
    try:
        for name, record in final.items():
            _require_no_other(home / name, record, content[name])
        if not allow_mixed:
            _require_same_code(home, final)
        looked = [_looked_at(home, stem, files, records.get(f"{stem}.json")) for stem, files in trials]
        return [line for coming, lines in looked for line in [*lines, *_brought(home, coming)]]
    except OSError as error:
        raise UserError(f"cannot merge into {home} ({error.strerror}); mend that and merge again") from None


def _looked_at(
    home: Path, stem: str, files: Mapping[str, bytes], record: Record | None
) -> tuple[list[Coming], list[str]]:
    """Which files of a trial, given by their endings, come home, and what there is to say."""
    path = home / f"{stem}.json"
    if under_way(path.with_suffix(".lock")):  # its runner would write over what came
        return [], [f"{stem}: home is running it; left out, merge again when it has stopped"]
    there = read(path) if path.exists() else None
    final = record is not None and record["status"] in FINAL
    if not final and there is not None and there["status"] in FINAL:
        other = record is not None and digest_today(record) != digest_today(there)
        which = " of another configuration; move it away to bring this one" if other else ""
        return [], [f"{stem}: under way, but home has a result{which}; left out"]
    kind = ".weights" if final else ".checkpoint"  # a result needs no checkpoint, and nothing else has weights
    state = checkpoint.parse(files[kind]) if kind in files else None
    lines = [f"{stem}{kind}: damaged; left out"] if kind in files and state is None else []
    coming = [] if record is None else [Coming(f"{stem}.json", files[".json"], digest_today(record))]
    coming += [] if state is None else [Coming(stem + kind, files[kind], checkpoint.digest_of(state))]
    if coming and not final:
        step = 0 if state is None else state["step"]
        reached = checkpoint.step_reached(path.with_suffix(".checkpoint"), coming[-1].digest)
        if reached > step:
            return [], [*lines, f"{stem}: under way at step {step}, but home is at step {reached}; left out"]
    if record is not None and there is not None and digest_today(there) != digest_today(record):
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
    if place(record).as_posix() != name:
        raise UserError(f"{name}: holds the trial of {place(record)}; put it where it belongs")
    return record


def _require_no_other(path: Path, record: Record, data: bytes) -> None:
    if not path.exists() or path.read_bytes() == data:
        return
    there = read(path)
    if there["status"] in FINAL and digest_today(there) == digest_today(record):
        raise UserError(f"{path}: another result of the same trial is there already; move one of the two away")


def _require_same_code(home: Path, final: Mapping[str, Record]) -> None:
    """UserError if a row would hold results of different code once `final` are at home beside what is there."""
    for row in sorted({str(Path(name).parent) for name in final}):
        there = {f"{row}/{path.name}": read(path) for path in listed(home / row, "seed*.json")}
        come = {name: record for name, record in final.items() if str(Path(name).parent) == row}
        alike = set(map(_configuration, come.values()))
        found = {name: record for name, record in {**there, **come}.items() if record["status"] in FINAL}
        after = {name: record for name, record in found.items() if _configuration(record) in alike}
        first = min(after)
        for name, record in after.items():
            if sources(record) != sources(after[first]):
                raise UserError(
                    f"{name}: made by other code than {first}; --allow-mixed takes results of both into one row"
                )


def _configuration(record: Record) -> str:
    """The same for all seeds of a row; what is of another one shares no cell with them."""
    return digest_today({**record, "trial": {**record["trial"], "seed": 0}})


def _require_ours(name: str) -> None:
    """UserError for a packed file that no campaign packed, or that would leave the home."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) != 4 or path.suffix not in CARRIED:
        raise UserError(
            f"{name!r} is no name of a record, checkpoint or weights; the pack was not made by bench.campaign"
        )
