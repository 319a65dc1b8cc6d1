"""Made-up and mutated suites, records and checkpoints: refused in a line or of the same meaning; no traceback, no code run."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import checkpoint, record, report, table
from bench.errors import UserError
from bench.lines import stored
from bench.methods import declared, method_class
from bench.plan import trials
from bench.suite import Suite, Trial, load_suite

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = int(os.environ.get("AMM_FUZZ", "40"))  # of each test
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
edits = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "add", "double"]), st.floats(0, 1), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for what, where, more in changes:
        at = int(where * max(len(content) - 1, 0))
        head, byte, tail = content[:at], content[at : at + 1], content[at + 1 :]
        flipped = bytes([byte[0] ^ (1 << int(where * 1e6) % 8)]) if byte else b""
        content = {
            "flip": head + flipped + tail,
            "cut": head,
            "drop": head + tail,
            "add": head + more + byte + tail,
            "double": head + byte + tail[:20] + byte + tail,
        }[what]
    return content


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        assert not [path for path in Path(name).rglob("*") if "pwned" in path.name]


SHIPPED = (ROOT / "bench" / "suites" / "plane_unsup.yaml").read_bytes()


def _planned(path: Path) -> None:
    """A suite is read and planned, or refused in one line; whatever it plans stays below the output folder."""
    try:
        suite = load_suite(path)
        planned = [trial for budget in suite.budgets for trial in trials(suite, budget, seeds=[0])]
    except UserError as error:
        assert "\n" not in str(error)
        return
    for trial in planned:
        assert trial.method.startswith(("models.", "baselines."))
        where = record.record_path(Path("/out"), trial)
        assert Path(os.path.normpath(where)) == where and where.is_relative_to("/out")


@pytest.mark.fault(23)
@fuzz
@given(changes=edits)
def test_a_mutated_suite_is_planned_or_refused(folder: Path, changes: list[tuple[str, float, bytes]]) -> None:
    path = folder / "plane_unsup.yaml"
    path.write_bytes(mutated(SHIPPED, changes))
    _planned(path)


HOSTILE = ["../x", "/etc/x", "a/b", "a\x00b", ".", "..", "", "~", "con\n", "x" * 300, "ä", "A", "a b", "-", "$HOME"]
NAMES = st.sampled_from(HOSTILE) | st.text(max_size=12)


@pytest.mark.fault(23)
@fuzz
@given(name=NAMES, key=st.sampled_from(["suite: plane_unsup", "row: amm", "quick:"]))
def test_no_name_in_a_suite_leads_out_of_the_folder(folder: Path, name: str, key: str) -> None:
    path, quoted = folder / "plane_unsup.yaml", json.dumps(name)
    text = SHIPPED.decode()
    assert key in text
    new = f"{quoted}:" if key.endswith(":") else f"{key.partition(' ')[0]} {quoted}"
    path.write_text(text.replace(key, new, 1), encoding="utf-8", errors="replace")
    _planned(path)


PATHS = ["os:system", "bench.run:main", "models..os:system", "models.amm:os", "models.amm:AMM.x", "models/amm:AMM"]
PATHS += [
    "models.amm:__builtins__",
    "baselines.../x:Y",
    "models.amm",
    "subprocess:Popen",
    "models.amm:AMM\n",
    ":",
    "modelsx.a:B",
]


@pytest.mark.fault(7)
@fuzz
@given(path=st.sampled_from(PATHS) | st.text(max_size=20) | st.text(max_size=9).map(lambda text: f"models.{text}:A"))
def test_only_methods_below_the_two_roots_are_ever_imported(path: str) -> None:
    with suppress(UserError):
        assert declared(path).Config.__module__.startswith(("models.", "baselines."))
    with suppress(UserError):
        assert method_class(path).__module__.startswith(("models.", "baselines."))


TAGS = [
    "!!python/object/apply:os.mkdir [pwned]",
    "!!python/name:os.system",
    "!!python/module:os",
    "&a [*a, *a]",
    "!!binary aa",
]


@pytest.mark.fault(7, 23)
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("key", ["title", "seeds", "rows", "budgets"])
def test_a_suite_cannot_run_code(folder: Path, tag: str, key: str) -> None:
    path = folder / "plane_unsup.yaml"
    lines = SHIPPED.decode().splitlines()
    path.write_text("\n".join(f"{key}: {tag}" if line.startswith(f"{key}:") else line for line in lines))
    with pytest.raises(UserError):
        load_suite(path)
    assert not Path("pwned").exists()


# records


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("plane_unsup")


@pytest.fixture(scope="module")
def whole(suite: Suite) -> dict[str, Any]:
    """A record that is committed."""
    found = record.read(ROOT / "results/reference/plane_unsup/paper/aae/seed03.json")
    assert Trial.from_json(found["trial"]).suite == suite.suite
    return found


def _place(folder: Path, found: dict[str, Any]) -> Path:
    path = record.record_path(folder, Trial.from_json(found["trial"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.fault(21)
@fuzz
@given(changes=edits)
def test_a_mutated_record_means_the_same_or_is_refused(
    folder: Path, whole: dict[str, Any], changes: list[tuple[str, float, bytes]]
) -> None:
    path = _place(folder, whole)
    path.unlink(missing_ok=True)
    record.write(path, whole)
    path.write_bytes(mutated(path.read_bytes(), changes))
    try:
        assert record.read(path) == whole
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def _parts(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every part of a record but the insides of its curve and trace, which no table reads."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        if key not in ("curve", "trace"):
            yield from _parts(item, (*at, key))


OTHERS: list[Any] = [..., None, -1, 1e308, [[1]]]  # `...` takes a part away


@pytest.mark.fault(21)
@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_a_record_without_a_seal_that_was_changed_anywhere_is_tabulated_or_left_out(
    tmp_path: Path, suite: Suite, whole: dict[str, Any], value: Any
) -> None:
    """Those from before there were seals."""
    path = _place(tmp_path, whole)
    for (*way, last), fmt in zip(_parts(whole), cycle(("markdown", "latex", "csv")), strict=False):
        changed = copy.deepcopy(whole)
        node: Any = changed
        for key in way:
            node = node[key]
        if value is ...:
            del node[last]
        else:
            node[last] = value
        path.write_text(json.dumps(changed), encoding="utf-8")
        for found in stored(tmp_path, suite, "paper", any_seed=True)[0]:
            assert found == changed or found["digest"] == changed["digest"]
        with suppress(UserError):
            shipped, yours, remarks = table.collected(suite, "paper", tmp_path, tmp_path / "none")
            assert table.render(suite, "paper", shipped, yours, fmt, remarks)
            shown = report.section(suite, tmp_path, tmp_path / "none", True) if "run" in way else None
            assert shown is None or report.markdown([shown], tmp_path, "report")


# checkpoints


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.fault(4, 5)
@fuzz
@given(changes=edits, twice=st.booleans())
def test_a_mutated_checkpoint_is_never_continued_from(
    folder: Path, changes: list[tuple[str, float, bytes]], twice: bool
) -> None:
    path, states = (
        folder / "seed00.checkpoint",
        [{"digest": "d", "step": n, "w": torch.arange(50.0) + n} for n in (1, 2)],
    )
    for entry in folder.glob("seed00.checkpoint*"):
        entry.unlink()
    for state in states:
        checkpoint.save(path, state)
    for each in (path, path.with_name(path.name + ".previous"))[: 1 + twice]:
        each.write_bytes(mutated(each.read_bytes(), changes))
    state, remarks = checkpoint.load(path, "d")
    assert state is None or any(_equal(state, known) for known in states)
    assert len(remarks) == (2 if state is None else 2 - state["step"])


@pytest.mark.fault(7)
@fuzz
@given(payload=st.binary(max_size=200))
def test_any_sealed_bytes_are_a_state_or_damaged(folder: Path, payload: bytes) -> None:
    import hashlib

    path = folder / "other.checkpoint"
    path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    assert checkpoint.load(path, "d")[0] is None


@pytest.mark.fault(9)
def test_a_record_never_follows_a_link_out_of_its_folder(folder: Path, whole: dict[str, Any]) -> None:
    target, path = folder / "elsewhere.json", _place(folder / "linked", whole)
    target.write_text("kept")
    path.symlink_to(target)
    record.write(path, whole)
    assert target.read_text() == "kept" and not path.is_symlink() and record.read(path) == whole
