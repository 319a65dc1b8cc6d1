"""What a campaign carries away, and what comes home of it or is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import checkpoint, pack, record
from bench.errors import UserError
from bench.lock import Lock
from bench.plan import trials
from bench.suite import Trial, load_suite


def _save(path: Path, trial: Trial, step: int, **more: Any) -> None:
    """A checkpoint beside a record."""
    checkpoint.save(
        path.with_suffix(".checkpoint"), {"digest": trial.digest, "trial": trial.to_json(), "step": step, **more}
    )


def _pack(folder: Path, files: dict[str, bytes], manifest: bool = True) -> Path:
    """A folder with a pack of one part that may hold anything."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "campaign.tar.000", "w") as tar:
        for name, data in {**files, **({"manifest.json": pack._manifest(sums)} if manifest else {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder


def _files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def found() -> list[Trial]:
    return trials(load_suite("mnist_unsup"), "paper", ["amm_k10_works"], range(3))


def test_what_is_packed_comes_home(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "PART", 4096)
    out, home = tmp_path / "out", tmp_path / "home"
    done, going = store(out, found[0]), store(out, found[1], "interrupted")
    _save(going, found[1], 7, padding=torch.zeros(4096))
    for name in ("seed01.checkpoint.previous", "seed01.lock", "seed01.log"):
        going.with_name(name).write_bytes(b"x")
    parts, _ = pack.packed(out)
    assert len(parts) > 3 and max(part.stat().st_size for part in parts) <= 4096
    carried = tmp_path / "carried"
    carried.mkdir()
    for part in parts:
        (carried / part.name).write_bytes(part.read_bytes())
    came = pack.merge(carried, home, False)
    assert len(came) == 2 and came[0].endswith("a result") and came[1].endswith("under way")
    kept = sorted(path.relative_to(home).as_posix() for path in home.rglob("seed*"))
    assert [Path(name).name for name in kept] == ["seed00.json", "seed01.checkpoint", "seed01.json"]
    assert all((home / name).read_bytes() == (out / name).read_bytes() for name in kept)
    assert pack.merge(carried, home, False) == came  # again changes nothing
    assert pack.merge(out, home, False)  # and so does the folder itself
    assert done.exists()


def test_a_file_that_goes_while_it_is_packed_or_cannot_be_read(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _save(store(out, found[0], "interrupted"), found[0], 7)
    gone = store(out, found[1], "interrupted").with_name("seed09.checkpoint")
    gone.symlink_to("nowhere")  # listed, and not there when it is opened
    pack.packed(out)
    assert [Path(name).name for name in pack.unpacked(out)] == ["seed00.checkpoint", "seed00.json", "seed01.json"]
    (tmp_path / "parts" / "campaign.tar.000").mkdir(parents=True)
    with pytest.raises(UserError, match=r"campaign.tar.000: cannot be read \(Is a directory\); mend that"):
        pack.unpacked(tmp_path / "parts")
    store(tmp_path / "parts", found[0])
    with pytest.raises(UserError, match=r"cannot write a pack into .*parts \(Is a directory\); mend that"):
        pack.packed(tmp_path / "parts")


def test_a_damaged_record_stays_and_all_else_is_packed(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    store(out, found[0])
    damaged = [store(out, found[1]), store(out, found[2])]
    _save(damaged[0], found[1], 7)
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-9])
    names = [path.relative_to(out).as_posix() for path in damaged]
    (part,), stay = pack.packed(out)
    assert stay == names
    carried = tmp_path / "carried"
    carried.mkdir()
    (carried / part.name).write_bytes(part.read_bytes())
    result, going = pack.merge(carried, home, False)
    assert result.endswith("seed00: a result") and going.endswith("seed01: under way")
    assert sorted(path.name for path in home.rglob("seed*")) == ["seed00.json", "seed01.checkpoint"]
    record.record_path(out, found[0]).unlink()
    damaged[0].with_suffix(".checkpoint").unlink()
    part.unlink()
    assert pack.packed(out) == ([], names)


def _second_fails(what: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    calls = count(1)

    def call(*given: Any) -> Any:
        if next(calls) == 2:
            raise error
        return what(*given)

    return call


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), UserError, r"cannot write a pack into .*out \(No space left\); mend"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_pack_that_is_not_written_to_its_end_leaves_no_half(
    store: Callable[..., Path],
    found: list[Trial],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    said: str,
) -> None:
    monkeypatch.setattr(pack, "PART", 4096)
    out = tmp_path / "out"

    def fails(owner: Any, name: str) -> None:
        with monkeypatch.context() as patch, pytest.raises(raised, match=said):
            patch.setattr(owner, name, _second_fails(getattr(owner, name), error))
            pack.packed(out)

    for trial in found[:2]:  # at first there is no pack before
        _save(store(out, trial, "interrupted"), trial, 7, padding=torch.zeros(4096))
        before = _files(out)
        fails(os, "fsync")  # as on a full disk, once for each part
        assert _files(out) == before
        assert len(pack.packed(out)[0]) > 3 and pack.laid_out(out)
    loose = {path: data for path, data in _files(out).items() if "campaign" not in path.name}
    fails(Path, "replace")  # the first part is of the new pack by then
    assert _files(out) == loose
    assert len(pack.packed(out)[0]) > 3 and pack.laid_out(out)


def test_a_pack_holds_every_result_and_of_the_rest_what_has_room(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done, *going = store(out, found[0]), store(out, found[1], "interrupted"), store(out, found[2], "interrupted")
    done.with_suffix(".weights").write_bytes(bytes(2**16))
    for path, trial, step in zip(going, found[1:], (5, 7), strict=True):
        _save(path, trial, step, padding=torch.zeros(2**13))
    size = going[1].with_suffix(".checkpoint").stat().st_size
    for room, kept, left in (
        (2**14, ["seed00.json"], 5),
        (size + 2**14, ["seed00.json", "seed02.checkpoint", "seed02.json"], 3),  # the one that is further
        (2 * size + 2**15, sorted(path.name for path in out.rglob("seed*.[cj]*")), 1),
    ):
        monkeypatch.setattr(pack, "MOST", room)
        parts, stay = pack.packed(out)
        carried = tmp_path / str(room)
        carried.mkdir()
        for part in parts:
            (carried / part.name).write_bytes(part.read_bytes())
        assert sorted(Path(name).name for name in pack.unpacked(carried)) == kept and len(stay) == left
        # the manifest and the end of a tar come on top
        assert sum(part.stat().st_size for part in parts) <= room + tarfile.RECORDSIZE + 2**12
    assert stay == [str(done.with_suffix(".weights").relative_to(out))]
    assert pack.packed(tmp_path / "nowhere") == ([], []) and not (tmp_path / "nowhere").exists()


def test_a_campaign_goes_on_from_the_pack_that_it_is_given(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carried to another machine a pack comes without the files that it was made of."""
    made, out = tmp_path / "made", tmp_path / "out"
    store(made, found[0])
    _save(store(made, found[1], "interrupted"), found[1], 7)
    pack.packed(made)
    out.mkdir()
    (out / "campaign.tar.000").write_bytes((made / "campaign.tar.000").read_bytes())
    (out / "campaign.tar.gz").write_bytes(b"the user's own")
    (out / "campaign.tar.001").write_bytes(b"")
    with pytest.raises(UserError, match=r"campaign.tar.000 has \d+ bytes, expected"):
        pack.laid_out(out)
    (out / "campaign.tar.001").unlink()
    assert len(pack.laid_out(out)) == 2
    loose = lambda root: {path.relative_to(root): data for path, data in _files(root).items() if "seed" in path.name}
    assert loose(out) == loose(made)
    store(out, found[2])
    monkeypatch.setattr(pack, "PART", 4096)
    parts, _ = pack.packed(out)
    monkeypatch.setattr(pack, "PART", 2**20)
    assert len(parts) > 1 and pack.packed(out) == (parts[:1], [])  # those that are too many go
    assert set(map(str, loose(out))) == set(pack.unpacked(out))
    assert (out / "campaign.tar.gz").read_bytes() == b"the user's own"
    assert pack.laid_out(tmp_path / "nowhere") == []


def test_home_may_hold_another_configuration_made_by_other_code(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    other = replace(found[1], config={**found[1].config, "penalty_weight": 3.0})
    store(tmp_path / "home", other, sources="b")
    store(tmp_path / "out", found[0])
    assert pack.merge(tmp_path / "out", tmp_path / "home", False)
    with pytest.raises(UserError, match="made by other code than"):
        store(tmp_path / "more", found[2], sources="b")
        pack.merge(tmp_path / "more", tmp_path / "home", False)


def test_what_came_after_the_pack_comes_home_too(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    """A second run was killed before it could pack."""
    out, home = tmp_path / "out", tmp_path / "home"
    store(out, found[0])
    _save(store(out, found[1], "interrupted"), found[1], 7)
    _save(store(out, found[2], "interrupted"), found[2], 5)
    pack.packed(out)
    going = store(out, found[1])
    going.with_suffix(".checkpoint").unlink()
    _save(going.with_name("seed02.json"), found[2], 9)
    came = pack.merge(out, home, False)
    assert [line.partition(": ")[2] for line in came] == ["a result", "a result", "under way"]
    assert record.read(record.record_path(home, found[1]))["status"] == "done"
    assert checkpoint.step_reached(home / going.relative_to(out).with_name("seed02.checkpoint"), found[2].digest) == 9


@pytest.mark.parametrize("last", [None, b"half"])
def test_the_checkpoint_before_is_packed_where_the_last_is_none(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path, last: bytes | None
) -> None:
    """As a kill between the two moves of a save leaves it, or a flipped bit."""
    out, home = tmp_path / "out", tmp_path / "home"
    path = store(out, found[0], "interrupted").with_suffix(".checkpoint")
    _save(path, found[0], 3)
    path.replace(path.with_name("seed00.checkpoint.previous"))
    if last is not None:
        path.write_bytes(last)
    pack.packed(out)
    (came,) = pack.merge(out, home, False)
    assert came.endswith("under way")
    assert checkpoint.step_reached(home / path.relative_to(out), found[0].digest) == 3


def test_home_that_has_the_result_stays(store: Callable[..., Path], found: list[Trial], tmp_path: Path) -> None:
    _save(store(tmp_path / "out", found[0], "interrupted"), found[0], 7)
    final = store(tmp_path / "home", found[0])
    before = _files(tmp_path / "home")
    (said,) = pack.merge(tmp_path / "out", tmp_path / "home", False)
    assert said.endswith("seed00: under way, but home has a result; left out") and _files(tmp_path / "home") == before
    assert record.read(final)["status"] == "done"


def test_a_result_at_home_of_another_configuration_stays_and_is_told(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    store(tmp_path / "out", found[0], "interrupted")
    store(tmp_path / "home", replace(found[0], steps=found[0].steps + 1))
    before = _files(tmp_path / "home")
    (said,) = pack.merge(tmp_path / "out", tmp_path / "home", False)
    which = "home has a result of another configuration; move it away to bring this one; left out"
    assert said.endswith(which) and _files(tmp_path / "home") == before


@pytest.mark.fault(29)
def test_a_result_of_another_configuration_is_kept(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    other = replace(found[0], steps=found[0].steps + 1)
    come, home = store(tmp_path / "out", found[0]), store(tmp_path / "home", other)
    for path, trial in ((come, found[0]), (home, other)):
        checkpoint.save(path.with_suffix(".weights"), {"digest": trial.digest, "module": {}})
    record_before, weights_before = home.read_bytes(), home.with_suffix(".weights").read_bytes()
    result, kept, weights = pack.merge(tmp_path / "out", tmp_path / "home", False)
    assert result.endswith("seed00: a result")
    assert kept.endswith("seed00: the record at home is of another configuration; kept beside it")
    assert weights.endswith("checkpoint seed00.weights is of another configuration, moved aside")
    assert home.read_bytes() == come.read_bytes()
    assert home.with_name(f"seed00.{other.digest[:8]}.stale").read_bytes() == record_before
    assert home.with_name("seed00.weights.bad").read_bytes() == weights_before
    assert home.with_suffix(".weights").read_bytes() == come.with_suffix(".weights").read_bytes()


@pytest.mark.fault(29)
def test_a_trial_under_way_never_goes_back(store: Callable[..., Path], found: list[Trial], tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    come, there = (store(root, found[0], "interrupted", departures=[root.name]) for root in (out, home))
    _save(there, found[0], 40000)
    _save(there, found[0], 50000)
    before = _files(home)
    behind = "seed00: under way at step {}, but home is at step {}; left out"
    _save(come, found[0], 10)
    (said,) = pack.merge(out, home, False)
    assert said.endswith(behind.format(10, 50000)) and _files(home) == before
    there.with_suffix(".checkpoint").write_bytes(b"cut")  # it would go on from the one before
    (said,) = pack.merge(out, home, False)
    assert said.endswith(behind.format(10, 40000))
    come.with_suffix(".checkpoint").write_bytes(b"cut")
    damaged, said = pack.merge(out, home, False)
    assert damaged.endswith("seed00.checkpoint: damaged; left out") and said.endswith(behind.format(0, 40000))
    assert there.read_bytes() == before[there]


@pytest.mark.fault(29)
def test_a_knob_that_came_since_the_pack_sends_no_trial_back(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    config = {key: value for key, value in found[0].config.items() if key != "y_draws"}
    older, out, home = replace(found[0], config=config), tmp_path / "out", tmp_path / "home"
    come, there = store(out, older, "interrupted"), store(home, found[0], "interrupted")
    _save(come, older, 10)
    _save(there, found[0], 20)
    (said,) = pack.merge(out, home, False)
    assert said.endswith("under way at step 10, but home is at step 20; left out")
    _save(come, older, 30)
    (said,) = pack.merge(out, home, False)
    assert said.endswith("seed00: under way") and not list(home.rglob("*.stale")) and not list(home.rglob("*.bad"))
    assert checkpoint.step_reached(there.with_suffix(".checkpoint"), found[0].digest) == 30


def test_a_checkpoint_that_is_further_comes_and_the_one_at_home_is_kept(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    come, there = store(out, found[0], "interrupted", departures=["further"]), store(home, found[0], "interrupted")
    saved = there.with_suffix(".checkpoint")
    _save(there, found[0], 10)
    _save(come, found[0], 20)
    (said,) = pack.merge(out, home, False)
    assert said.endswith("seed00: under way") and there.read_bytes() == come.read_bytes()
    state, _ = checkpoint.load(saved, found[0].digest)
    assert state == {"digest": found[0].digest, "trial": found[0].to_json(), "step": 20}
    assert checkpoint.load(saved.with_name("seed00.checkpoint.previous"), found[0].digest)[0] is not None
    other = replace(found[0], steps=found[0].steps + 1)
    _save(store(tmp_path / "other", other, "interrupted"), other, 5)
    foreign = saved.read_bytes()
    lines = pack.merge(tmp_path / "other", home, False)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "under way",
        "the record at home is of another configuration; kept beside it",
        "checkpoint seed00.checkpoint is of another configuration, moved aside",
        "checkpoint seed00.checkpoint.previous is of another configuration, moved aside",
    ]
    assert checkpoint.step_reached(saved, other.digest) == 5
    assert saved.with_name("seed00.checkpoint.bad").read_bytes() == foreign
    assert record.read(there.with_name(f"seed00.{found[0].digest[:8]}.stale"))["departures"] == ["further"]


def test_a_trial_that_home_is_running_stays_and_the_rest_comes(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    """Its runner would write over what came."""
    out, home = tmp_path / "out", tmp_path / "home"
    for trial, status in ((found[0], "interrupted"), (found[1], "done"), (found[2], "done")):
        _save(store(out, trial, status), trial, 9)
    _save(store(home, found[0], "interrupted"), found[0], 5)
    before = _files(home)
    with ExitStack() as running:
        for trial in found[:2]:
            lock = running.enter_context(Lock(record.record_path(home, trial).with_suffix(".lock"), 1))
            assert lock.claim()
        *stayed, came = pack.merge(out, home, False)
    for seed, line in enumerate(stayed):
        assert line.endswith(f"seed0{seed}: home is running it; left out, merge again when it has stopped")
    assert len(stayed) == 2 and came.endswith("seed02: a result")
    after = _files(home)
    assert after == before | {path: after[path] for path in [record.record_path(home, found[2])]}
    lines = pack.merge(out, home, False)  # once it has stopped
    assert [line.partition(": ")[2] for line in lines] == ["under way", "a result", "a result"]


@pytest.mark.fault(29)
def test_nothing_comes_before_all_of_home_was_looked_at(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    for trial in found[:2]:
        store(out, trial, "interrupted")
    damaged = record.record_path(home, found[1])
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"{")
    before = _files(home)
    with pytest.raises(UserError, match="seed01.json: is not JSON"):
        pack.merge(out, home, False)
    assert _files(home) == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot merge into .*file"):
        pack.merge(out, tmp_path / "file", False)


@pytest.mark.fault(29)
def test_duplicates_mixed_code_and_misplaced_records_are_refused_whole(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    store(out, found[1], sources="b")
    store(home, found[0], sources="a")
    with pytest.raises(UserError, match="made by other code"):
        pack.merge(out, home, False)
    assert not record.record_path(home, found[1]).exists()
    store(out, found[0], sources="c")  # two codes in the pack itself
    with pytest.raises(UserError, match="seed01.json: made by other code than .*seed00.json; --allow-mixed"):
        pack.merge(out, tmp_path / "empty", False)
    assert not (tmp_path / "empty").exists() and len(pack.merge(out, tmp_path / "empty", True)) == 2
    record.record_path(out, found[0]).unlink()
    assert pack.merge(out, home, True)
    store(tmp_path / "again", found[1], sources="b", departures=["other"])
    with pytest.raises(UserError, match="another result of the same trial"):
        pack.merge(tmp_path / "again", home, True)
    path = store(tmp_path / "moved", found[0])
    path.rename(path.with_name("seed05.json"))
    with pytest.raises(UserError, match="holds the trial of"):
        pack.merge(tmp_path / "moved", home, True)


@pytest.mark.fault(29)
def test_a_pack_that_is_not_whole_is_refused(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "PART", 512)  # the size of a member's head: a missing part looks like the end
    for trial in found[:3]:
        store(tmp_path / "out", trial)
    parts, _ = pack.packed(tmp_path / "out")
    while not any(parts[-1].read_bytes()):  # zeros behind the manifest, which nobody would miss
        parts.pop().unlink()
    whole = [part.read_bytes() for part in parts]
    home = tmp_path / "home"

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            pack.merge(tmp_path / "out", home, False)
        assert not home.exists()

    for number, part in enumerate(parts):
        part.unlink()
        refused("campaign.tar.... is missing" if number < len(parts) - 1 else "damaged or not all there")
        part.write_bytes(whole[number])
    parts[1].write_bytes(whole[1][:-1])
    refused("campaign.tar.001 has 511 bytes, expected 512; bring it again")
    parts[1].write_bytes(whole[1])
    for number, part in enumerate(parts):
        part.write_bytes(bytes([whole[number][0] ^ 1]) + whole[number][1:])
        refused("damaged")
        part.write_bytes(whole[number])
    assert len(pack.merge(tmp_path / "out", home, False)) == 3


def test_a_pack_without_its_manifest_is_refused(store: Callable[..., Path], found: list[Trial], tmp_path: Path) -> None:
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in [store(tmp_path, found[0])]}
    with pytest.raises(UserError, match="they end without a manifest"):
        pack.merge(_pack(tmp_path / "old", files, manifest=False), tmp_path / "home", False)
    assert pack.merge(_pack(tmp_path / "new", files), tmp_path / "home", False)


def test_a_head_that_makes_no_sense_is_a_damaged_pack(tmp_path: Path) -> None:
    member = tarfile.TarInfo("seed00.json")
    member.pax_headers = {"GNU.sparse.map": "0,1,x,2"}
    (tmp_path / "campaign.tar.000").write_bytes(member.tobuf(tarfile.PAX_FORMAT))
    with pytest.raises(UserError, match="campaign.tar.000 and the parts after it are damaged or not all there"):
        pack.unpacked(tmp_path)


@pytest.mark.parametrize("after", [[], ["campaign.tar.001"]])
def test_a_part_that_is_a_link_to_nowhere(tmp_path: Path, after: list[str]) -> None:
    (tmp_path / "campaign.tar.000").symlink_to("nowhere")
    for name in after:
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"campaign.tar.000: cannot be read \(No such file or directory\); bring it again"
    ):
        pack.unpacked(tmp_path)


def test_what_was_not_packed_by_a_campaign(store: Callable[..., Path], tmp_path: Path, found: list[Trial]) -> None:
    with pytest.raises(UserError, match="neither records nor"):
        pack.merge(tmp_path, tmp_path / "home", False)
    store(tmp_path / "out", found[0])
    (part,), _ = pack.packed(tmp_path / "out")
    part.write_bytes(b"junk" * 200)
    with pytest.raises(UserError, match="damaged or not all there"):
        pack.merge(tmp_path / "out", tmp_path / "home", False)
    good = record.record_path(Path(), found[0])
    packed = {good.as_posix(): (tmp_path / "out" / good).read_bytes()}
    for name in ("../../outside/seed00.weights", "a/b/c/seed00.sh"):
        with pytest.raises(UserError, match="is no name of a record"):
            pack.merge(_pack(tmp_path / "evil", {**packed, name: b"w"}), tmp_path / "home", False)
    assert not (tmp_path.parent / "outside").exists() and not (tmp_path / "home").exists()  # all of it or nothing
    broken = record.record_path(tmp_path / "broken", found[0])
    broken.parent.mkdir(parents=True)
    broken.write_text(json.dumps({"schema": 1}))
    with pytest.raises(UserError, match="seed00.json: is not a whole record"):
        pack.merge(tmp_path / "broken", tmp_path / "home", False)
