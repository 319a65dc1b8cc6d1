"""bench.table, with records made by hand; tests/golden holds the expected tables.

After a wanted change of layout: `AMM_GOLDEN=write python -m pytest tests/test_table.py`, then read the diff.
"""

import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bench.lines
import bench.table
from bench.errors import UserError
from bench.files import write_output
from bench.formats import encodable
from bench.suite import Budget, Published, Row, Suite
from bench.table import main, render

GOLDEN = Path(__file__).parent / "golden"
HOW = "mean of 10 trials, all mappings, test set"


def make_row(name: str, label: str, published: Published | None = None, **more: Any) -> Row:
    return Row(row=name, label=label, method=f"models.{name}:Method", published=published, **more)


SUITE = Suite(
    suite="mnist_unsup",
    title="Unsupervised clustering of MNIST",
    artefact="Table 1, MNIST",
    data="mnist",
    task="clustering",
    metric="test.majority",
    validation=5000,
    seeds=tuple(range(10)),
    margin=1.0,
    batch=100,
    budgets={
        "quick": Budget(steps=500, validate=100, label="quick: 500 steps, not comparable"),
        "paper": Budget(epochs=100, comparable=True),
    },
    rows=(
        make_row("amm_k10", "AMM", Published(3.32, 0.39, 10, None, "Table 1", HOW), config={"components": 10}),
        make_row("aae", "AAE, p(y|x)", Published(4.1, 1.13, 5, None, "Table 1", "mean"), departures=("Own code_1.",)),
        make_row("vade", "VaDE", Published(5.54, metric="test.hungarian", source="Table 1", how="best run, whole set")),
        make_row("kmeans", "k-means on pixels", departures=("Own code_1.",)),
        make_row("gmvae", "GMVAE", Published(7.23, 1.6, source="Table 1"), config={"components": 30}),
    ),
)


def make(row: str, seed: int, error: float = 3.0, budget: str = "paper", status: str = "done", **more: Any) -> dict:
    """A record as bench.record stores it."""
    score = {"majority": error, "hungarian": error + 1, "validation_mapping": error + 0.1}
    at: dict[str, Any] = {"step": 5000, "test": {**score, "nmi": 0.9 - error / 100, "ari": 0.8, "live": 10}}
    validated = {"majority": error, "hungarian": error}
    selected = {**at, "step": 4000 + 100 * seed, "validation": validated}
    best = {"step": 3000, "validation": {"majority": error + 1, "hungarian": error + 1}}
    best["test"] = {**at["test"], "majority": error - 0.5, "hungarian": error}
    result = {
        "last": at,
        "curve": [best, selected, {**at, "validation": validated}],
        "weights_sha256": f"{row}-{budget}-{seed}",
    }
    return {
        "digest": f"{row}-{budget}-{seed}",
        "trial": {"suite": "mnist_unsup", "row": row, "budget": budget, "seed": seed, "config": {"components": 10}},
        "status": status,
        "reason": None,
        "result": result if status in ("done", "diverged") else None,
        "data": {"digest": "d1", "note": "MNIST, 60,000 images."},
        "run": {"git": {"sha": "a" * 40, "dirty": False}},
        "departures": ["Table 6 read as printed."] if row == "amm_k10" else [],
        **more,
    }


def yours() -> list[dict]:
    records = [make("amm_k10", seed, 3.3 + 0.1 * (seed % 5)) for seed in range(10)]
    records += [make("aae", seed, 8.0 + seed / 5) for seed in range(7)]
    records += [make("aae", 7, 50.0, status="diverged", reason="loss d is nan at step 120")]
    records += [
        make("aae", 8, 60.0, status="diverged", reason="loss d is nan at step 90"),
        make("aae", 9, status="killed"),
    ]
    return [*records, make("kmeans", 0, 46.5)]


def reference() -> list[dict]:
    records = [make("amm_k10", seed, 3.5 + 0.1 * (seed % 3)) for seed in range(10)]
    records += [make("vade", seed, 9 + seed, budget="quick") for seed in range(3)]
    return [*records, *(make("vade", seed, 5 + seed) for seed in range(3))]


