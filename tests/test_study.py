"""The table of effects and the sheet of curves, from records made by hand."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import record, study, table
from bench.lines import results
from bench.plan import trials
from bench.record import Record
from bench.suite import Suite, load_suite

SUITE = """
suite: {name}
title: One at a time
artefact: Ours
data: synthetic
task: clustering
metric: validation.majority
validation: 30
seeds: 0-2
margin: 1.0
batch: 10
budgets:
  paper: {{steps: 8, validate: 2, comparable: true}}
notes: ["A note."]
rows:
  - {{row: base, label: base, method: "models.kmeans_toy:Toy"}}
  - {{row: other, label: "other | setting", method: "models.kmeans_toy:Toy", config: {{rate: 0.5}}}}
"""
SCORES = {"base": (40.0, 30.0, 20.0, 10.0), "other": (40.0, 40.0, 30.0, 30.0)}


@pytest.fixture
def suite(tmp_path: Path, toy: Any) -> Suite:
    path = tmp_path / "study_toy.yaml"
    path.write_text(SUITE.format(name="study_toy").replace("models.kmeans_toy", toy.__name__))
    return load_suite(path)


def _store(root: Path, suite: Suite, fails: Callable[[str, int], bool] = lambda row, seed: False) -> None:
    for trial in trials(suite, "paper"):
        curve = [
            {
                "step": 2 * (i + 1),
                "losses": {},
                "instruments": {"overlap": 0.1 * i} | ({"redraw_y": 0.25} if trial.row == "other" else {}),
                "validation": {"majority": score + trial.seed, "bayes_majority": score / 2, "live": 3},
                "test": {"majority": score},
            }
            for i, score in enumerate(SCORES[trial.row])
        ]
        result = {"last": curve[-1], "curve": curve}
        status = "diverged" if fails(trial.row, trial.seed) else "done"
        found = record.new_record(trial, status, result=result)
        record.write(record.record_path(root, trial), found)


def test_the_table_shows_quarters_differences_and_readings(tmp_path: Path, suite: Suite) -> None:
    _store(tmp_path / "runs", suite, lambda row, seed: row == "other" and seed == 2)
    found = _found(suite, tmp_path / "runs")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in study.table(suite, found).splitlines()]
    assert lines[0][:7] == ["setting", "n", "at 25%", "at 50%", "at 75%", "at 100%", "against the base"]
    assert lines[2][:7] == ["base", "3", "41.0 ± 1.0", "31.0 ± 1.0", "21.0 ± 1.0", "11.0 ± 1.0", "–"]
    other = study.table(suite, found).splitlines()[3]
    assert r"other \| setting" in other and "2, 1 diverged" in other and "30.5 ± 0.7" in other
    assert "+19.5 (p " in other
    path = record.record_path(tmp_path / "runs", trials(suite, "paper")[0])
    path.unlink()  # a result is never overwritten
    record.write(path, found["base"][0] | {"status": "diverged", "result": None})
    again = study.table(suite, _found(suite, tmp_path / "runs"))
    assert "2, 1 diverged" in again.splitlines()[2] and "+19.0 (p " in again
    assert lines[2][7:10] == ["5.0 ± 0.0", "3.0 ± 0.0", "0.300 ± 0.000"]
    # readings that newer records alone have
    assert (lines[0][-1], lines[2][-1], lines[3][-1]) == ("redraw_y", "–", "0.250 ± 0.000")


def test_a_mean_of_fewer_seeds_than_the_row_has_says_of_how_many(tmp_path: Path, suite: Suite) -> None:
    _store(tmp_path, suite)
    found = _found(suite, tmp_path)
    for one in found["base"][:1]:
        for point in one["result"]["curve"]:
            point["instruments"] = {}
    found["other"].pop()
    base, other = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in study.table(suite, found).splitlines()[2:]
    )
    assert (base[1], base[9], other[2], other[10]) == ("3", "0.300 ± 0.000 (2)", "2 of 3", "0.300 ± 0.000")


def test_a_quarter_between_two_scorings_is_read_off_the_line_between_them(tmp_path: Path, suite: Suite) -> None:
    (trial, *_) = trials(suite, "paper")
    scores = (50.0, 40.0, 20.0, 10.0, 0.0)  # at a fifth of the steps, two fifths and so on
    curve = [{"step": 550 * (i + 1), "validation": {"majority": score}} for i, score in enumerate(scores)]
    one = record.new_record(replace(trial, steps=2750), "done", result={"last": curve[-1], "curve": curve})
    assert _quarters(suite, one) == ["47.5", "30.0", "12.5", "0.0"]
    one["result"]["curve"] = curve[1:]  # what comes before the first scoring is not known
    assert _quarters(suite, one) == ["–", "30.0", "12.5", "0.0"]
    del curve[2]["validation"]["majority"]
    assert _quarters(suite, one) == ["–", "–", "–", "0.0"]
    one["result"]["curve"] = [{"step": 0, "validation": {"majority": 5.0}}]  # a method that learns without steps
    assert _quarters(suite, one) == ["5.0"] * 4


def _quarters(suite: Suite, one: Record) -> list[str]:
    lines = study.table(suite, {"base": [one]}).splitlines()
    titles, _, cells = ([cell.strip() for cell in line.split("|")[3:7]] for line in lines)
    assert titles == ["at 25%", "at 50%", "at 75%", "at 100%"]
    return cells


def test_of_each_row_yours_are_shown_or_else_the_reference(tmp_path: Path, suite: Suite) -> None:
    _store(tmp_path / "a", suite, lambda row, seed: True)
    _store(tmp_path / "b", suite)
    for path in (tmp_path / "a" / "study_toy" / "paper").glob("other/*"):
        path.unlink()
    (tmp_path / "a" / "study_toy" / "paper" / "base" / "seed02.json").unlink()
    found = study.by_row(suite, table.shown(suite, "paper", tmp_path / "a", tmp_path / "b"))
    assert {row: [r["status"] for r in records] for row, records in found.items()} == {
        "base": ["diverged"] * 2,
        "other": ["done"] * 3,
    }
    trial = trials(suite, "paper")[0]
    record.write(record.record_path(tmp_path / "c", trial), record.new_record(trial, "interrupted"))
    assert _found(suite, tmp_path / "c") == {}  # no result


def _found(suite: Suite, root: Path) -> dict[str, list[Record]]:
    return study.by_row(suite, results(suite, "paper", [root]))


def test_a_page_and_a_picture_are_written(
    tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _store(tmp_path / "runs", suite)
    arguments = ["--suite", str(suite.source.file), "--runs", str(tmp_path / "runs"), "--reference", str(tmp_path)]
    assert study.main([*arguments, "--out", str(tmp_path / "docs" / "page")]) == 0
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "## One at a time" in text and "(page.png)" in text and "- A note." in text
    picture = (tmp_path / "docs" / "page.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert study.main([*arguments, "--out", str(tmp_path / "docs" / "page")]) == 0
    assert (tmp_path / "docs" / "page.png").read_bytes() == picture  # the same records, the same bytes


def test_a_label_may_hold_a_dollar(tmp_path: Path, suite: Suite) -> None:
    _store(tmp_path, suite)
    labelled = replace(suite, rows=tuple(replace(row, label=r"\foo{$ $") for row in suite.rows))
    picture = io.BytesIO()
    study.draw(labelled, _found(suite, tmp_path), picture)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_without_records_it_says_what_to_run(tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--suite", str(suite.source.file), "--runs", str(tmp_path), "--reference", str(tmp_path)]
    assert study.main([*arguments, "--out", str(tmp_path / "page")]) == 2
    assert "no finished trial of suite study_toy" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_an_output_without_a_name_is_one_line(tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    _store(tmp_path / "runs", suite)
    arguments = ["--suite", str(suite.source.file), "--runs", str(tmp_path / "runs"), "--reference", str(tmp_path)]
    for out in ("/", ".", str(tmp_path / "..")):
        assert study.main([*arguments, "--out", out]) == 2
        assert (
            capsys.readouterr().err
            == f"error: --out {Path(out)}: names a folder; give the name of a file in it, without ending\n"
        )


def test_without_the_base_nothing_takes_its_place(
    tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    _store(tmp_path / "runs", suite)
    shutil.rmtree(tmp_path / "runs" / "study_toy" / "paper" / "base")
    arguments = ["--suite", str(suite.source.file), "--runs", str(tmp_path / "runs"), "--reference", str(tmp_path)]
    assert study.main([*arguments, "--out", str(tmp_path / "page")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "row base, has no finished trial; run the base first" in said and "--only base" in said
    assert not list(tmp_path.glob("page.*"))


def test_panels_show_every_seed_and_both_means(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import axes

    drawn: list[tuple[str, list[float]]] = []
    plot = axes.Axes.plot
    monkeypatch.setattr(
        axes.Axes,
        "plot",
        lambda self, x, y, **style: drawn.append((style["color"], list(y))) or plot(self, x, y, **style),
    )
    _store(tmp_path, suite)
    study.draw(suite, _found(suite, tmp_path), io.BytesIO())
    scores = [line for line in drawn if line[1][0] >= 40]
    assert scores.count(("0.5", [41.0, 31.0, 21.0, 11.0])) == 2  # the base's mean, in both lines of panels
    assert scores.count(("#0072b2", [41.0, 41.0, 31.0, 31.0])) == 2  # other's mean, and its seed 1, which equals it
    assert ("#0072b2", [42.0, 42.0, 32.0, 32.0]) in scores


def test_a_reading_that_a_row_lacks_has_no_panel_and_the_noise_of_y_a_logarithmic_one(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    _store(tmp_path, suite)
    found = _found(suite, tmp_path)
    for one in found["other"]:
        for point in one["result"]["curve"]:
            point["instruments"]["noise_y"] = 10.0 ** point["step"]
    sheets: list[Any] = []
    monkeypatch.setattr(pyplot, "close", sheets.append)
    study.draw(suite, found, io.BytesIO())
    (sheet,) = sheets
    monkeypatch.undo()
    columns = ["majority", *study.COLUMNS]
    shown = [[axis.axison for axis in sheet.axes[at : at + len(columns)]] for at in (0, len(columns))]
    with_readings = {"majority", "live", "overlap"}
    assert shown[0] == [name in with_readings for name in columns]
    assert shown[1] == [name in with_readings | {"noise_y"} for name in columns]
    noise = sheet.axes[len(columns) + columns.index("noise_y")]
    assert (noise.get_yscale(), noise.get_title()) == ("log", "noise y")
    sheet.canvas.draw()
    # no formula, which would stand there as its source
    assert "10000" in [tick.get_text() for tick in noise.get_yticklabels()]
    assert sheet.axes[0].get_yscale() == "linear"
    pyplot.close(sheet)
