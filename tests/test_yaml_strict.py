"""Strict YAML: what a value becomes, and one clear line with file and line number for each mistake."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.yaml_strict import MAX_BYTES, Section, build, load, loads


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("0", 0),
        ("0.5", 0.5),
        ("-3", -3),
        ("+7", 7),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("No", "No"),
        ("True", "True"),
        ("10:30", "10:30"),
        ("0-9", "0-9"),
        ("0,3,7", "0,3,7"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("2019-05-06", "2019-05-06"),
        ("<<", "<<"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    found = loads(f"key: {text}\n", "f.yaml")["key"]
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\nb: 010\n", 2, "starts with 0"),
        ("a: 00.5\n", 1, "starts with 0"),
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first on line 1"),
        ("x:\n  - a: 1\n    a: 2\n", 3, "duplicate key"),
        ("a: 1\nb:\tc\n", 2, "a tab is not allowed in YAML; use spaces"),
        ("a: 1\n\tb: 2\n", 2, "use spaces"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "tag"),
        ("a: !!str 1\n", 1, "tag"),
        ("a: &x 1\n", 1, "anchors and aliases"),
        ("a: *x\n", 1, "anchors and aliases"),
        ("a: [1\nb: 2\n", 2, "expected"),
        ("a: b: c\n", 1, "mapping values"),
        ("a: 'open\n", 2, "end of stream"),
        ("1: a\n", 1, "a key must be text"),
        ("? [a]\n: 1\n", 1, "a key must be text"),
        ("- 1\n", 1, "keys and values at the top"),
        ("just words\n", 1, "keys and values at the top"),
        ("", 1, "keys and values at the top"),
        ("a: 1\n---\nb: 2\n", 2, "document"),
        ("a: 1\nb: \x00\n", 2, "not allowed"),
        ('a: "\\ud800"\n', 1, "surrogate"),
        ('a: "\\UFFFFFFFF"\n', 1, "impossible number"),
        ("a: 1e999\n", 1, "too large"),
        (f"a: {'9' * 5000}\n", 1, "too large"),
        ("a: " + "[" * 5000, 1, "deep"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, line: int, part: str) -> None:
    with pytest.raises(UserError) as caught:
        loads(text, "f.yaml")
    message = str(caught.value)
    assert message.startswith(f"f.yaml:{line}: ")
    assert part in message
    assert "\n" not in message


def test_a_key_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("\ufeff# comment\na: 1\nrows:\n  - x: 1\n    y: 2\n", encoding="utf-8")
    section = load(path)
    assert section.where("a") == f"{path}:2"
    row = section["rows"][0]
    assert (row.where(), row.where("y"), row.where("absent")) == (f"{path}:4", f"{path}:5", f"{path}:4")
    assert pickle.loads(pickle.dumps(row)).where("y") == f"{path}:5"


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "cannot be read"), (b"a: 1\nb: \xff\n", ":2: not UTF-8"), (b"#" * (MAX_BYTES + 1), "larger than")],
)
def test_an_unusable_file_is_a_user_error(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=part):
        load(path)


def test_a_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


def test_a_path_with_a_null_character_is_a_user_error() -> None:
    with pytest.raises(UserError, match="is no path: embedded null"):
        load("s\0.yaml")


_PIECES = st.sampled_from(
    list("ab01:-?,[]{}&*!|>'\"%@`#~.\\ \n\t\x85\u2028") + ["a: ", "\n  - ", "<<: ", "!!", "---", "\\U", "%YAML "]
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(), st.lists(_PIECES, max_size=40).map("".join)))
def test_any_text_is_a_mapping_or_a_user_error(text: str) -> None:
    try:
        found = loads(text, "f.yaml")
    except UserError as error:
        assert str(error).startswith("f.yaml:")
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(found, Section)


@dataclass(frozen=True)
class Inner:
    n: int = 0


@dataclass(frozen=True)
class Outer:
    number: float
    count: int = 1
    flag: bool = False
    text: str = ""
    kind: Literal["a", "b", 1] = "a"
    pair: tuple[int, float] = (0, 0.0)
    many: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list)
    maybe: int | None = None
    either: int | str = 0
    inner: Inner = Inner()
    inners: Mapping[str, Inner] = field(default_factory=dict)
    bare: tuple = ()  # type: ignore[type-arg]
    source: Section = field(default_factory=Section, compare=False)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")


def test_build_fills_a_typed_dataclass() -> None:
    text = """number: 1
kind: b
pair: [1, 2]
many: [3, 4]
names: [x]
maybe: null
either: word
inner: {n: 5}
inners: {p: {n: 6}}
bare: [1, a]
"""
    section = loads(text, "f.yaml")
    found = build(Outer, section)
    assert (found.number, found.pair, found.many, found.names) == (1.0, (1, 2.0), (3, 4), ["x"])
    assert (found.either, found.inner, dict(found.inners), found.bare) == ("word", Inner(5), {"p": Inner(6)}, (1, "a"))
    assert isinstance(found.number, float)
    assert isinstance(found.pair[1], float)
    assert found.source is section


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("number: '1'", 2, "expected a number, got '1'"),
        ("number: true", 2, "expected a number"),
        ("number: 1\ncount: 1.0", 3, "expected a whole number"),
        ("number: 1\ncount: true", 3, "expected a whole number"),
        ("number: 1\ncount: -1", 3, "count must not be negative"),
        ("number: 1\nflag: 1", 3, "expected true or false"),
        ("number: 1\nflag: no", 3, "expected true or false"),
        ("number: 1\ntext: 3", 3, "expected text"),
        ("number: 1\ntext:", 3, "expected text, got None"),
        ("number: 1\nkind: c", 3, "expected one of a, b, 1"),
        ("number: 1\nkind: true", 3, "expected one of a, b, 1"),
        ("number: 1\npair: [1]", 3, "expected 2 values, got 1"),
        ("number: 1\nmany: [1, x]", 3, "expected a whole number, got 'x'"),
        ("number: 1\nmany: 1", 3, "expected a list"),
        ("number: 1\nmaybe: x", 3, "expected a whole number"),
        ("number: 1\neither: 1.5", 3, "expected a whole number or text"),
        ("number: 1\ninner: 1", 3, "expected a mapping"),
        ("number: 1\ninner:\n  m: 1", 4, "unknown key 'm'; choices: n"),
        ("number: 1\ninners:\n  p: 1", 4, "expected a mapping"),
        ('number: 1\ninners:\n  "p\\n": 1', 4, r"'p\n': expected a mapping"),
        ("numbr: 1", 2, "unknown key 'numbr'; did you mean 'number'?"),
        ("number: 1\nsource: {}", 3, "unknown key 'source'"),
        ("count: 1", 2, "the key 'number' is missing"),
    ],
)
def test_build_names_the_line_of_a_mistake(text: str, line: int, part: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, loads(f"# heading\n{text}\n", "f.yaml"))
    assert str(caught.value).startswith(f"f.yaml:{line}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_build_from_json_names_the_place_it_is_given(value: float) -> None:
    with pytest.raises(UserError, match="record: number: expected a number"):
        build(Outer, {"number": value}, "record")
    with pytest.raises(UserError, match="record: the key 'number' is missing"):
        build(Outer, {}, "record")