def quick() -> list[dict]:
    return [make("amm_k10", seed, 3.3 + 0.1 * (seed % 5), budget="quick") for seed in range(10)]


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("AMM_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_bytes().decode()


@pytest.mark.parametrize(("fmt", "suffix"), [("markdown", "md"), ("latex", "tex"), ("csv", "csv")])
def test_golden_tables(fmt: str, suffix: str) -> None:
    compare(f"table_paper.{suffix}", render(SUITE, "paper", reference(), yours(), fmt, ["Left out: 2 records."]))
    compare(f"table_quick.{suffix}", render(SUITE, "quick", reference(), quick() + yours(), fmt))


@pytest.mark.fault(27)
@pytest.mark.parametrize("fmt", ["markdown", "latex", "csv"])
def test_the_order_of_records_does_not_matter(fmt: str) -> None:
    mine, shipped = yours(), reference()
    first = render(SUITE, "paper", shipped, mine, fmt)
    random.Random(1).shuffle(mine)
    random.Random(2).shuffle(shipped)
    assert render(SUITE, "paper", shipped, mine, fmt) == first


def line_of(text: str, label: str) -> list[str]:
    found = next(line for line in text.splitlines() if line.startswith(f"| {label}"))
    return [part.strip() for part in found.replace("\\|", "").split("|")[1:-1]]


def test_absent_rows_and_numbers_are_a_dash() -> None:
    row = line_of(render(SUITE, "paper", [], [], "markdown"), "GMVAE")
    assert row[2].startswith("7.23 ± 1.60 [") and [row[1], *row[3:]] == ["30", "–", "–", "–"]


def test_a_quick_run_is_never_printed_as_a_reproduction() -> None:
    for fmt in ("markdown", "latex", "csv"):
        text = render(SUITE, "quick", [], quick(), fmt)
        assert "quick run, not a reproduction" in text and "quick: 500 steps, not comparable" in text
        assert "reproduced" not in text


@pytest.mark.fault(20)
def test_a_verdict_on_fewer_trials_says_so() -> None:
    row = line_of(render(SUITE, "paper", reference(), yours(), "markdown"), "AAE")
    assert row[-1].startswith("not reproduced (7 of 10 trials, 2/10 diverged, 1/10 killed): +")
    assert row[-2].startswith("8.60 ± 0.43 (7 of 10), 2/10 diverged, 1/10 killed [")


@pytest.mark.parametrize(
    ("name", "word", "text", "detail"),
    [
        ("nmi", "better", "0.945 ± 0.030 (10)", "+0.445, TOST"),
        ("bayes_nmi", "better", "0.945 ± 0.030 (10)", "+0.445, TOST"),
        ("majority", "not reproduced", "0.94 ± 0.03 (10)", "+0.44, TOST"),
    ],
)
def test_more_is_better_for_nmi_of_any_classifier_and_it_has_three_decimals(
    name: str, word: str, text: str, detail: str
) -> None:
    records = [make("amm_k10", seed) for seed in range(10)]
    for record in records:
        record["result"]["last"]["test"][name] = 0.9 + 0.01 * record["trial"]["seed"]
    row = replace(SUITE.rows[0], published=Published(0.5, 0.01, 10))
    suite = replace(SUITE, metric=f"test.{name}", margin=0.02, rows=(row,))
    found = bench.lines.line(suite, "paper", row, [], records)
    assert (found.verdict.word, found.cells["yours"].text()) == (word, text)
    assert found.verdict.detail.startswith(detail)


def test_only_failures_give_no_verdict() -> None:
    failed = [make("amm_k10", 0, status="failed", reason="no space")]
    for shipped in ([], reference()):  # of which a verdict would hide that yours failed
        row = line_of(render(SUITE, "paper", shipped, failed, "markdown"), "AMM")
        assert row[-1] == "no result" and row[-2].startswith("1/10 failed [")


def test_a_trial_of_yours_without_a_result_yet_leaves_the_verdict_on_the_reference() -> None:
    begun = make("amm_k10", 0, status="interrupted", reason="stopped")
    row = line_of(render(SUITE, "paper", reference(), [begun], "markdown"), "AMM")
    alone = line_of(render(SUITE, "paper", reference(), [], "markdown"), "AMM")
    assert row[-1] == alone[-1] and row[-1].startswith("reproduced: ")
    assert row[-2].startswith("1/10 interrupted [")


def test_more_trials_under_another_budget_than_planned_are_counted_of_their_own_number() -> None:
    quick = [make("vade", seed, 9.0, "quick", "done" if seed < 8 else "diverged") for seed in range(14)]
    text = render(SUITE, "paper", [*reference(), *(r for r in quick if r["trial"]["seed"] > 2)], [], "markdown")
    assert "Under quick: 10.38 ± 0.74 (8 of 14), 6/14 diverged." in text


def test_the_reference_of_the_same_budget_comes_first() -> None:
    records = reference()
    text = render(SUITE, "paper", records, [], "markdown")
    (note,) = re.findall(r"^(\d+)\. Under quick: 11\.00 ± 1\.00 \(3 of 10\)\.$", text, re.M)  # told, not hidden
    assert line_of(text, "VaDE")[3] == f"7.00 ± 1.00 (3 of 10) [{note}]"
    assert line_of(render(SUITE, "quick", records, [], "markdown"), "VaDE")[3].startswith(
        "11.00 ± 1.00 (3 of 10), quick"
    )
    assert "(10), paper budget" in line_of(render(SUITE, "quick", records, [], "markdown"), "AMM")[3]


def test_a_brief_table_says_by_which_score_a_result_is_where_that_is_another_than_the_suites() -> None:
    records = [*(make(row, seed, 7.0) for row in ("amm_k10", "vade") for seed in range(2))]
    cells = lambda label: line_of(bench.table.brief(SUITE, "paper", records), label)[3]
    assert cells("AMM") == "7.00 ± 0.00 (2 of 10)"
    assert cells("VaDE") == "8.00 ± 0.00 (2 of 10), one-to-one"
    assert cells("GMVAE") == "–"


def test_classification_has_its_own_second_table() -> None:
    record = make("kmeans", 0)
    record["result"]["last"] = {"step": 1, "test": {"error": 12.5}}
    del record["result"]["curve"]
    suite = replace(SUITE, task="classification", metric="test.error", rows=SUITE.rows[3:4], seeds=(0,))
    text = render(suite, "paper", [], [record], "markdown")
    assert "12.50 (1)" in text and "| error %" in text and "NMI" not in text


def test_steps_are_chosen_by_the_score_that_compares_the_row() -> None:
    """IMSAT is compared one-to-one: its least many-to-one error says nothing of when that was least."""
    record = make("vade", 0)
    scores = [(1, 8.0, 12.0), (2, 6.0, 20.0), (3, 7.0, 15.0)]
    points = [
        {"step": step, **{split: {"majority": m, "hungarian": h} for split in ("validation", "test")}}
        for step, m, h in scores
    ]
    record["result"]["curve"] = points
    for metric, *expected in (("test.majority", "6.00", "2", "6.00"), ("test.hungarian", "12.00", "1", "12.00")):
        published = replace(SUITE.rows[2].published, metric=metric)
        suite = replace(SUITE, rows=(replace(SUITE.rows[2], published=published),))
        heading, row = _second_table(render(suite, "paper", [], [record], "markdown"))
        at = heading.index("at selected step")
        assert row[at : at + 3] == expected


def _with_bayes(record: dict, **scores: float) -> dict:
    """The record with scores of the classifier of Eq. 19 beside the first one's."""
    at = record["result"]["last"]
    at["test"] = {**at["test"], **scores}
    return record


def test_latex_has_no_sign_that_pdflatex_does_not_know() -> None:
    texts = [
        path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parent.parent / "results").glob("*.tex"))
    ]
    made = render(replace(SUITE, notes=("q(y | x) has ŷ = 2², σ ≤ Σ",)), "paper", [], [], "latex")
    assert r"q(y $|$ x) has $\hat{y}$ = 2$^2$, $\sigma$ $\leq$ $\Sigma$" in made
    for text in texts:
        assert not {sign for sign in re.sub(r"\$[^$]*\$", "", text) if sign == "|" or not sign.isascii()}


