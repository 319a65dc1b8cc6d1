"""Checkpoints: exact, checked, and safe to load."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench import checkpoint
from bench.plan import trials
from bench.suite import load_suite

DIGEST = "d" * 64


def _state(step: int) -> dict[str, Any]:
    """A state with all that a run keeps: weights, optimiser with its moments, generator, curve."""
    generator = torch.Generator().manual_seed(step)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    adam = torch.optim.Adam(net.parameters(), 0.1, fused=True)
    for _ in range(2):
        adam.zero_grad()
        net(torch.randn(8, 3, generator=generator)).square().mean().backward()
        adam.step()
    return {
        "digest": DIGEST,
        "step": step,
        "module": net.state_dict(),
        "optimizers": {"adam": adam.state_dict()},
        "noise": generator.get_state(),
        "order": torch.randperm(5, generator=generator),
        "labelled_order": torch.randperm(7, generator=generator)[3:],
        "trace": {"totals": {"loss": torch.tensor(1.5)}, "step": 2, "points": [{"step": 1, "loss": 0.1}]},
        "confusion": {"predict": [[3, 0], [1, 2]]},
        "curve": [{"step": 1, "losses": {"loss": 0.1 + 0.2}, "test": {"majority": 1e-17}}],
        "prepared": True,
        "seconds": 0.1,
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seed00.checkpoint"


@pytest.fixture
def two(path: Path) -> Path:
    """A path with a checkpoint of step 2, and that of step 1 before it."""
    checkpoint.save(path, _state(1))
    checkpoint.save(path, _state(2))
    return path


def test_a_state_comes_back_exactly(path: Path) -> None:
    state = _state(3)
    checkpoint.save(path, state)
    loaded, remarks = checkpoint.load(path, DIGEST)
    assert _equal(state, loaded)
    assert remarks == []
    assert os.listdir(path.parent) == [path.name]
    assert loaded is not None
    again = torch.Generator()
    again.set_state(loaded["noise"])
    assert torch.equal(torch.randn(3, generator=again), _after(state["noise"]))


def _after(state: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator()
    generator.set_state(state)
    return torch.randn(3, generator=generator)


def test_without_a_file_there_is_no_state(path: Path) -> None:
    assert checkpoint.load(path, DIGEST) == (None, [])


def test_the_latest_of_three_is_loaded_and_one_before_it_is_kept(two: Path) -> None:
    checkpoint.save(two, _state(3))
    state, remarks = checkpoint.load(two, DIGEST)
    assert state is not None and (state["step"], remarks) == (3, [])
    assert sorted(os.listdir(two.parent)) == [two.name, f"{two.name}.previous"]


@pytest.mark.fault(4)
@pytest.mark.parametrize("length", ["0", "1", "64", "65", "100", "half", "all but one"])
def test_a_cut_checkpoint_falls_back_to_the_one_before_and_says_so(two: Path, length: str) -> None:
    content = two.read_bytes()
    size = {"half": len(content) // 2, "all but one": len(content) - 1}.get(length)
    two.write_bytes(content[: int(length) if size is None else size])
    state, remarks = checkpoint.load(two, DIGEST)
    assert state is not None and _equal(state, _state(1)) is False and state["step"] == 1
    assert remarks == ["checkpoint seed00.checkpoint is damaged, moved aside"]
    assert two.with_name("seed00.checkpoint.bad").exists() and not two.exists()


@pytest.mark.fault(5)
def test_one_flipped_bit_is_noticed_wherever_it_is(two: Path) -> None:
    content = two.read_bytes()
    for at in (0, 63, 64, 65, len(content) // 2, len(content) - 1):
        two.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        state, remarks = checkpoint.load(two, DIGEST)
        assert state is not None and state["step"] == 1, at
        assert len(remarks) == 1 and "damaged" in remarks[0]


@pytest.mark.fault(4)
def test_two_damaged_checkpoints_mean_a_start_from_zero_and_both_are_named(two: Path) -> None:
    for candidate in (two, two.with_name(two.name + ".previous")):
        candidate.write_bytes(b"")
    state, remarks = checkpoint.load(two, DIGEST)
    assert state is None and len(remarks) == 2


@pytest.mark.fault(6)
def test_a_checkpoint_of_another_configuration_is_refused_and_kept(two: Path) -> None:
    before = two.read_bytes()
    state, remarks = checkpoint.load(two, "e" * 64)
    assert state is None
    assert all("of another configuration" in remark for remark in remarks) and len(remarks) == 2
    assert two.with_name("seed00.checkpoint.bad").read_bytes() == before


class Evil:
    """Unpickling this would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _sealed(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


@pytest.mark.fault(7)
def test_a_knob_at_its_default_that_came_since_leaves_a_checkpoint_good(path: Path) -> None:
    (today,) = trials(load_suite("plane_unsup"), "quick", ["amm"], [0])
    older = replace(today, config={key: value for key, value in today.config.items() if key != "y_draws"})
    checkpoint.save(path, _state(4) | {"digest": older.digest, "trial": older.to_json()})
    assert older.digest != today.digest and checkpoint.step_reached(path, today.digest) == 4
    state, remarks = checkpoint.load(path, today.digest)
    assert state is not None and (state["step"], remarks) == (4, [])
    other = replace(today, config=today.config | {"y_draws": 2})
    assert checkpoint.step_reached(path, other.digest) == 0


def test_what_is_moved_aside_takes_the_place_of_nothing(path: Path) -> None:
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        checkpoint.load(path, DIGEST)
    assert {name.name.partition(".bad")[2]: name.read_bytes() for name in path.parent.iterdir()} == {
        "": b"one",
        ".1": b"two",
        ".2": b"three",
    }


def test_a_checkpoint_cannot_run_code(two: Path, tmp_path: Path) -> None:
    mark, zipped = tmp_path / "mark", io.BytesIO()
    torch.save({"digest": DIGEST, "module": Evil(mark)}, zipped)
    for payload in (pickle.dumps({"digest": DIGEST, "module": Evil(mark)}, protocol=2), zipped.getvalue()):
        checkpoint.save(two, _state(1))
        checkpoint.save(two, _state(2))
        two.write_bytes(_sealed(payload))  # even with the right sum
        state, remarks = checkpoint.load(two, DIGEST)
        assert state is not None and state["step"] == 1 and len(remarks) == 1
        assert not mark.exists()


@pytest.mark.parametrize("payload", [b"", b"x", b"PK\x03\x04", b"\x80\x02K\x01."])
def test_a_sealed_payload_that_is_no_state_is_damaged(two: Path, payload: bytes) -> None:
    two.write_bytes(_sealed(payload))
    state, remarks = checkpoint.load(two, DIGEST)
    assert state is not None and state["step"] == 1 and "damaged" in remarks[0]


def test_what_is_no_state_is_none() -> None:
    content = io.BytesIO()
    torch.save([1, 2], content)
    sha = hashlib.sha256(content.getvalue()).hexdigest().encode()
    assert checkpoint.parse(sha + b"\n" + content.getvalue()) is None


@pytest.mark.fault(8)
@pytest.mark.parametrize("value", [np.float64(0.5), np.arange(3), Path("x")], ids=["scalar", "array", "object"])
def test_what_could_not_be_loaded_is_refused_when_saved(two: Path, value: Any) -> None:
    before = two.read_bytes()
    with pytest.raises(TypeError, match="plain tensors and numbers"):
        checkpoint.save(two, {**_state(3), "curve": [value]})
    assert two.read_bytes() == before


def test_a_full_disk_loses_no_state(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(two, _state(3))
        state, remarks = checkpoint.load(two, DIGEST)
        assert state is not None and (state["step"], remarks) == (2, [])


def test_what_a_trial_cannot_go_on_from_is_set_aside_whole(two: Path) -> None:
    names = (two.name, f"{two.name}.previous")
    before = {name: two.with_name(name).read_bytes() for name in names}
    checkpoint.set_aside(two)
    assert {entry.name: entry.read_bytes() for entry in two.parent.iterdir()} == {
        f"{name}.bad": content for name, content in before.items()
    }
    assert checkpoint.load(two, DIGEST) == (None, [])
    checkpoint.set_aside(two)  # nothing there is no error
    checkpoint.save(two, _state(3))
    checkpoint.set_aside(two)
    state = checkpoint.load(two.with_name(f"{two.name}.bad.1"), DIGEST)[0]
    assert state is not None and state["step"] == 3


def test_remove_takes_both_away(two: Path) -> None:
    checkpoint.remove(two)
    assert os.listdir(two.parent) == []
    checkpoint.remove(two)
