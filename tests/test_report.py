"""One page of everything: it holds what the tables hold, its links lead to the records, and it needs no network."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import figures, record, report
from bench.pictures import COLOURS, Picture
from bench.plan import trials
from bench.suite import Suite, load_suite

SUITE = """
suite: tiny
title: Tiny & small
artefact: Table 9
data: synthetic
task: clustering
metric: test.majority
validation: 30
seeds: 0-2
margin: 1.0
batch: 10
budgets:
  paper: {steps: 4, comparable: true}
rows:
  - row: one
    label: "One <b>"
    method: baselines.kmeans:KMeans
    config: {components: 3}
    published: {mean: 3.0, std: 0.5, n: 10, source: "Table 9"}
  - {row: two, label: Two, method: "baselines.kmeans:KMeans", config: {components: 4}}
"""


class Page(HTMLParser):
    """Notes what a page holds, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links.append(str(dict(attrs)["href"]))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    for name in ("runs", "reference"):
        (tmp_path / name).mkdir()
    (tmp_path / "tiny.yaml").write_text(SUITE)
    return _recorded(tmp_path / "tiny.yaml", tmp_path)


def _recorded(path: Path, tmp_path: Path, budget: str = "paper", root: str = "reference") -> Suite:
    suite = load_suite(path)
    for trial in trials(suite, budget):
        score = 3.0 + 0.1 * trial.seed
        point = {"step": 0, "test": {"majority": score, "mode_majority": 4.0}, "validation": {"majority": score}}
        result = {"last": point, "selected": point, "best_on_test": point, "curve": [point]}
        result["weights_sha256"] = f"{trial.row}{trial.seed}"
        run = {"device": "cpu", "device_name": "A Chip", "seconds": 1800.0, "versions": {"torch": "2.15"}}
        run["git"] = {"sha": "0123456789abcdef", "dirty": trial.seed == 2}
        found = record.new_record(trial, "done", result=result, data={"digest": "d"}, run=run)
        record.write(record.record_path(tmp_path / root, trial), found)
    return suite


def _main(folder: Path, *more: str) -> int:
    where = [
        "--runs",
        str(folder / "runs"),
        "--reference",
        str(folder / "reference"),
        "--out",
        str(folder / "out" / "page"),
    ]
    return report.main(["--suite", str(folder / "tiny.yaml"), *where, *more])


def test_both_pages_hold_the_table_the_picture_and_the_sources(tmp_path: Path, suite: Suite) -> None:
    assert _main(tmp_path) == 0
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == ["page-tiny.png", "page.html", "page.md"]
    text = (out / "page.md").read_text()
    (glance,) = (line for line in text.splitlines() if line.rstrip(" |").endswith("| tiny"))
    assert [cell.strip() for cell in glance.split("|")[1:5]] == ["One <b>", "3", "3.00 ± 0.50 (10)", "3.10 ± 0.10 (3)"]
    assert "| A Chip" in text and "0123456789 + changes" in text and "| 2.00" in text  # hours of the four clean trials
    shown = Page((out / "page.html").read_text())
    words = " ".join(shown.words)
    assert "Tiny & small" in words and "One <b>" in words and "3.10 ± 0.10" in words
    assert len(shown.images) == 1 and str(shown.images[0]["src"]).startswith("data:image/png;base64,")
    assert shown.images[0]["alt"]
    assert "http" not in (out / "page.html").read_text()


def test_a_bar_in_a_heading_does_not_split_a_column_in_markdown(tmp_path: Path, suite: Suite) -> None:
    assert _main(tmp_path) == 0
    text = (tmp_path / "out/page.md").read_text()
    assert r"mode of q(y \| x) majority %" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for lines in (table.splitlines() for table in tables):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(tables) == 4


def test_every_link_leads_to_a_record(tmp_path: Path, suite: Suite) -> None:
    assert _main(tmp_path) == 0
    links = Page((tmp_path / "out/page.html").read_text()).links
    in_markdown = re.findall(r"\]\(([^)]*\.json)\)", (tmp_path / "out/page.md").read_text())
    assert links == in_markdown and len(links) == 6
    assert len({(tmp_path / "out" / link).resolve(strict=True) for link in links}) == 6


def test_the_same_records_give_the_same_bytes(tmp_path: Path, suite: Suite) -> None:
    assert _main(tmp_path) == 0
    first = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert _main(tmp_path) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == first


def test_at_a_glance_is_every_row_with_a_published_number(tmp_path: Path, suite: Suite) -> None:
    found = report.section(suite, tmp_path / "runs", tmp_path / "reference")
    assert found is not None
    (row,) = report.glance([found])
    assert row["model"] == "One <b>" and row["verdict"].startswith("reproduced")
    assert row["bootstrap 95 %"] == "–"  # of three trials it would be far too short


