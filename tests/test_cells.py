"""bench.cells: what of a row's trials is averaged, shown, told and refused."""

from typing import Any

import pytest

from bench.cells import cell
from bench.errors import UserError
from bench.record import Record


def make(row: str, seed: int, error: float = 3.0, status: str = "done", **more: Any) -> Record:
    """What a cell reads of a record."""
    return {
        "trial": {"suite": "mnist_unsup", "row": row, "budget": "paper", "seed": seed},
        "status": status,
        "reason": None,
        "result": {"last": {"test": {"majority": error}}, "weights_sha256": f"{row}{seed}"}
        if status == "done"
        else None,
        "data": {"digest": "d1"},
        "run": {"git": {"sha": "a" * 40, "dirty": False}},
        **more,
    }


@pytest.mark.fault(12, 20)
def test_failures_are_shown_and_never_averaged() -> None:
    found = cell(
        [make("aae", 0, 4.0), make("aae", 1, 99.0, status="diverged"), make("aae", 2, 6.0)], "test.majority", 3
    )
    assert found.text() == "5.00 ± 1.41 (2 of 3), 1/3 diverged"
    assert found.notes == ("Not in the mean: seed 1 diverged (no reason recorded).",)
    assert cell([make("aae", 0, status="failed")], "test.majority", 1).text() == "1/1 failed"


def test_few_trials_carry_their_number() -> None:
    assert cell([make("aae", 0, 4.0)], "test.majority", 10).text() == "4.00 (1 of 10)"
    assert cell([make("aae", 0, 4.0)], "test.majority", 1).text() == "4.00 (1)"
    assert cell([], "test.majority", 10).text() == ""


@pytest.mark.fault(22)
def test_mixed_code_data_and_dirty_trees_are_told() -> None:
    clean = {"git": {"sha": "a" * 40, "dirty": False}, "device_name": "slow"}
    dirty = {"git": {"sha": "b" * 40, "dirty": True}, "device_name": "fast"}
    other = make("aae", 1, run=dirty, data={"digest": "d2", "note": ""})
    notes = cell([make("aae", 0, run=clean), other], "test.majority", 2).notes
    assert notes == (
        "Run from a working tree with uncommitted changes: seeds 1.",
        "Mixes git revisions: aaaaaaaaaaaa, bbbbbbbbbbbb.",
        "Mixes versions of the data: d1, d2.",
        "Mixes devices: fast, slow.",
    )
    assert cell([make("aae", 0, run={"git": None})], "test.majority", 1).notes == ()
    copies = [make("aae", seed, run={"git": {"sources": str(seed), "sha": None}}) for seed in (1, 2)]  # without git
    assert cell(copies, "test.majority", 2).notes == ("Mixes git revisions: 1, 2.",)
    edited = [make("aae", seed, run={"git": {"sha": "a" * 40, "sources": f"{seed}" * 64}}) for seed in (1, 2)]
    mixed = "aaaaaaaaaaaa with sources 111111111111, aaaaaaaaaaaa with sources 222222222222"
    assert cell(edited, "test.majority", 2).notes == (f"Mixes git revisions: {mixed}.",)
    changed = make("aae", 1, run={"git": {"sha": "a" * 40, "sources": "1" * 64, "before": ["2" * 64]}})
    begun = "Gone on with other code than they were begun with: seeds 1."
    assert cell([changed], "test.majority", 1).notes == (begun,)
    mixed = "aaaaaaaaaaaa with sources 111111111111, aaaaaaaaaaaa with sources 222222222222+111111111111"
    assert cell([edited[0], make("aae", 2, run=changed["run"])], "test.majority", 2).notes == (
        begun.replace("1.", "2."),
        f"Mixes git revisions: {mixed}.",
    )
    threads = [make("aae", n, run={"device": device, "threads": n}) for device in ("cpu", "cuda:0") for n in (1, 2)]
    assert cell(threads[:2], "test.majority", 2).notes == ("Mixes numbers of threads: 1, 2.",)
    assert cell(threads[2:], "test.majority", 2).notes == ()  # there they decide nothing
    killed = make("aae", 1, status="killed", reason="out of memory", result=None, data={}, run={})
    (note,) = cell([make("aae", 0), killed], "test.majority", 2).notes
    assert note.startswith("Not in the mean: seed 1 killed")


@pytest.mark.fault(19)
def test_equal_weights_and_equal_seeds_are_refused() -> None:
    one, two = make("aae", 0), make("aae", 4)
    two["result"]["weights_sha256"] = one["result"]["weights_sha256"]
    with pytest.raises(UserError, match="row aae, seed 4: equal final weights as the record of seed 0"):
        cell([one, two], "test.majority", 10)
    with pytest.raises(UserError, match="equal seed"):
        cell([one, one], "test.majority", 10)
    one["result"]["weights_sha256"] = two["result"]["weights_sha256"] = None
    assert cell([one, two], "test.majority", 2).text() == "3.00 ± 0.00 (2)"


@pytest.mark.parametrize("metric", ["test.mojority", "best.majority", "test.majority.deep", "test"])
def test_a_metric_that_no_record_has_is_refused(metric: str) -> None:
    with pytest.raises(UserError, match=f"seed 0: the record has no {metric}"):
        cell([make("aae", 0)], metric, 1)
