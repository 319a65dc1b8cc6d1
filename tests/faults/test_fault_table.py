"""docs/faults.md names, for every fault, the tests that inject it; this keeps it so.

After a test has got or lost a mark: `AMM_GOLDEN=write python -m pytest tests/faults/test_fault_table.py`.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
DOC = TESTS.parent / "docs" / "faults.md"
NUMBERS = range(1, 31)
LINE = re.compile(r"\| (\d+) \| (.+?) \| (.+?) \| (.*) \|")


def marked() -> dict[int, list[str]]:
    """The tests of each fault, "file::test", found in the sources."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in (number for mark in node.decorator_list for number in _numbers(mark)):
                    found.setdefault(number, []).append(f"{path.stem}::{node.name}")
    return found


def _numbers(mark: ast.expr) -> list[int]:
    if not (isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault"):
        return []
    return [ast.literal_eval(number) for number in mark.args]


def test_every_fault_has_a_test() -> None:
    assert sorted(marked()) == list(NUMBERS)


def test_the_document_names_the_tests_of_every_fault() -> None:
    found, text = marked(), DOC.read_text(encoding="utf-8")
    if os.environ.get("AMM_GOLDEN") == "write":
        line = lambda m: f"| {m[1]} | {m[2]} | {m[3]} | {_names(found[int(m[1])])} |"
        text = LINE.sub(line, text)
        DOC.write_text(text, encoding="utf-8")
    shown = {int(number): names for number, _, _, names in LINE.findall(text)}
    assert shown == {number: _names(found[number]) for number in NUMBERS}


def _names(tests: list[str]) -> str:
    return ", ".join(f"`{name.removeprefix('test_')}`" for name in sorted(set(tests)))
