"""Pictures of a trained trial and of a suite: what they show, and what is said when one cannot be made."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import checkpoint, figures, pictures, record
from bench.data import load_for
from bench.errors import UserError
from bench.pictures import COLOURS, POINTS, Pictures
from bench.plan import trials
from bench.record import Record
from bench.seeds import derive
from bench.suite import Budget, Published, Suite, Trial, load_suite
from bench.table import prepared
from bench.trained import load
from bench.trainer import Run
from models.noise import Noise

SUITE = """
suite: tiny
title: Tiny
artefact: Ours
data: digits
task: clustering
metric: test.majority
validation: 300
seeds: 0-1
margin: 1.0
batch: 20
budgets:
  paper: {steps: 4, validate: 2, comparable: true}
rows:
  - row: amm
    label: AMM
    method: models.amm:AMM
    config: {nets: digits, components: 12, init_std: 0.1}
    published: {mean: 12.5, std: 1.5, n: 10}
  - {row: kmeans, label: k-means, method: "baselines.kmeans:KMeans", config: {components: 10}}
"""


def _train(trial: Trial, root: Path) -> Path:
    run = Run(trial, torch.device("cpu"))
    run.advance(lambda: False, lambda step, steps: None, lambda run: None)
    path = record.record_path(root, trial)
    record.write(path, record.new_record(trial, "done", result=run.result(), data={"digest": "d", "note": "n"}))
    checkpoint.save(path.with_suffix(".weights"), run.weights())
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite and, below runs, the records and weights of its trials."""
    folder = tmp_path_factory.mktemp("figures")
    (folder / "tiny.yaml").write_text(SUITE)
    for trial in trials(load_suite(folder / "tiny.yaml"), "paper"):
        _train(trial, folder / "runs")
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """t-SNE takes seconds for as many examples as a reader wants to see."""
    monkeypatch.setattr(pictures, "PROJECTED", 100)


def _main(stored: Path, *arguments: str, out: Path, suite: Path | None = None) -> int:
    where = ["--runs", str(stored / "runs"), "--reference", str(stored), "--out", str(out)]
    return figures.main(["--suite", str(suite or stored / "tiny.yaml"), *arguments, *where])


def _changed(folder: Path, old: str, new: str) -> Path:
    """The suite with `old` in it replaced, in a file of the same name."""
    (folder / "tiny.yaml").write_text(SUITE.replace(old, new))
    return folder / "tiny.yaml"


def test_a_trained_method_answers_as_it_did(stored: Path) -> None:
    path = stored / "runs/tiny/paper/amm/seed00.json"
    trained = load(path)
    assert not trained.method.training and trained.trial.row == "amm"
    data = load_for(trained.trial, Noise.seeded(0))
    clusters = trained.method.predict(data.x_test.float() * data.scale)
    counts = np.zeros((12, 10), int)
    np.add.at(counts, (clusters.numpy(), data.y_test.numpy()), 1)
    assert counts.tolist() == trained.record["result"]["confusion"]["predict"]


def test_what_components_drew_is_kept_at_each_scoring_through_a_resume(stored: Path) -> None:
    trained = load(stored / "runs/tiny/paper/amm/seed00.json")
    noise = Noise.seeded(derive("drawn", trained.trial.init_seed))
    with torch.no_grad():
        last = trained.method.sample(torch.arange(12), noise)  # type: ignore[operator]
    assert len(trained.drawn) == len(trained.record["result"]["curve"]) == 2
    assert torch.equal(trained.drawn[1], (last * 255).round().to(torch.uint8))
    assert not torch.equal(trained.drawn[0], trained.drawn[1])

    run, again = (Run(trained.trial, torch.device("cpu")) for _ in range(2))
    run.advance(lambda: run.step == 3, lambda step, steps: None, lambda run: None)
    again.restore(run.state())
    again.advance(lambda: False, lambda step, steps: None, lambda run: None)
    assert all(torch.equal(a, b) for a, b in zip(again.weights()["drawn"], trained.drawn, strict=True))


