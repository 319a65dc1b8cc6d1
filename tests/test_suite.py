"""Suites: a good file becomes trials, each mistake becomes one line with its place, and digests follow the fields."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args

import pytest

from bench import metrics
from bench.errors import UserError
from bench.methods import method_class
from bench.plan import build_config, trials
from bench.seeds import derive, parse_seeds, spans
from bench.suite import Split, Suite, Trial, load_suite, names
from models.method import Method

SPLITS = get_args(Split)
GOOD = """suite: toy
title: "A toy"
artefact: ours
data: blobs
task: clustering
metric: test.majority
validation: 200
labels: 20
seeds: 0-2
margin: 1
batch: 100
notes: ["made up"]
budgets:
  quick: {steps: 50, validate: 10, label: "quick: 50 steps, not comparable"}
  paper: {epochs: 3, comparable: true}
rows:
  - row: one
    label: One
    method: models.toy_for_tests:Toy
    config: {lr: 1e-4, widths: [3, 4]}
    published: {mean: 3, std: 0.39, n: 10, source: "Table 1"}
  - row: two
    label: Two
    method: models.toy_for_tests:Toy
    batch: 50
    budgets:
      quick: {epochs: 2}
    departures: ["smaller nets"]
"""


@dataclass(frozen=True)
class ToyConfig:
    lr: float = 1
    components: int = 10
    widths: tuple[int, ...] = (8, 8)
    prior: Literal["fixed", "learned"] = "fixed"
    penalty: float | None = None
    average: bool = True

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError("components must be at least 1")


class Toy(Method):
    Config = ToyConfig


class Taught(Toy):
    needs_labels = True


@dataclass(frozen=True)
class OddConfig:
    limit: float = float("inf")


class Odd(Method):
    Config = OddConfig


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("models.toy_for_tests")
    vars(module).update(Toy=Toy, Taught=Taught, Odd=Odd, Method=Method, number=3)
    sources = {
        "blobs": SimpleNamespace(n_train=1200, n_test=300, n_classes=10, n_extra=700, splits=SPLITS),
        "balls": SimpleNamespace(n_train=60, n_test=20, n_classes=2, n_extra=0, splits=("random",)),
    }
    monkeypatch.setitem(sys.modules, "models.toy_for_tests", module)
    monkeypatch.setattr("bench.plan.SOURCES", sources)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_suite(old: str = "", new: str = "") -> Path:
        assert old in GOOD
        path = tmp_path / "toy.yaml"
        path.write_text(GOOD.replace(old, new, 1) if old else GOOD, encoding="utf-8")
        return path

    return write_suite


@pytest.fixture
def suite(write: Callable[..., Path]) -> Suite:
    return load_suite(write())


def test_a_good_suite_is_read(suite: Suite) -> None:
    assert (suite.suite, suite.margin, suite.seeds, suite.notes) == ("toy", 1.0, (0, 1, 2), ("made up",))
    assert suite.budgets["quick"].steps == 50
    assert (suite.budgets["quick"].comparable, suite.budgets["paper"].comparable) == (False, True)
    one, two = suite.rows
    assert one.published is not None
    assert (one.published.mean, one.published.n, one.published.metric) == (3.0, 10, None)
    assert (two.published, two.departures) == (None, ("smaller nets",))


def test_trials_are_rows_by_seeds(suite: Suite) -> None:
    plan = trials(suite, "paper")
    assert [(t.row, t.seed) for t in plan] == [(row, seed) for row in ("one", "two") for seed in range(3)]
    assert [(t.row, t.seed) for t in trials(suite, "paper", only=["two"], seeds=[7, 3])] == [("two", 7), ("two", 3)]


@pytest.mark.parametrize(
    ("row", "budget", "batch", "steps", "validate"),
    [
        ("one", "quick", 100, 50, 10),
        ("one", "paper", 100, 30, 10),
        ("two", "quick", 50, 40, 10),
        ("two", "paper", 50, 60, 20),
    ],
)
def test_budgets_are_resolved_to_steps(
    suite: Suite, row: str, budget: str, batch: int, steps: int, validate: int
) -> None:
    trial = trials(suite, budget, [row])[0]
    assert (trial.batch, trial.steps, trial.validate) == (batch, steps, validate)


def test_steps_of_a_row_replace_epochs_of_the_suite(write: Callable[..., Path]) -> None:
    changed = load_suite(write("quick: {epochs: 2}", "paper: {steps: 7, validate: 2}"))
    trial = trials(changed, "paper", ["two"])[0]
    assert (trial.steps, trial.validate) == (7, 2)


def test_split_balance_labels_and_precision_reach_the_trial(write: Callable[..., Path]) -> None:
    plain = trials(load_suite(write()), "quick", seeds=[0])
    assert [(t.split, t.labels, t.balanced, t.precision) for t in plain] == [("random", 20, False, "fp32")] * 2
    path = write("labels: 20\n", "split: ali\nlabels: 30\nbalanced: true\n")
    path.write_text(path.read_text().replace("batch: 50", "precision: bf16"), encoding="utf-8")
    one, two = trials(load_suite(path), "quick", seeds=[0])
    assert [(t.split, t.labels, t.balanced) for t in (one, two)] == [("ali", 30, True)] * 2
    assert (one.precision, two.precision) == ("fp32", "bf16")


@pytest.mark.parametrize(
    ("split", "examples"), [("random", 1000), ("whole", 1500), ("ali", 1000), ("train", 1200), ("extra", 1700)]
)
def test_an_epoch_has_the_unlabelled_examples_of_the_split(
    write: Callable[..., Path], split: str, examples: int
) -> None:
    """1,200 training examples, 200 of them held out, 300 for testing and 700 further ones."""
    labels = 0 if split == "whole" else 20
    trial = trials(load_suite(write("labels: 20\n", f"split: {split}\nlabels: {labels}\n")), "paper", ["one"])[0]
    assert (trial.steps, trial.validate) == (3 * examples // 100, examples // 100)


@pytest.mark.parametrize("override", ["", "batch: 5"])
@pytest.mark.parametrize("budget", ["", "batch: 8"])
@pytest.mark.parametrize("row", ["", "batch: 40"])
def test_the_batch_is_the_overrides_else_the_budgets_else_the_rows_else_the_suites(
    write: Callable[..., Path], override: str, budget: str, row: str
) -> None:
    path = write("paper: {epochs: 3,", f"paper: {{epochs: 3, {budget + ',' if budget else ''}")
    own = f"    {row}\n" if row else ""
    text = path.read_text().replace("    batch: 50\n", own)
    text = text.replace("      quick: {epochs: 2}", f"      paper: {{{override}}}")
    path.write_text(text, encoding="utf-8")
    batch = 5 if override else 8 if budget else 40 if row else 100
    one, two = trials(load_suite(path), "paper", seeds=[0])
    assert (two.batch, two.steps, two.validate) == (batch, 3000 // batch, 1000 // batch)
    assert one.batch == (8 if budget else 100)  # an override is of its row alone
    assert trials(load_suite(path), "quick", ["one"])[0].batch == 100  # and a batch of its budget alone


@pytest.mark.parametrize("override", ["", "batch_labelled: 5"])
@pytest.mark.parametrize("budget", ["", "batch_labelled: 8"])
@pytest.mark.parametrize("row", ["", "batch_labelled: 40"])
def test_labelled_examples_of_a_step_are_as_many_as_said_or_as_the_unlabelled(
    write: Callable[..., Path], override: str, budget: str, row: str
) -> None:
    path = write("paper: {epochs: 3,", f"paper: {{epochs: 3, {budget + ',' if budget else ''}")
    text = path.read_text().replace("    batch: 50\n", f"    batch: 50\n    {row}\n" if row else "    batch: 50\n")
    path.write_text(text.replace("      quick: {epochs: 2}", f"      paper: {{{override}}}"), encoding="utf-8")
    one, two = trials(load_suite(path), "paper", seeds=[0])
    assert two.batch_labelled == (5 if override else 8 if budget else 40 if row else None)
    assert one.batch_labelled == (8 if budget else None) and (one.batch, two.batch) == (100, 50)


def test_a_labelled_batch_needs_labels(write: Callable[..., Path]) -> None:
    path = write("    batch: 50\n", "    batch: 50\n    labels: 0\n    batch_labelled: 5\n")
    with pytest.raises(UserError, match="batch_labelled 5 without labelled examples"):
        trials(load_suite(path), "quick", seeds=[0])


def test_labels_of_a_row_replace_the_suites(write: Callable[..., Path]) -> None:
    path = write("    batch: 50\n", "    batch: 50\n    labels: 1000\n    batch_labelled: 50\n")
    one, two = trials(load_suite(path), "quick", seeds=[0])
    assert (one.labels, two.labels) == (20, 1000)
    assert two.batch_labelled is None  # as many as unlabelled: said or not, it is the same trial
    path.write_text(path.read_text().replace("labels: 1000", "labels: 1001"), encoding="utf-8")
    line = path.read_text().splitlines().index("    labels: 1001") + 1
    with pytest.raises(
        UserError, match=f"{path}:{line}: labels: too many; blobs has 1200 training examples, 200 held out"
    ):
        trials(load_suite(path), "quick")


def test_what_no_row_said_stays_out_of_the_digest(suite: Suite) -> None:
    trial = trials(suite, "quick")[0]
    assert replace(trial, batch_labelled=7).digest != trial.digest
    told = {key: value for key, value in trial.to_json().items() if key != "batch_labelled"}
    assert type(trial).from_json(told).digest == trial.digest


def test_a_method_that_learns_from_labels_needs_some(write: Callable[..., Path]) -> None:
    path = write("models.toy_for_tests:Toy", "models.toy_for_tests:Taught")
    assert trials(load_suite(path), "quick")[0].method == "models.toy_for_tests:Taught"
    path.write_text(path.read_text().replace("labels: 20", "labels: 0"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        trials(load_suite(path), "quick")
    assert str(caught.value) == f"{path}:19: row one: Taught learns from labels; give the suite labels: N"
    assert trials(load_suite(path), "quick", ["two"])  # Toy can do without


def test_a_method_that_learns_from_labels_has_a_component_for_each_class(write: Callable[..., Path]) -> None:
    path = write("models.toy_for_tests:Toy", "models.toy_for_tests:Taught")
    path.write_text(path.read_text().replace("{lr: 1e-4,", "{components: 7,"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        trials(load_suite(path), "quick")
    assert (
        str(caught.value)
        == f"{path}:19: row one: components: 7, but blobs has labels of 10 classes; give at least as many"
    )
    assert trials(load_suite(path), "quick", ["two"])[0].config["components"] == 10


def test_only_classes_to_tell_apart_fix_the_number_of_components(write: Callable[..., Path]) -> None:
    path = write("{lr: 1e-4,", "{components: 7,")
    assert trials(load_suite(path), "quick")[0].config["components"] == 7
    text = path.read_text().replace("task: clustering", "task: classification").replace("test.majority", "test.error")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        trials(load_suite(path), "quick")
    assert (
        str(caught.value) == f"{path}:19: row one: components: 7, but blobs has 10 classes to tell apart; give as many"
    )
    assert trials(load_suite(path), "quick", ["two"])[0].config["components"] == 10


def test_config_is_resolved_with_defaults(suite: Suite) -> None:
    trial = trials(suite, "quick")[0]
    assert trial.config == {
        "lr": 1e-4,
        "components": 10,
        "widths": [3, 4],
        "prior": "fixed",
        "penalty": None,
        "average": True,
    }
    assert isinstance(trial.config["lr"], float)
    assert build_config(trial) == ToyConfig(lr=1e-4, widths=(3, 4))


def test_a_value_equal_to_the_default_makes_the_same_trial(write: Callable[..., Path]) -> None:
    digests = [
        trials(load_suite(write("{lr: 1e-4, widths: [3, 4]}", config)), "quick")[0].digest
        for config in ("{}", "{lr: 1}", "{lr: 1.0, average: true}", "{lr: 2}")
    ]
    assert digests[0] == digests[1] == digests[2] != digests[3]


@pytest.mark.parametrize("task", ["clustering", "classification"])
def test_every_score_of_a_record_may_be_the_metric(suite: Suite, task: str) -> None:
    answers = {"predict": [0, 1], "bayes": [0, 1]}
    scores = metrics.evaluate(task, answers, [0, 1], answers, [0, 1], 2, 2, [[[1.0, 0.0], [0.0, 1.0]]] * 2)
    for metric in (f"{split}.{name}" for split, found in scores.items() for name in found):
        assert replace(suite, task=task, metric=metric).metric == metric  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "published"),
    [
        ("test.majority", "test.hungarian"),
        ("test.hungarian", "test.bayes_validation_mapping"),
        ("test.nmi", "test.bayes_nmi"),  # with a margin of its own unit
    ],
)
def test_a_row_may_be_compared_by_another_score_of_the_same_unit(
    write: Callable[..., Path], metric: str, published: str
) -> None:
    path = write("test.majority", metric)
    path.write_text(path.read_text().replace("{mean: 3,", f"{{metric: {published}, mean: 3,"))
    suite = load_suite(path)
    assert (suite.metric, suite.rows[0].published and suite.rows[0].published.metric) == (metric, published)


@pytest.mark.parametrize(
    ("old", "new", "line", "part"),
    [
        ("title:", "titel:", 2, "unknown key 'titel'; did you mean 'title'?"),
        ("title:", "suite:", 2, "duplicate key"),
        ('title: "A toy"\n', "", 1, "the key 'title' is missing"),
        ("suite: toy", "suite: toys", 1, "must be named like its file, 'toy'"),
        ("suite: toy", "suite: To y", 1, "use a-z, 0-9 and _ only"),
        ("title:", "title:\t", 2, "use spaces"),
        ("task: clustering", "task: cluster", 5, "expected one of clustering, classification"),
        ("test.majority", "majority", 6, "metric must look like test.majority"),
        ("test.majority", "test.foo", 6, "metric must look like test.majority (or hungarian, "),
        ("test.majority", "test.error", 6, "got 'test.error'"),  # of the other task
        ("test.majority", "test.mapping", 6, "got 'test.mapping'"),
        ("{mean: 3,", "{metric: test.ari, mean: 3,", 21, "the margin judges test.majority, not 'test.ari'; choose"),
        ("{mean: 3,", "{metric: test.bayes_nmi, mean: 3,", 21, "not 'test.bayes_nmi'"),
        ("{mean: 3,", "{metric: step, mean: 3,", 21, "with one of majority, hungarian, validation_mapping"),
        ("validation: 200", "validation: -1", 7, "validation must be at least 1"),
        ("seeds: 0-2", "seeds: 0,1,0", 9, "seed 0 stands twice"),
        ("seeds: 0-2", "seeds: [0, 1]", 9, "expected seeds like 0-9"),
        ("seeds: 0-2", "seeds: true", 9, "expected seeds like 0-9"),
        ("labels: 20", "labels: -1", 8, "labels must be at least 0"),
        ("labels: 20", "split: alli", 8, "split: expected one of random, whole, ali, train, extra"),
        ("labels: 20", "balanced: 1", 8, "balanced: expected true or false"),
        ("margin: 1", "margin: 0", 10, "margin must be above 0"),
        ("margin: 1", "margin: true", 10, "expected a number, got True"),
        ("batch: 100", "batch: 1e2", 11, "expected a whole number, got 100.0"),
        ("notes: [", "notes: [3, ", 12, "expected text, got 3"),
        ("steps: 50,", "steps: 0,", 14, "steps must be at least 1"),
        ("steps: 50,", "steps: 50, epochs: 1,", 14, "exactly one of steps and epochs"),
        ("steps: 50, ", "", 14, "exactly one of steps and epochs"),
        (", comparable: true", "", 15, "needs a label"),
        ("paper: {", "paper: {name: other, ", 15, "unknown key 'name'; choices: steps, epochs, "),
        ("paper: {epochs", "paper 2: {epochs", 15, "use a-z, 0-9 and _ only"),
        ("row: one", "row: ../one", 17, "use a-z, 0-9 and _ only"),
        ("{mean: 3,", "{men: 3,", 21, "did you mean 'mean'?"),
        ("{mean: 3,", "{mean: '3',", 21, "expected a number, got '3'"),
        ("std: 0.39", "std: -0.39", 21, "std must be at least 0, got -0.39"),
        ("n: 10", "n: 0", 21, "n must be at least 1, got 0"),
        ("row: two", "row: one", 22, "row one stands twice"),
        ("steps: 50,", "steps: 50, batch: 0,", 14, "batch must be at least 1"),
        ("batch: 50", "batch: 0", 25, "batch must be at least 1"),
        ("batch: 50", "precision: fp16", 25, "precision: expected one of fp32, tf32, bf16"),
        ("quick: {epochs: 2}", "quick: {batch: 0}", 27, "batch must be at least 1"),
        ("quick: {epochs: 2}", "quik: {epochs: 2}", 27, "unknown budget 'quik'; did you mean 'quick'?"),
        ("quick: {epochs: 2}", "quick: {epochs: 2, steps: 2}", 27, "exclude each other"),
        ("quick: {epochs: 2}", "quick: 2", 27, "expected a mapping"),
        ('["smaller nets"]', "smaller nets", 28, "expected a list"),
        (GOOD[GOOD.index("rows:") :], "rows: []\n", 16, "at least one"),
        (GOOD[GOOD.index("budgets:") : GOOD.index("rows:")], "budgets: []\n", 13, "expected a mapping"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_with_its_place(
    write: Callable[..., Path], old: str, new: str, line: int, part: str
) -> None:
    path = write(old, new)
    with pytest.raises(UserError) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "line", "part"),
    [
        ("data: blobs", "data: blob", 4, "unknown data 'blob'; did you mean 'blobs'? choices: blobs, balls"),
        ("data: blobs", "data: balls", 7, "too many; balls has 60 training examples, 200 held out"),
        (
            "labels: 20",
            "labels: 20\nsplit: whole",
            8,
            "labels: the split whole scores every example, those with labels too",
        ),
        ("labels: 20", "labels: 2000", 8, "too many; blobs has 1200 training examples, 200 held out"),
        ("data: blobs", "data: balls\nsplit: ali", 5, "data balls: unknown split 'ali'; choices: random"),
        ("steps: 50,", "steps: 50, batch: 1001,", 19, "row one: a batch of 1001 is more than the 1000 training"),
        ("batch: 100", "batch: 1001", 19, "row one: a batch of 1001 is more than the 1000 training examples"),
        ("models.toy_for_tests:Toy", "os:system", 19, "must look like models.file:Class"),
        ("models.toy_for_tests:Toy", "models:Toy", 19, "must look like models.file:Class"),
        ("models.toy_for_tests:Toy", "models.methd:Toy", 19, "did you mean 'models.method'?"),
        ("models.toy_for_tests:Toy", "models.method.x:Toy", 19, "unknown module 'models.method.x'"),
        ("models.toy_for_tests:Toy", "baselines.nothing:Toy", 19, "unknown module 'baselines.nothing'"),
        ("models.toy_for_tests:Toy", "models.toy_for_tests:Toi", 19, "did you mean 'Toy'?"),
        ("models.toy_for_tests:Toy", "models.toy_for_tests:number", 19, "is not a Method with a Config dataclass"),
        ("models.toy_for_tests:Toy", "models.method:Method", 19, "is not a Method with a Config dataclass"),
        ("{lr: 1e-4,", "{lr: fast,", 20, "expected a number, got 'fast'"),
        ("{lr: 1e-4,", "{componets: 4,", 20, "unknown key 'componets'; did you mean 'components'?"),
        ("{lr: 1e-4,", "{prior: learnt,", 20, "expected one of fixed, learned"),
        ("{lr: 1e-4,", "{average: no,", 20, "expected true or false"),
        ("{lr: 1e-4,", "{components: 0,", 20, "components must be at least 1"),
        ("[3, 4]", "[3, 4.5]", 20, "expected a whole number, got 4.5"),
    ],
)
def test_a_mistake_that_the_method_or_the_data_reveals(
    write: Callable[..., Path], old: str, new: str, line: int, part: str
) -> None:
    path = write(old, new)
    with pytest.raises(UserError) as caught:
        trials(load_suite(path), "quick")
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_default_that_json_cannot_hold_is_refused(write: Callable[..., Path]) -> None:
    path = write("models.toy_for_tests:Toy\n    config: {lr: 1e-4, widths: [3, 4]}", "models.toy_for_tests:Odd")
    with pytest.raises(UserError, match=":19: row one: a default of the method's Config is not plain JSON"):
        trials(load_suite(path), "quick")


def test_a_method_whose_own_import_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "models.toy_for_tests")
    monkeypatch.setattr(
        "importlib.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name="faiss"))
    )
    with pytest.raises(UserError, match="models.toy_for_tests needs the module 'faiss', which is not installed"):
        method_class("models.toy_for_tests:Toy")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("from models.method import Methd", "ImportError: cannot import name 'Methd' from 'models.method'"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(mine.py:1\)"),
        ("class Mine(:", r"SyntaxError: invalid syntax \(mine.py, line 1\)"),
        ("raise SystemExit('no')", "SystemExit: no"),
    ],
)
def test_a_method_file_that_cannot_be_imported_is_one_line(
    source: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import baselines

    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=f"row one: baselines.mine cannot be imported: {part}") as caught:
        method_class("baselines.mine:Mine", "row one")
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_that_cannot_be_made_is_one_line(write: Callable[..., Path]) -> None:
    @dataclass(frozen=True)
    class Wrong(ToyConfig):
        lr: "Nope" = 1  # type: ignore[name-defined] # noqa: F821, UP037

    @dataclass(frozen=True)
    class Divides(ToyConfig):
        def __post_init__(self) -> None:
            raise ZeroDivisionError("of the Config's own")

    for config, part in (
        (Wrong, "NameError: name 'Nope' is not defined"),
        (Divides, "ZeroDivisionError: of the Config's own"),
    ):
        toy = sys.modules["models.toy_for_tests"]
        vars(toy)["Broken"] = type("Broken", (toy.Toy,), {"Config": config})
        path = write("models.toy_for_tests:Toy\n    config: {lr: 1e-4, widths: [3, 4]}", "models.toy_for_tests:Broken")
        with pytest.raises(UserError, match=f":19: row one: .* cannot be made: {part}"):
            trials(load_suite(path), "quick")


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ({"budget": "papr"}, "unknown budget 'papr'; did you mean 'paper'?"),
        ({"only": ["tow"]}, "unknown row 'tow'; did you mean 'two'? choices: one, two"),
        ({"seeds": [1, 1]}, "seed 1 stands twice"),
        ({"seeds": []}, "no seed is given"),
    ],
)
def test_a_wrong_choice_lists_the_right_ones(suite: Suite, choice: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part.replace("?", r"\?")):
        trials(suite, **{"budget": "quick", **choice})


def test_an_unknown_suite_lists_the_shipped_ones(monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> None:
    monkeypatch.setattr("bench.suite.SUITES", write().parent)
    assert names() == ["toy"]
    assert load_suite("toy").title == "A toy"
    with pytest.raises(UserError, match=r"unknown suite 'toi'; did you mean 'toy'\? choices: toy"):
        load_suite("toi")
    with pytest.raises(UserError, match="cannot be read"):
        load_suite("absent.yaml")


CHANGES: dict[str, Any] = {
    "suite": "other",
    "row": "other",
    "budget": "other",
    "seed": 9,
    "method": "models.other:Toy",
    "config": {"lr": 2.0},
    "data": "other",
    "validation": 1,
    "labels": 1,
    "task": "classification",
    "batch": 1,
    "steps": 1,
    "validate": 1,
}
LATER: dict[str, Any] = {
    "split": "train",
    "balanced": True,
    "precision": "bf16",
    "batch_labelled": 5,
}  # fields that trials got since
FIXED = Trial("s", "r", "b", 0, "models.m:M", {"lr": 0.5}, "d", 5, 0, "clustering", 4, 3, 2)


def test_every_field_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = CHANGES | LATER
    assert set(changes) == set(FIXED.to_json())
    digests = {replace(FIXED, **{key: value}).digest for key, value in changes.items()} | {FIXED.digest}
    monkeypatch.setattr("bench.suite.PROTOCOL", 2)
    assert len(digests | {FIXED.digest}) == len(changes) + 2


@pytest.mark.parametrize("field", ["split", "precision"])
def test_each_value_of_a_later_field_has_a_digest_of_its_own(field: str) -> None:
    values = {"split": SPLITS, "precision": ("fp32", "tf32", "bf16")}[field]
    changes: list[dict[str, Any]] = [{field: value} for value in values]
    assert len({replace(FIXED, **change).digest for change in changes}) == len(values)


def test_a_trial_from_before_a_field_existed_is_read_with_its_default_and_the_same_digest() -> None:
    old = {key: value for key, value in FIXED.to_json().items() if key not in LATER}
    text = json.dumps({"protocol": 1, **old}, sort_keys=True, separators=(",", ":"))  # the digest as it was then
    back = Trial.from_json(json.loads(json.dumps(old)))
    assert (back.split, back.balanced, back.precision) == ("random", False, "fp32")
    assert back == FIXED
    assert back.digest == FIXED.digest == sha256(text.encode()).hexdigest()


def test_the_digest_is_stable() -> None:
    assert FIXED.digest == "4cbb87fbab33d70a7d06bbb4c732468d76a956b440e7ebba7fd9395fe1b35d9a"
    assert replace(FIXED, config=dict(reversed(list(FIXED.config.items())))).digest == FIXED.digest


def test_rows_share_the_split_and_nothing_else(suite: Suite) -> None:
    plan = trials(suite, "quick")
    for seed in range(3):
        one, two = (trial for trial in plan if trial.seed == seed)
        assert one.split_seed == two.split_seed == derive("split", "blobs", seed)
    assert len({trial.init_seed for trial in plan}) == len(plan)
    assert len({trial.split_seed for trial in plan}) == 3


def test_a_trial_survives_json(suite: Suite) -> None:
    for trial in trials(suite, "paper"):
        back = Trial.from_json(json.loads(json.dumps(trial.to_json())))
        assert back == trial
        assert back.digest == trial.digest


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"seeds": 1}, "record: unknown key 'seeds'; did you mean 'seed'"),
        ({"seed": "1"}, "record: seed: expected a whole number, got '1'"),
        ({"task": "sorting"}, "record: task: expected one of"),
        ({"seed": None}, "record: seed: expected a whole number"),
        ({"split": "half"}, "record: split: expected one of"),
        ({"precision": "fp8"}, "record: precision: expected one of"),
        ({"balanced": 1}, "record: balanced: expected true or false"),
    ],
)
def test_a_damaged_trial_is_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Trial.from_json({**FIXED.to_json(), **change}, "record")


def test_a_trial_with_a_missing_key_is_refused() -> None:
    for key in CHANGES:
        rest = {name: value for name, value in FIXED.to_json().items() if name != key}
        with pytest.raises(UserError, match=f"the key '{key}' is missing"):
            Trial.from_json(rest)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3", [0, 1, 2, 3]), ("0,3,7", [0, 3, 7]), (5, [5]), ("5", [5]), ("0-1, 8", [0, 1, 8]), ("7-7", [7])],
)
def test_seeds_are_parsed(text: str | int, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds
    assert parse_seeds(spans(reversed(seeds))) == sorted(seeds)


def test_seeds_as_spans() -> None:
    assert spans([5, 0, 1, 2, 7, 6, 9]) == "0-2,5-7,9" and spans([3]) == "3" and spans([]) == ""


@pytest.mark.fault(19)
@pytest.mark.parametrize("text", ["", "a", "-3", -3, "3-1", "0,0", "0-3,2", "1,,2", "0-999999", "1.5", True, "\u0663"])
def test_malformed_seeds_are_refused(text: Any) -> None:
    with pytest.raises(UserError, match="--seeds: "):
        parse_seeds(text, "--seeds")


def test_derived_seeds_never_change() -> None:
    assert derive("split", "mnist", 0) == 1_048_794_162_725_389_702
    assert derive("init", "toy", "one", 3) == 649_147_415_116_581_735
    different = [derive(1), derive("1"), derive("a", "b"), derive("ab"), derive('a", "b'), derive()]
    assert len(set(different)) == len(different)
    assert all(0 <= derive("x", n) < 2**63 for n in range(1000))


def test_listing_suites_needs_no_torch() -> None:
    code = "import sys, bench.suite as s; [s.load_suite(n) for n in s.names()]; print('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_file_with_another_ending_is_no_suite(tmp_path: Path) -> None:
    for name in ("suite.yml", str(tmp_path / "suite")):
        with pytest.raises(UserError, match=rf"suite {name}: the file of a suite ends in \.yaml"):
            load_suite(name)