def test_ten_trials_have_a_bootstrap_interval(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE.replace("seeds: 0-2", "seeds: 0-9"))
    found = report.section(_recorded(tmp_path / "tiny.yaml", tmp_path), tmp_path / "runs", tmp_path / "reference")
    assert found is not None
    low, high = report.glance([found])[0]["bootstrap 95 %"].split(" to ")
    assert 3.0 < float(low) < 3.45 < float(high) < 3.9


def test_a_quick_run_is_named_as_one_at_a_glance_and_in_the_picture(tmp_path: Path) -> None:
    quick = '  quick: {steps: 2, label: "quick: 2 steps"}\nrows:'
    (tmp_path / "tiny.yaml").write_text(SUITE.replace("rows:", quick))
    suite = _recorded(tmp_path / "tiny.yaml", tmp_path, budget="quick")
    found = report.section(suite, tmp_path / "runs", tmp_path / "reference")
    assert found is not None
    (row,) = report.glance([found])
    assert row["ours"] == "3.10 ± 0.10 (3), quick budget"
    assert "One <b>, K = 3: quick budget" in found.alt


def test_a_row_that_only_you_ran_is_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    for root, row in (("reference", "two"), ("runs", "one")):  # the other row has nothing there
        suite = _recorded(tmp_path / "tiny.yaml", tmp_path, root=root)
        shutil.rmtree(tmp_path / root / "tiny/paper" / row)
    drawn: list[Picture] = []
    kept = figures.comparison
    monkeypatch.setattr(figures, "comparison", lambda *of: drawn.append(kept(*of)) or drawn[-1])
    assert report.section(suite, tmp_path / "runs", tmp_path / "reference")
    (axis,) = drawn[0].figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Two, K = 4", "One <b>, K = 3"]
    assert sum(line.get_color() == COLOURS[8] for line in axis.lines) == 2  # the trials of both


def test_one_published_trial_has_no_detectable_difference(tmp_path: Path, suite: Suite) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE.replace("n: 10", "n: 1"))
    found = report.section(load_suite(tmp_path / "tiny.yaml"), tmp_path / "runs", tmp_path / "reference")
    assert found is not None
    (row,) = report.glance([found])
    assert (row["verdict"], row["detectable"]) == ("no test (published n 1)", "–")


def test_the_papers_suites_come_first_and_show_what_has_no_trial(tmp_path: Path, suite: Suite) -> None:
    ours = "\n".join(line for line in SUITE.splitlines() if "published" not in line)
    (tmp_path / "ours.yaml").write_text(ours.replace("suite: tiny", "suite: ours").replace("Tiny & small", "Ours"))
    (tmp_path / "untried.yaml").write_text(SUITE.replace("suite: tiny", "suite: untried").replace("Tiny", "Untried"))
    _recorded(tmp_path / "ours.yaml", tmp_path)
    more = [word for name in ("ours", "untried") for word in ("--suite", str(tmp_path / f"{name}.yaml"))]
    assert report.main([*more, "--reference", str(tmp_path / "reference"), "--out", str(tmp_path / "out/page")]) == 0
    text = (tmp_path / "out/page.md").read_text()
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["At a glance", "Untried & small", "Ours"]
    assert text.count("no trial yet") == 1


def test_without_records_it_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    for name in ("runs", "reference"):
        (tmp_path / name).mkdir()
    assert _main(tmp_path) == 2
    assert "no record below" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_output_without_a_name_is_one_line(
    tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert _main(tmp_path, "--out", ".") == 2
    assert capsys.readouterr().err.startswith("error: --out .: names a folder; give the name of a file in it")
    assert sorted(tmp_path.iterdir()) == before


def test_studies_stay_out_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: Suite) -> None:
    (tmp_path / "study.yaml").write_text(
        SUITE.replace("suite: tiny", "suite: study").replace("test.majority", "validation.majority")
    )
    monkeypatch.setattr(report, "names", lambda: [str(tmp_path / "study.yaml"), str(tmp_path / "tiny.yaml")])
    asked: list[str] = []
    kept = report.section
    monkeypatch.setattr(report, "section", lambda suite, *rest: asked.append(suite.suite) or kept(suite, *rest))
    where = ["--runs", str(tmp_path), "--reference", str(tmp_path / "reference")]
    assert report.main([*where, "--out", str(tmp_path / "page")]) == 0
    assert asked == ["tiny"]