def test_weights_that_are_missing_damaged_or_of_another_trial(stored: Path, tmp_path: Path) -> None:
    source = stored / "runs/tiny/paper/amm/seed00.json"
    path = tmp_path / "seed00.json"
    path.write_bytes(source.read_bytes())
    weights = path.with_suffix(".weights")
    with pytest.raises(UserError, match="--keep-weights and another --out"):
        load(path)
    content = source.with_suffix(".weights").read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(UserError, match="damaged"):
        load(path)
    weights.write_bytes((source.parent / "seed01.weights").read_bytes())
    with pytest.raises(UserError, match="not of the record"):
        load(path)
    state = checkpoint.read(source.with_suffix(".weights"))
    assert state is not None
    last = next(reversed(state["module"].values()))
    last.add_(1)  # as another run of the same trial with other code might have left it
    checkpoint.save(weights, state)
    with pytest.raises(UserError, match="not of the record"):
        load(path)
    state["module"].popitem()
    checkpoint.save(weights, state)
    with pytest.raises(UserError, match="other code"):
        load(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "seed00.json",
        "seed00.weights",
        "seed00.weights.previous",
    ]


def test_all_pictures_of_amm_and_the_page(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(stored, "--row", "amm", out=tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == "" and Path(out.strip()).name == "README.md" and Path(out.strip()).exists()
    folder = tmp_path / "tiny" / "amm"
    names = ["clusters", "components", "curves", "interpolations", "over_time", "projection", "reconstructions"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["README.md", *(f"{n}.{f}" for n in names for f in ("png", "svg"))]
    )
    page = (folder / "README.md").read_text()
    assert page.startswith("# Tiny: amm, seed 0") and page.count("![") == 7
    counts = record.read(stored / "runs/tiny/paper/amm/seed00.json")["result"]["confusion"]["predict"]
    words = (folder / "clusters.svg").read_text()
    assert all(f">{count}</text>" in words for row in counts for count in row if count)
    first = {file.name: file.read_bytes() for file in folder.glob("*.svg")}
    assert _main(stored, "--row", "amm", out=tmp_path) == 0
    assert {file.name: file.read_bytes() for file in folder.glob("*.svg")} == first  # the same trial, the same bytes


def test_points_in_the_plane_are_scattered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE.replace("digits", "plane").replace("validation: 300", "validation: 1000"))
    (trial,) = trials(load_suite(tmp_path / "tiny.yaml"), "paper", ["amm"], [0])
    trained = load(_train(trial, tmp_path / "runs"))
    assert trained.drawn == []  # what it draws is no image
    assert _main(tmp_path, "--row", "amm", out=tmp_path / "out") == 0
    assert capsys.readouterr().err == ""
    assert sorted(file.stem for file in (tmp_path / "out/tiny/amm").glob("*.png")) == [
        "clusters",
        "components",
        "curves",
        "projection",
    ]
    pictures = Pictures(trained, load_for(trial, Noise.seeded(0)))
    with torch.no_grad():
        left, right = pictures.points().figure.axes
    assert sum(len(points.get_offsets()) for points in left.collections) == len(pictures.x)
    assert [len(points.get_offsets()) for points in right.collections] == [POINTS] * 12


def test_what_a_method_cannot_make_is_said(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(stored, "--row", "kmeans", out=tmp_path) == 0
    assert "reconstructions: baselines.kmeans:KMeans cannot make it" in capsys.readouterr().err
    assert (tmp_path / "tiny/kmeans/clusters.png").exists()
    assert not (tmp_path / "tiny/kmeans/components.png").exists()


def test_the_grid_holds_members_left_and_samples_right(stored: Path) -> None:
    trained = load(stored / "runs/tiny/paper/amm/seed00.json")
    pictures = Pictures(trained, load_for(trained.trial, Noise.seeded(0)))
    with torch.no_grad():
        left, right = (axis.images[0].get_array() for axis in pictures.components().figure.axes)
    assert left.shape == right.shape == (12 * 9 - 1, 10 * 9 - 1)
    for k in range(12):
        members = pictures.x[pictures.clusters == k]
        tile = left[9 * k : 9 * k + 8, :8]
        assert np.allclose(tile, members[0, 0] if len(members) else 1.0)


def test_comparison_draws_published_and_ours(stored: Path, tmp_path: Path) -> None:
    assert _main(stored, out=tmp_path) == 0
    words = (tmp_path / "tiny/comparison.svg").read_text()
    assert all(text in words for text in (">published<", ">our trials<", "AMM, K = 12", "k-means, K = 10"))


def test_comparison_names_another_score_and_counts_what_has_none(stored: Path) -> None:
    suite = load_suite(stored / "tiny.yaml")
    amm, kmeans = suite.rows
    other = replace(amm, published=Published(mean=5.0, source="made up", metric="test.hungarian"))
    failed = [record.new_record(trial, "diverged") for trial in trials(suite, "paper", ["kmeans"], range(2))]
    suite = replace(suite, rows=(other, kmeans))
    figure = figures.comparison(suite, "paper", prepared(suite, "paper", (), failed)[0]).figure
    (axis,), (legend,) = figure.axes, figure.legends
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["k-means, K = 10\n2/2 diverged", "AMM, K = 12\ntest.hungarian"]
    assert [text.get_text() for text in legend.get_texts()] == ["published"]


def _scored(suite: Suite, budget: str, row: str, *values: float) -> list[Record]:
    """A record for each score, of the seeds from 0 on."""
    planned = trials(suite, budget, [row], range(len(values)))
    points = [{"step": 4, "test": {"majority": value}} for value in values]
    results = [{"last": point, "weights_sha256": f"{row} {budget} {point}"} for point in points]
    return [record.new_record(trial, "done", result=one) for trial, one in zip(planned, results, strict=True)]


def test_comparison_names_the_budget_of_a_quick_run(stored: Path) -> None:
    suite = load_suite(stored / "tiny.yaml")
    suite = replace(suite, budgets={**suite.budgets, "quick": Budget(steps=2, validate=2, label="quick")})
    shipped = [*_scored(suite, "quick", "amm", 40.0), *_scored(suite, "paper", "kmeans", 20.0)]
    drawn = figures.comparison(suite, "paper", prepared(suite, "paper", shipped, ())[0])
    labels = [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()]
    assert labels == ["k-means, K = 10", "AMM, K = 12\nquick budget"]
    assert "AMM, K = 12: quick budget" in drawn.alt and "k-means, K = 10:" not in drawn.alt
    mine = _scored(suite, "quick", "kmeans", 20.0)
    drawn = figures.comparison(suite, "quick", prepared(suite, "quick", (), mine)[0])
    assert "k-means, K = 10: quick budget" in drawn.alt


def test_comparison_draws_of_each_row_yours_or_else_the_reference(stored: Path, tmp_path: Path) -> None:
    suite = load_suite(stored / "tiny.yaml")
    shipped = [*_scored(suite, "paper", "amm", 40.0, 44.0), *_scored(suite, "paper", "kmeans", 30.0)]
    mine = _scored(suite, "paper", "kmeans", 20.0, 22.0)
    figure = figures.comparison(suite, "paper", prepared(suite, "paper", shipped, mine)[0]).figure
    (axis,), (legend,) = figure.axes, figure.legends
    dots = {tuple(line.get_xdata()) for line in axis.lines if line.get_color() == COLOURS[8]}
    assert dots == {(20.0, 22.0), (40.0, 44.0)}  # the reference's 30 is in no mean of yours
    assert {text.get_text() for text in legend.get_texts()} == {"published", "reference trials", "our trials"}
    for root, records in ((tmp_path / "reference", shipped[:2]), (tmp_path / "runs", mine)):
        for one in records:
            record.write(record.record_path(root, Trial.from_json(one["trial"])), one)
    where = ["--runs", str(tmp_path / "runs"), "--reference", str(tmp_path / "reference"), "--out", str(tmp_path)]
    assert figures.main(["--suite", str(stored / "tiny.yaml"), *where]) == 0
    words = (tmp_path / "tiny/comparison.svg").read_text()
    assert all(text in words for text in ("AMM, K = 12", "k-means, K = 10", ">reference trials<", ">our trials<"))


def test_a_curve_of_one_scoring_is_a_dot(stored: Path) -> None:
    suite = load_suite(stored / "tiny.yaml")
    one = record.read(stored / "runs/tiny/paper/kmeans/seed00.json")
    (line,) = figures.learning_curves(suite, "kmeans", "paper", [one]).figure.axes[0].lines
    assert len(line.get_xdata()) == 1 and line.get_marker() == "o"


@pytest.mark.parametrize(("metric", "said"), [("test.majority", "test.majority, %"), ("test.nmi", "test.nmi")])
def test_only_an_error_is_in_percent(stored: Path, metric: str, said: str) -> None:
    suite = replace(load_suite(stored / "tiny.yaml"), metric=metric)
    one = record.read(stored / "runs/tiny/paper/kmeans/seed00.json")
    curves = figures.learning_curves(suite, "kmeans", "paper", [one]).figure
    rows = figures.comparison(suite, "paper", prepared(suite, "paper", (), [one])[0]).figure
    assert curves.axes[0].get_ylabel() == rows.axes[0].get_xlabel() == said


def test_curves_of_two_seeds_have_a_mean(stored: Path) -> None:
    suite = load_suite(stored / "tiny.yaml")
    records = [record.read(stored / f"runs/tiny/paper/amm/seed0{seed}.json") for seed in (0, 1)]
    axis = figures.learning_curves(suite, "amm", "paper", records).figure.axes[0]
    one, two, mean = (each.get_ydata() for each in axis.lines)
    assert np.allclose(mean, (np.array(one) + np.array(two)) / 2) and len(mean) == 2
    assert axis.get_title() == "AMM: 2 seeds"


def test_curves_of_a_shortened_run_say_so(stored: Path) -> None:
    suite = load_suite(stored / "tiny.yaml")
    suite = replace(suite, budgets={**suite.budgets, "quick": Budget(steps=4, label="quick")})
    one = record.read(stored / "runs/tiny/paper/kmeans/seed00.json")
    picture = figures.learning_curves(suite, "kmeans", "quick", [one])
    assert picture.figure.axes[0].get_title() == "k-means, quick budget: 1 seed" and "quick budget" in picture.alt


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--row", "nothing"], "unknown row 'nothing'"),
        (["--row", "amm", "--seed", "7"], "seed07.json: no such record; run it first: python -m bench.run --suite"),
        (["--budget", "long"], "unknown budget 'long'"),
        (["--seed", "0"], "--seed: goes with --row, whose trained trial is drawn"),
        (["--data-root", "."], "--data-root: goes with --row, whose trained trial is drawn"),
    ],
)
def test_bad_input_is_one_line(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert _main(stored, *arguments, out=tmp_path) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_weights_of_another_configuration_are_not_drawn_under_todays_title(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = _changed(tmp_path, "components: 12", "components: 13")
    assert _main(stored, "--row", "amm", out=tmp_path / "out", suite=suite) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "seed00.json: is of another configuration than the suite plans now; run the trial again" in said
    assert not (tmp_path / "out").exists()


def test_a_label_may_hold_a_dollar(stored: Path, tmp_path: Path) -> None:
    suite = _changed(tmp_path, "label: k-means", r"label: 'k-means, $\foo{$'")
    assert _main(stored, out=tmp_path / "out", suite=suite) == 0
    assert any(r"k-means, $\foo{$" in path.read_text() for path in (tmp_path / "out").rglob("*.svg"))


def test_curves_of_a_score_that_a_row_lacks_are_one_line(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = _changed(tmp_path, "test.majority", "test.bayes_majority")
    assert _main(stored, "--row", "kmeans", out=tmp_path / "out", suite=suite) == 2
    assert "records of row kmeans have no test.bayes_majority; name a metric" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_suite_without_records(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--suite", str(stored / "tiny.yaml"), "--runs", str(tmp_path), "--reference", str(tmp_path)]
    assert figures.main([*arguments, "--out", str(tmp_path)]) == 3
    assert capsys.readouterr().err.startswith("tiny: no result under paper")
    (trial,) = trials(load_suite(stored / "tiny.yaml"), "paper", ["amm"], [0])
    record.write(record.record_path(tmp_path, trial), record.new_record(trial, "interrupted"))
    assert figures.main([*arguments, "--out", str(tmp_path)]) == 3
    assert not (tmp_path / "tiny" / "README.md").exists()


@pytest.mark.parametrize(("code", "drawn", "fails"), [(3, 8, False), (2, 1, True)])
def test_make_goes_on_to_the_next_suite_where_one_has_no_result(
    tmp_path: Path, code: int, drawn: int, fails: bool
) -> None:
    """The command of every suite but the first one, which ends with this code, draws."""
    for name in ("pyproject.toml", "requirements.lock"):
        (tmp_path / name).touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\necho "$4" >>asked\ntest "$4" != mnist_unsup || exit {code}\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    (tmp_path / "results/runs/mnist_unsup").mkdir(parents=True)
    makefile = Path(figures.__file__).parent.parent / "Makefile"
    done = subprocess.run(["make", "-C", tmp_path, "-f", makefile, "figures"], capture_output=True, timeout=60)
    assert (done.returncode != 0) == fails, done.stderr
    assert len((tmp_path / "asked").read_text().splitlines()) == drawn
