"""What the documents name exists: files, modules, make targets, suites and rows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from bench.suite import load_suite, names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in _anchors(target), f"{file}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings: lower case, spaces as dashes, without punctuation."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_there_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ([\w.]+)", text)) - {"venv", "pip", "pytest"}
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.M)  # at the start of a line of code, or quoted
    assert not set(named) - targets
    for name in re.findall(r"--suite ([a-z0-9_]+)(?![\w.{/])", text):
        assert name in names()
    for suite, row in re.findall(r"--suite ([a-z0-9_]+) --(?:only|row) ([a-z0-9_]+)", text):
        shown = re.findall(r"- row: (\w+)", text)  # that the page itself adds
        assert row in [*shown, *(found.row for found in load_suite(suite).rows)]


def test_no_page_names_a_path_of_one_machine() -> None:
    assert not [
        page.name for page in PAGES if re.search(r"(?<![\w.])/(home|work|tmp|root)/", page.read_text(encoding="utf-8"))
    ]