def test_latex_raises_footnote_marks_and_no_other_brackets() -> None:
    row = replace(
        SUITE.rows[0], label="AMM [3, 4] on [0, 1]", departures=("Pixels in [0, 1]; see [2].",), published=None
    )
    made = render(replace(SUITE, rows=(row,), notes=("Codes in [1, 2]",)), "paper", [], [make("amm_k10", 0)], "latex")
    assert r"\item Pixels in [0, 1]; see [2]." in made and r"\item Codes in [1, 2]" in made
    assert r" AMM [3, 4] on [0, 1]$^{1, 2}$ " in made
    bare = replace(SUITE, rows=(replace(row, departures=()),))
    assert r" AMM [3, 4] on [0, 1] " in render(bare, "paper", [], [], "latex")


@pytest.mark.parametrize(("task", "name"), [("clustering", "majority"), ("classification", "error")])
@pytest.mark.parametrize("fmt", ["markdown", "latex"])
def test_the_classifier_of_eq_19_has_a_column_if_any_row_has_it(task: str, name: str, fmt: str) -> None:
    metric, heading = f"test.{name}", f"Eq. 19 {name} "
    suite = replace(SUITE, task=task, metric=metric, rows=(SUITE.rows[0], SUITE.rows[3]), seeds=(0,))
    first, second = make("amm_k10", 0), make("kmeans", 0)
    for record in (first, second):
        at = {"step": 1, "test": {"error": 12.5, "majority": 12.5}}
        record["result"] = {"last": at}
    assert heading not in render(suite, "paper", [], [first, second], fmt)
    text = render(suite, "paper", [], [_with_bayes(first, **{f"bayes_{name}": 7.25}), second], fmt)
    assert heading in text
    if fmt == "markdown":
        table = _second_table(text)
        column = table[0].index(f"Eq. 19 {name} %")
        assert [row[column] for row in table[1:]] == ["7.25", "–"]
        assert table[0][column - 1] == ("error %" if task == "classification" else "majority %")


