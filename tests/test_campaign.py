"""The order of a campaign, what it carries away, and what it refuses to bring home."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import campaign, checkpoint, record
from bench.errors import UserError
from bench.suite import Trial

POINT = {"step": 1, "test": {"majority": 1.0}, "validation": {"majority": 1.0}}
RESULT = {"last": POINT, "selected": POINT, "best_on_test": POINT, "curve": [POINT], "weights_sha256": None}


def _store(root: Path, trial: Trial, status: str = "done", sources: str = "a", **more: Any) -> Path:
    path = record.record_path(root, trial)
    run: dict[str, Any] = {"git": {"sources": sources, "sha": None, "dirty": False}}
    run |= {"device": "cpu", "threads": 2, "seconds": 60.0 * (2 + trial.seed)}
    result = more.pop("result", RESULT if status == "done" else None)
    record.write(path, record.new_record(trial, status, result=result, run=run, **more))
    return path


def _save(path: Path, trial: Trial, step: int, **more: Any) -> None:
    """A checkpoint beside a record."""
    checkpoint.save(path.with_suffix(".checkpoint"), {"digest": trial.digest, "step": step, **more})


def _pack(folder: Path, files: dict[str, bytes], manifest: bool = True) -> Path:
    """A folder with a pack of one part that may hold anything."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "campaign.tar.000", "w") as tar:
        for name, data in {**files, **({"manifest.json": campaign._manifest(sums)} if manifest else {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder


def _files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def found() -> list[Trial]:
    return campaign.ordered()


def test_the_papers_cells_come_first_then_rivals_by_arithmetic_then_the_other_seeds(found: list[Trial]) -> None:
    names = [(trial.suite, trial.row, trial.seed) for trial in found]
    assert names[:3] == [("mnist_unsup", "amm_k10_works", seed) for seed in range(3)]
    heads = list(dict.fromkeys(name[:2] for name in names))[: len(campaign.HEADLINE)]
    assert tuple(heads) == campaign.HEADLINE
    early = [trial for trial in found if trial.seed < 3]
    assert found[: len(early)] == early
    rivals = [t for t in early if (t.suite, t.row) not in campaign.HEADLINE]
    costs = [t.steps * t.batch * (784 if t.data == "mnist" else 3072) for t in rivals[15:]]
    assert {t.row for t in rivals[:15]} == {"kmeans", "mixture", "spectral"}  # which take no steps
    assert costs == sorted(costs)
    assert len(set(names)) == len(names) and {t.suite for t in found} == set(campaign.SUITES)
    assert {t.suite for t in campaign.ordered(["svhn_semi"])} == {"svhn_semi"}


def test_what_has_a_result_anywhere_is_left_out(found: list[Trial], tmp_path: Path) -> None:
    _store(tmp_path / "a", found[0])
    _store(tmp_path / "b", found[1])
    _store(tmp_path / "b", found[2], "interrupted")
    roots = (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert campaign.run.unfinished(found[:4], *roots) == found[2:4]
    assert campaign.left(found[:4], roots)["mnist_unsup", "amm_k10_works"] == (3, [2])


def test_a_page_counts_rows_and_names_the_command_of_what_is_left(found: list[Trial], tmp_path: Path) -> None:
    some = [trial for trial in found if trial.row in ("kmeans", "mixture", "infogan", "amm_k10")]
    some = [trial for trial in some if trial.suite == "mnist_unsup"]
    there = {"kmeans": range(10), "mixture": (0, 1, 2, 5), "infogan": (4,)}
    for trial in some:
        if trial.seed in there.get(trial.row, ()):
            _store(tmp_path, trial, "diverged" if trial.seed == 2 else "done", result=RESULT)
    text = campaign.page(some, [tmp_path])
    assert "4 rows: 1 full, 1 more with the 3 trials that allow a verdict, 1 with fewer, 1 with none." in text
    rows = {cells[2]: cells for cells in (line.split("|") for line in text.splitlines()) if len(cells) == 7}
    cells = {row.strip(): [cell.strip() for cell in line[3:6]] for row, line in rows.items()}
    assert cells["kmeans"] == ["10 of 10", "6 min, 2 cores", ""]
    command = "`python -m bench.run --suite mnist_unsup --only {} --seeds {}`"
    assert cells["mixture"] == ["4 of 10", "4 min, 2 cores", command.format("mixture", "3-4,6-9")]
    assert cells["infogan"] == ["1 of 10", "6 min, 2 cores", command.format("infogan", "0-3,5-9")]
    assert cells["amm_k10"] == ["0 of 10", "", command.format("amm_k10", "0-9")]


def test_what_is_packed_comes_home(found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "PART", 4096)
    out, home = tmp_path / "out", tmp_path / "home"
    done, going = _store(out, found[0]), _store(out, found[1], "interrupted")
    _save(going, found[1], 7, padding=torch.zeros(4096))
    for name in ("seed01.checkpoint.previous", "seed01.lock", "seed01.log"):
        going.with_name(name).write_bytes(b"x")
    parts = campaign.packed(out)
    assert len(parts) > 3 and max(part.stat().st_size for part in parts) <= 4096
    carried = tmp_path / "carried"
    carried.mkdir()
    for part in parts:
        (carried / part.name).write_bytes(part.read_bytes())
    came = campaign.merge(carried, home, False)
    assert len(came) == 2 and came[0].endswith("a result") and came[1].endswith("under way")
    kept = sorted(path.relative_to(home).as_posix() for path in home.rglob("seed*"))
    assert [Path(name).name for name in kept] == ["seed00.json", "seed01.checkpoint", "seed01.json"]
    assert all((home / name).read_bytes() == (out / name).read_bytes() for name in kept)
    assert campaign.merge(carried, home, False) == came  # again changes nothing
    assert campaign.merge(out, home, False)  # and so does the folder itself
    assert done.exists()


def test_home_that_has_the_result_stays(found: list[Trial], tmp_path: Path) -> None:
    _save(_store(tmp_path / "out", found[0], "interrupted"), found[0], 7)
    final = _store(tmp_path / "home", found[0])
    before = _files(tmp_path / "home")
    (said,) = campaign.merge(tmp_path / "out", tmp_path / "home", False)
    assert said.endswith("seed00: under way, but home has a result; left out") and _files(tmp_path / "home") == before
    assert record.read(final)["status"] == "done"


@pytest.mark.fault(29)
def test_a_result_of_another_configuration_is_kept(found: list[Trial], tmp_path: Path) -> None:
    other = replace(found[0], steps=found[0].steps + 1)
    come, home = _store(tmp_path / "out", found[0]), _store(tmp_path / "home", other)
    for path, trial in ((come, found[0]), (home, other)):
        checkpoint.save(path.with_suffix(".weights"), {"digest": trial.digest, "module": {}})
    record_before, weights_before = home.read_bytes(), home.with_suffix(".weights").read_bytes()
    result, kept, weights = campaign.merge(tmp_path / "out", tmp_path / "home", False)
    assert result.endswith("seed00: a result")
    assert kept.endswith("seed00: the record at home is of another configuration; kept beside it")
    assert weights.endswith("checkpoint seed00.weights is of another configuration, moved aside")
    assert home.read_bytes() == come.read_bytes()
    assert home.with_name(f"seed00.{other.digest[:8]}.stale").read_bytes() == record_before
    assert home.with_name("seed00.weights.bad").read_bytes() == weights_before
    assert home.with_suffix(".weights").read_bytes() == come.with_suffix(".weights").read_bytes()


@pytest.mark.fault(29)
def test_a_trial_under_way_never_goes_back(found: list[Trial], tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    come, there = (_store(root, found[0], "interrupted", departures=[root.name]) for root in (out, home))
    _save(there, found[0], 40000)
    _save(there, found[0], 50000)
    before = _files(home)
    behind = "seed00: under way at step {}, but home is at step {}; left out"
    _save(come, found[0], 10)
    (said,) = campaign.merge(out, home, False)
    assert said.endswith(behind.format(10, 50000)) and _files(home) == before
    there.with_suffix(".checkpoint").write_bytes(b"cut")  # it would go on from the one before
    (said,) = campaign.merge(out, home, False)
    assert said.endswith(behind.format(10, 40000))
    come.with_suffix(".checkpoint").write_bytes(b"cut")
    damaged, said = campaign.merge(out, home, False)
    assert damaged.endswith("seed00.checkpoint: damaged; left out") and said.endswith(behind.format(0, 40000))
    assert there.read_bytes() == before[there]


def test_a_checkpoint_that_is_further_comes_and_the_one_at_home_is_kept(found: list[Trial], tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    come, there = _store(out, found[0], "interrupted", departures=["further"]), _store(home, found[0], "interrupted")
    saved = there.with_suffix(".checkpoint")
    _save(there, found[0], 10)
    _save(come, found[0], 20)
    (said,) = campaign.merge(out, home, False)
    assert said.endswith("seed00: under way") and there.read_bytes() == come.read_bytes()
    assert checkpoint.load(saved, found[0].digest)[0] == {"digest": found[0].digest, "step": 20}
    assert checkpoint.load(saved.with_name("seed00.checkpoint.previous"), found[0].digest)[0] is not None
    other = replace(found[0], steps=found[0].steps + 1)
    _save(_store(tmp_path / "other", other, "interrupted"), other, 5)
    foreign = saved.read_bytes()
    lines = campaign.merge(tmp_path / "other", home, False)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "under way",
        "the record at home is of another configuration; kept beside it",
        "checkpoint seed00.checkpoint is of another configuration, moved aside",
        "checkpoint seed00.checkpoint.previous is of another configuration, moved aside",
    ]
    assert checkpoint.step_reached(saved, other.digest) == 5
    assert saved.with_name("seed00.checkpoint.bad").read_bytes() == foreign
    assert record.read(there.with_name(f"seed00.{found[0].digest[:8]}.stale"))["departures"] == ["further"]


@pytest.mark.fault(29)
def test_nothing_comes_before_all_of_home_was_looked_at(found: list[Trial], tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    for trial in found[:2]:
        _store(out, trial, "interrupted")
    damaged = record.record_path(home, found[1])
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"{")
    before = _files(home)
    with pytest.raises(UserError, match="seed01.json: is not JSON"):
        campaign.merge(out, home, False)
    assert _files(home) == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot merge into .*file"):
        campaign.merge(out, tmp_path / "file", False)


@pytest.mark.fault(29)
def test_duplicates_mixed_code_and_misplaced_records_are_refused_whole(found: list[Trial], tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    _store(out, found[1], sources="b")
    _store(home, found[0], sources="a")
    with pytest.raises(UserError, match="made by other code"):
        campaign.merge(out, home, False)
    assert not record.record_path(home, found[1]).exists()
    _store(out, found[0], sources="c")  # two codes in the pack itself
    with pytest.raises(UserError, match="seed01.json: made by other code than .*seed00.json; --allow-mixed"):
        campaign.merge(out, tmp_path / "empty", False)
    assert not (tmp_path / "empty").exists() and len(campaign.merge(out, tmp_path / "empty", True)) == 2
    record.record_path(out, found[0]).unlink()
    assert campaign.merge(out, home, True)
    _store(tmp_path / "again", found[1], sources="b", departures=["other"])
    with pytest.raises(UserError, match="another result of the same trial"):
        campaign.merge(tmp_path / "again", home, True)
    path = _store(tmp_path / "moved", found[0])
    path.rename(path.with_name("seed05.json"))
    with pytest.raises(UserError, match="holds the trial of"):
        campaign.merge(tmp_path / "moved", home, True)


@pytest.mark.fault(29)
def test_a_pack_that_is_not_whole_is_refused(
    found: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "PART", 512)  # the size of a member's head: a missing part looks like the end
    for trial in found[:3]:
        _store(tmp_path / "out", trial)
    parts = campaign.packed(tmp_path / "out")
    while not any(parts[-1].read_bytes()):  # zeros behind the manifest, which nobody would miss
        parts.pop().unlink()
    whole = [part.read_bytes() for part in parts]
    home = tmp_path / "home"

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            campaign.merge(tmp_path / "out", home, False)
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
    assert len(campaign.merge(tmp_path / "out", home, False)) == 3


def test_a_pack_without_its_manifest_is_refused(found: list[Trial], tmp_path: Path) -> None:
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in [_store(tmp_path, found[0])]}
    with pytest.raises(UserError, match="they end without a manifest"):
        campaign.merge(_pack(tmp_path / "old", files, manifest=False), tmp_path / "home", False)
    assert campaign.merge(_pack(tmp_path / "new", files), tmp_path / "home", False)


def test_what_was_not_packed_by_a_campaign(tmp_path: Path, found: list[Trial]) -> None:
    with pytest.raises(UserError, match="neither records nor"):
        campaign.merge(tmp_path, tmp_path / "home", False)
    _store(tmp_path / "out", found[0])
    (part,) = campaign.packed(tmp_path / "out")
    part.write_bytes(b"junk" * 200)
    with pytest.raises(UserError, match="damaged or not all there"):
        campaign.merge(tmp_path / "out", tmp_path / "home", False)
    good = record.record_path(Path(), found[0])
    packed = {good.as_posix(): (tmp_path / "out" / good).read_bytes()}
    for name in ("../../outside/seed00.weights", "a/b/c/seed00.sh"):
        with pytest.raises(UserError, match="is no name of a record"):
            campaign.merge(_pack(tmp_path / "evil", {**packed, name: b"w"}), tmp_path / "home", False)
    assert not (tmp_path.parent / "outside").exists() and not (tmp_path / "home").exists()  # all of it or nothing
    broken = record.record_path(tmp_path / "broken", found[0])
    broken.parent.mkdir(parents=True)
    broken.write_text(json.dumps({"schema": 1}))
    with pytest.raises(UserError, match="seed00.json: is not a whole record"):
        campaign.merge(tmp_path / "broken", tmp_path / "home", False)


def test_plan_and_run_as_commands(
    found: list[Trial], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--out", str(tmp_path / "out"), "--home", str(tmp_path / "home"), "--reference", str(tmp_path / "ref")]
    _store(tmp_path / "ref", found[0])
    assert campaign.main(["--plan", "--suite", "mnist_unsup", *where]) == 0
    said = capsys.readouterr().out
    assert (
        "| 1 of 10   | 2 min, 2 cores | `python -m bench.run --suite mnist_unsup --only amm_k10_works --seeds 1-9`"
        in said
    )
    for stops in (["--plan"], ["--merge", str(tmp_path)]):
        assert campaign.main([*stops, *where, "--time-budget", "9m"]) == 2
        assert capsys.readouterr().err == f"error: --time-budget: {stops[0]} does not read it; remove it\n"
    monkeypatch.setattr(campaign.run, "execute", lambda *_: 0)
    assert campaign.main([*where, "--dry-run"]) == 0 and not (tmp_path / "out").exists()  # it packs nothing
    asked: list[list[Trial]] = []

    def execute(trials: list[Trial], options: Any) -> int:
        asked.append(trials)
        assert options.time_budget == "9m" and options.out == tmp_path / "out"
        _store(options.out, trials[0])
        return 3

    monkeypatch.setattr(campaign.run, "execute", execute)
    assert campaign.main([*where, "--time-budget", "9m"]) == 3
    assert asked[0][:2] == found[1:3] and (tmp_path / "out/campaign.tar.000").exists()
    assert campaign.main(["--merge", str(tmp_path / "out"), *where]) == 0
    assert record.record_path(tmp_path / "home", replace(found[1])).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["status"], "status: a campaign chooses its trials itself; python -m bench.run reads it"),
        (["list"], "list: a campaign"),
        (["--only", "kmeans"], "--only: a campaign"),
        (["--seeds", "0"], "--seeds: a campaign"),
        (["--budget", "quick"], "--budget: a campaign"),
        (["--print-commands"], "--print-commands: a campaign"),
        (["--watch", "0"], "--watch: a campaign"),
        (["--allow-mixed"], "--allow-mixed: belongs to --merge"),
        (["--merge", "there", "--plan"], "--plan: --merge does not read it; remove it"),
        (["--merge", "there", "--suite", "mnist_unsup"], "--suite: --merge does not read it; remove it"),
    ],
)
def test_what_a_campaign_would_pass_over_is_refused(
    given: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign.run, "execute", lambda *_: pytest.fail("it ran"))
    assert campaign.main(given) == 2
    found = capsys.readouterr()
    assert found.err.startswith(f"error: {said}") and found.err.count("\n") == 1 and not found.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["ordered", "packed", "merge"])
def test_ctrl_c_ends_it_as_it_ends_a_run(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "ordered", lambda *_: [])
    monkeypatch.setattr(campaign.run, "execute", lambda *_: 0)
    monkeypatch.setattr(campaign, at, stopped)
    assert campaign.main(["--merge" if at == "merge" else "--out", str(tmp_path)]) == 130