def _second_table(text: str) -> list[list[str]]:
    """Heading and rows of the table of the other scores."""
    lines = [line.replace("\\|", "") for line in text.split("Other scores")[1].splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.split("|")[1:-1]] for line in lines if not line.startswith("|--")]


def test_columns_of_the_second_table_that_say_nothing_disappear() -> None:
    first, second = make("amm_k10", 0), make("aae", 0)
    for record in (first, second):
        for at in (record["result"]["last"], *record["result"]["curve"]):
            at["test"]["hungarian"] = at["test"]["validation_mapping"] = None
    del second["result"]["last"]["test"]["ari"]
    heading, *rows = _second_table(render(SUITE, "paper", [], [first, second], "markdown"))
    assert not {"one-to-one %", "validation-mapped %", "Eq. 19 majority %"} & set(heading)
    assert [row[heading.index("ARI")] for row in rows] == ["0.800", "–"]  # one row is enough to stay
    assert len(rows) == 2
    assert {"majority %", "live clusters", "at selected step", "best on test (not comparable)"} <= set(heading)
    for record in (first, second):
        del record["result"]["curve"]
    heading, *_ = _second_table(render(SUITE, "paper", [], [first, second], "markdown"))
    assert "majority %" in heading
    assert not {"at selected step", "selected step", "best on test (not comparable)"} & set(heading)


VARIANT = {"name": "SVHN as JPEG", "train": {"images": 3, "sha256_images_nhwc": "ab" * 32, "note": "73,000 images"}}
SAID = "Not the official files but SVHN as JPEG: 73,000 images (sha256 of the images abababababab...)."


def _of_variant(record: dict) -> dict:
    record["data"] = {**record["data"], "variant": VARIANT}
    return record


def _marked(cell: str) -> list[int]:
    """The numbers of a cell's notes."""
    found = re.search(r" \[([\d, ]+)\]$", cell)
    return [int(number) for number in found[1].split(", ")] if found else []


@pytest.mark.parametrize("which", ["reference", "yours"])
def test_data_that_are_not_official_are_told_at_the_cell_that_rests_on_them(which: str) -> None:
    records = {run: [make("aae", seed, 4.0) for seed in range(10)] for run in ("reference", "yours")}
    records[which][3] = _of_variant(records[which][3])  # one of them is enough
    text = render(SUITE, "paper", records["reference"], records["yours"], "markdown")
    assert text.count(SAID) == 1
    number = int(next(line for line in text.splitlines() if line.endswith(SAID)).partition(".")[0])
    row = line_of(text, "AAE")
    assert {run: number in _marked(row[column]) for run, column in (("reference", 3), ("yours", 4))} == {
        run: run == which for run in records
    }
    assert number not in _marked(row[0]) + _marked(line_of(text, "AMM")[4])
    assert SAID in render(SUITE, "paper", records["reference"], records["yours"], "csv")


@pytest.mark.parametrize("variant", [None, {}, ...])
def test_official_data_need_no_note(variant: Any) -> None:
    record = make("aae", 0)
    if variant is not ...:  # older records do not have the key
        record["data"]["variant"] = variant
    assert "official" not in render(SUITE, "paper", [], [record], "markdown")


def test_a_variant_of_several_files_tells_each() -> None:
    record = _of_variant(make("aae", 0))
    record["data"]["variant"] = {**VARIANT, "test": {**VARIANT["train"], "note": "26,000 images"}}
    part = "(sha256 of the images abababababab...)"
    text = render(SUITE, "paper", [], [record], "markdown")
    assert f"Not the official files but SVHN as JPEG: 73,000 images {part}; 26,000 images {part}." in text


def test_a_precision_other_than_fp32_is_a_departure_of_the_row() -> None:
    records = [make("aae", seed) for seed in range(3)] + [make("amm_k10", seed) for seed in range(3)]
    for record in records[:3]:
        record["trial"]["precision"] = "bf16"
    for record in records[3:5]:
        record["trial"]["precision"] = "fp32"  # and the last is of before there was a choice
    text = render(SUITE, "paper", [], records, "markdown")
    assert text.count("Trained in") == 1
    number = int(next(line for line in text.splitlines() if line.endswith(". Trained in bf16.")).partition(".")[0])
    assert {label for label in ("AMM", "AAE", "k-means") if number in _marked(line_of(text, label)[0])} == {"AAE"}
    assert number not in _marked(line_of(text, "AAE")[4])


@pytest.mark.fault(28)
def test_terminals_without_the_signs_get_ascii() -> None:
    assert encodable("3 ± 1, –, é", "ascii") == "3 +/- 1, -, ?"
    assert encodable("3 ± 1, –", "utf-8") == encodable("3 ± 1, –", None) == "3 ± 1, –"


def test_writing_replaces_whole_files_and_explains_failure(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.md"
    write_output(path, "old")
    write_output(path, "±\n")
    assert path.read_bytes() == "±\n".encode() and [item.name for item in path.parent.iterdir()] == ["table.md"]
    with pytest.raises(UserError, match="cannot write .*choose another file"):
        write_output(path / "below_a_file.md", "text")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command-line options over three records of yours, one stale and one unreadable, and another seed shipped."""

    def plan(suite: Suite, budget: str, only: Any = None, seeds: Any = None) -> list[SimpleNamespace]:
        if budget not in suite.budgets:
            raise UserError(f"unknown budget {budget}")
        chosen = suite.seeds if seeds is None else seeds
        return [SimpleNamespace(digest=f"{row.row}-{budget}-{seed}") for row in suite.rows for seed in chosen]

    def read(path: Path) -> dict:
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is no record") from error

    for module in (bench.table, bench.lines):
        monkeypatch.setattr(module, "trials", plan)
    monkeypatch.setattr(bench.lines, "read", read)
    monkeypatch.setattr(bench.table, "load_suite", lambda name: SUITE)
    files = {
        "runs/0": make("aae", 0, 4.0),
        "runs/1": make("aae", 1, 5.0, digest="old"),
        "reference/77": make("aae", 77, 8),
    }
    for name, record in files.items():
        root, seed = name.split("/")
        path = tmp_path / root / "mnist_unsup" / "paper" / "aae" / f"seed{int(seed):02}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    (tmp_path / "runs/mnist_unsup/paper/aae/seed02.json").write_text('{"half')
    return ["--suite", "mnist_unsup", "--runs", str(tmp_path / "runs"), "--reference", str(tmp_path / "reference")]


@pytest.mark.fault(21)
def test_command_line_reads_prints_and_counts_what_it_leaves_out(
    stored: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(stored) == 0
    out, err = capsys.readouterr()
    assert line_of(out, "AAE")[3:5] == ["8.00 (1 of 10)", "4.00 (1 of 10)"]
    assert "Left out: 1 stored under paper, of another configuration or seed than planned now." in out
    assert "Left out, unreadable or not in its place: mnist_unsup/paper/aae/seed02.json." in out
    assert err.startswith("warning: ") and err.endswith("seed02.json is no record\n")


@pytest.mark.fault(27)
def test_command_line_writes_the_same_bytes_twice(stored: list[str], tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        assert main([*stored, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("## Unsupervised clustering of MNIST\n")


@pytest.mark.fault(19)
def test_a_copied_record_and_a_row_moved_away_do_not_count(
    stored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    budget = tmp_path / "runs/mnist_unsup/paper"
    (budget / "aae/seed02.json").unlink()
    path = budget / "aae/seed00.json"
    copy, moved = path.with_name("seed00 copy.json"), budget / "aae.bad" / "seed00.json"
    moved.parent.mkdir()
    for place in (copy, moved):
        place.write_bytes(path.read_bytes())
    assert main(stored) == 0
    out, err = capsys.readouterr()
    said = "holds the trial of mnist_unsup/paper/aae/seed00.json; left out"
    assert set(err.splitlines()) == {f"warning: {moved}: {said}", f"warning: {copy}: {said}"}
    assert line_of(out, "AAE")[4] == "4.00 (1 of 10)"
    assert "Left out, unreadable or not in its place: mnist_unsup/paper/aae.bad/seed00.json." in out


def test_command_line_mistakes_end_with_2_and_one_line(stored: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*stored, "--budget", "papier"]) == 2
    assert capsys.readouterr().err == "error: unknown budget papier\n"


def test_a_mistyped_folder_of_runs_is_refused(stored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, typo = tmp_path / "table.md", tmp_path / "rums"
    for option in ("--runs", "--reference"):
        with pytest.raises(SystemExit, match="2"):
            main([*stored, "--strict", "--out", str(out), option, str(typo)])
        said = capsys.readouterr().err
        assert said.startswith(f"error: argument {option}: no such folder: {typo}; name one") and said.count("\n") == 1
    assert not out.exists()


@pytest.mark.fault(20, 21)
def test_strict_counts_a_row_whose_records_are_all_damaged_and_warns_once(
    stored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "runs/mnist_unsup/paper/kmeans"
    folder.mkdir()
    (folder / "seed00.json").write_text('{"half')
    assert main([*stored, "--strict"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-2:] == ["incomplete: aae: 1 of 10", "incomplete: kmeans: 0 of 10"]
    assert [line.startswith("warning: ") for line in err] == [True, True, False, False]  # two files, a line each


def test_a_row_that_cannot_be_read_is_not_a_row_without_records(
    stored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tmp_path / "runs/mnist_unsup/paper/kmeans"
    row.symlink_to("kmeans")  # to itself: permissions do not bind an administrator
    assert main(stored) == 2
    assert capsys.readouterr().err.startswith(f"error: {row}: cannot be read (")
