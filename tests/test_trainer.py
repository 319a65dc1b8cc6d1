"""The loop: what a method is given and when, what is scored, and that a restored run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from baselines.imsat import IMSATConfig
from bench import checkpoint, trainer
from bench.errors import Diverged
from bench.methods import method_class
from bench.suite import Trial
from bench.trainer import Run, weights_digest
from models.method import Batch

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("toy", "more_toys")


@pytest.fixture
def more_toys(toy: ModuleType) -> None:
    """Beside Toy: Two, with a second classifier that calls everything class 1, and Taught, which learns from labels."""

    class Two(toy.Toy):  # type: ignore[misc, name-defined]
        def predictions(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            answer = self.predict(x)
            return {"predict": answer, "bayes": torch.ones_like(answer)}

    class Taught(Two):
        def update(self, batch: Batch) -> dict[str, torch.Tensor]:
            losses = super().update(batch)
            error = torch.nn.functional.cross_entropy(self.map(batch.x_labelled.flatten(1)), batch.y_labelled)
            self.adam.zero_grad()
            error.backward()
            self.adam.step()
            return {**losses, "error": error.detach()}

    vars(toy).update(Two=Two, Taught=Taught)


class After:
    """Asks to stop once `steps` steps were made in this life of the run."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _advance(run: Run, steps: int | None = None) -> bool:
    return run.advance((lambda: False) if steps is None else After(steps), lambda step, of: None, lambda run: None)


def _finished(trial: Trial) -> Run:
    run = Run(trial, CPU)
    assert _advance(run)
    return run


def test_steps_are_counted_and_progress_is_told_each(make_trial: Callable[..., Trial]) -> None:
    run, told = Run(make_trial(), CPU), []
    assert run.advance(lambda: False, lambda step, steps: told.append((step, steps)), lambda run: None)
    assert told == [(step, 15) for step in range(1, 16)]
    assert run.method.calls.count("update") == 15


def test_validation_comes_after_every_so_many_steps_and_at_the_end(make_trial: Callable[..., Trial]) -> None:
    assert [point["step"] for point in _finished(make_trial()).curve] == [4, 8, 12, 15]


def test_the_moment_for_a_checkpoint_comes_after_every_step_and_its_scoring(make_trial: Callable[..., Trial]) -> None:
    run, seen = Run(make_trial(), CPU), []
    run.advance(lambda: False, lambda step, steps: None, lambda run: seen.append((run.step, len(run.curve))))
    assert seen == [(step, step // 4 + (step == 15)) for step in range(1, 16)]


@pytest.mark.parametrize(("steps", "validate", "at"), [(8, 4, [4, 8]), (3, 100, [3]), (3, 1, [1, 2, 3]), (1, 1, [1])])
def test_the_last_step_is_scored_once(
    make_trial: Callable[..., Trial], steps: int, validate: int, at: list[int]
) -> None:
    run = _finished(make_trial(steps=steps, validate=validate))
    assert [point["step"] for point in run.curve] == at


def test_prepare_comes_first_and_finish_before_each_scoring_and_training_goes_on(
    make_trial: Callable[..., Trial],
) -> None:
    run = _finished(make_trial(steps=4, validate=2))  # Toy asserts the modes itself
    once = ["update", "update", "finish", "predict", "predict"]
    assert run.method.calls == ["prepare", *once, *once]
    assert run.method.training


def test_every_epoch_visits_every_example_once_in_a_new_order(make_trial: Callable[..., Trial]) -> None:
    run = _finished(make_trial(steps=12))  # 240 examples, 6 batches of 40
    x = run.dataset.train.x.float() * run.dataset.scale
    known = sorted(map(tuple, x.flatten(1).tolist()))
    first, second = (torch.cat([batch.x for batch in run.method.seen[start : start + 6]]) for start in (0, 6))
    for epoch in (first, second):
        assert sorted(map(tuple, epoch.flatten(1).tolist())) == known
    assert not torch.equal(first, second)
    for batch in run.method.seen:
        assert torch.equal(x[batch.index], batch.x)


def test_an_incomplete_last_batch_is_left_out(make_trial: Callable[..., Trial]) -> None:
    run = _finished(make_trial(steps=4, batch=100))  # 240 examples: 2 batches an epoch
    assert [len(batch.x) for batch in run.method.seen] == [100] * 4
    for start in (0, 2):
        rows = torch.cat([batch.x for batch in run.method.seen[start : start + 2]]).flatten(1).tolist()
        assert len(set(map(tuple, rows))) == len(rows) == 200


def test_labelled_examples_come_with_every_batch_if_there_are_any(make_trial: Callable[..., Trial]) -> None:
    batch = _finished(make_trial(steps=1)).method.seen[0]
    assert batch.x_labelled is None and batch.y_labelled is None
    run = _finished(make_trial(steps=2, labels=12))
    batch = run.method.seen[1]
    assert batch.x_labelled.shape == (40, 1, 8, 8) and batch.y_labelled.shape == (40,)
    assert float(batch.x_labelled.min()) >= 0 and float(batch.x_labelled.max()) <= 1
    stripes = batch.x_labelled.flatten(2).view(-1, 4, 16).mean(2).argmax(1)  # class c lights rows 2c and 2c + 1
    assert torch.equal(stripes, batch.y_labelled)
    fewer = _finished(make_trial(steps=2, labels=12, batch_labelled=5)).method.seen
    assert [(len(seen.x), len(seen.x_labelled), len(seen.y_labelled)) for seen in fewer] == [(40, 5, 5)] * 2
    assert len({tuple(image) for seen in fewer for image in seen.x_labelled.flatten(1).tolist()}) == 10  # none twice


@pytest.mark.parametrize(
    ("labels", "batch", "steps"), [(50, 12, 30), (12, 40, 10), (7, 7, 5), (1, 3, 2), (100, 24, 12)]
)
def test_every_labelled_example_comes_once_before_any_comes_again(
    make_trial: Callable[..., Trial], labels: int, batch: int, steps: int
) -> None:
    """Also over the ends of batches and of epochs (240 examples), and in more labelled places than there are labels."""
    run = _finished(make_trial(steps=steps, batch=batch, labels=labels, validate=steps))
    x, y = run.dataset.train.x_labelled, run.dataset.train.y_labelled
    number = {tuple(image): i for i, image in enumerate((x.float() * run.dataset.scale).flatten(1).tolist())}
    assert len(number) == labels
    came = [number[tuple(image)] for seen in run.method.seen for image in seen.x_labelled.flatten(1).tolist()]
    assert torch.equal(torch.cat([seen.y_labelled for seen in run.method.seen]), y[came])
    rounds = [came[start : start + labels] for start in range(0, steps * batch, labels)]
    assert all(sorted(each) == list(range(labels)) for each in rounds[:-1])
    assert len(set(rounds[-1])) == len(rounds[-1])
    assert labels < 8 or all(one != other for one, other in pairwise(rounds))


def test_labels_do_not_change_the_order_of_the_first_epoch(make_trial: Callable[..., Trial]) -> None:
    with_labels, without = _finished(make_trial(steps=1, labels=9)), _finished(make_trial(steps=1))
    assert torch.equal(with_labels.method.seen[0].x, without.method.seen[0].x)


def test_a_method_that_learns_in_finish_alone_takes_no_steps(make_trial: Callable[..., Trial]) -> None:
    run = _finished(make_trial(method="models.toy_for_tests:Still"))
    assert run.method.calls == ["prepare", "finish", "predict", "predict"]
    result = run.result()
    assert result is not None
    assert (result["step"], result["steps"], result["curve"][0]["losses"]) == (0, 0, {})


def test_losses_are_means_since_the_last_scoring(make_trial: Callable[..., Trial]) -> None:
    every, some = _finished(make_trial(steps=4, validate=1)), _finished(make_trial(steps=4, validate=2))
    losses = [point["losses"]["loss"] for point in every.curve]
    assert [point["losses"]["loss"] for point in some.curve] == pytest.approx(
        [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    )


@pytest.mark.parametrize(
    ("steps", "at", "between", "scored"),
    [  # a stretch is a hundredth of the trial, and ends where the run is scored: after every 7 steps
        (15, 1, "0 and 1", None),
        (15, 7, "6 and 7", None),
        (15, 8, "7 and 8", 7),
        (15, 15, "14 and 15", 14),
        (400, 1, "0 and 4", None),
        (400, 6, "4 and 7", None),
        (400, 8, "7 and 11", 7),
        (400, 11, "7 and 11", 7),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run_at_the_end_of_its_stretch_and_says_where(
    make_trial: Callable[..., Trial], steps: int, at: int, between: str, scored: int | None
) -> None:
    run = Run(make_trial({"fault": "loss", "at": at}, steps=steps, validate=7), CPU)
    with pytest.raises(Diverged, match=f"^loss 'loss' is not finite between steps {between}$"):
        _advance(run)
    assert run.method.calls.count("update") == run.step == int(between.split()[-1])
    result = run.result()
    assert (result and result["last"]["step"]) == scored


def test_weights_that_break_in_the_last_update_before_a_scoring_are_divergence(
    make_trial: Callable[..., Trial],
) -> None:
    with pytest.raises(Diverged, match="^parameter 'map.weight' is not finite between steps [0-3] and 4$"):
        _advance(Run(make_trial({"fault": "weights", "at": 4}), CPU))


def test_each_parameter_is_looked_at(make_trial: Callable[..., Trial]) -> None:
    run = Run(make_trial(), CPU)
    run.method.map.bias.data[0] = torch.inf
    with pytest.raises(Diverged, match="^parameter 'map.bias' is not finite"):
        run._score()


# what a result tells beside the scores


def _losses(trial: Trial) -> list[float]:
    """The loss of each step, from a trial that is scored after each."""
    return [point["losses"]["loss"] for point in _finished(replace(trial, validate=1)).curve]


def test_the_trace_has_the_mean_loss_of_each_stretch(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(steps=250, validate=100)
    losses, result = _losses(trial), _finished(trial).result()
    assert result is not None
    ends = [int(step) for step in result["trace"]["step"]]
    assert ends[:2] == [3, 6] and {100, 200, 250} <= set(ends)
    means = [sum(losses[start:end]) / (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    assert result["trace"]["loss"] == pytest.approx(means, rel=1e-4)
    curve = [point["losses"]["loss"] for point in result["curve"]]
    assert curve == pytest.approx([sum(losses[:100]) / 100, sum(losses[100:200]) / 100, sum(losses[200:]) / 50])


def _counted(run: Run, pred: torch.Tensor) -> list[list[int]]:
    """Test examples by answer (rows) and true class (columns)."""
    counts = [[0] * 3 for _ in range(3)]
    for answer, true in zip(pred.tolist(), run.dataset.y_test.tolist(), strict=True):
        counts[answer][true] += 1
    return counts


def test_clusters_are_also_named_by_their_most_confident_examples_if_the_method_tells_them(
    make_trial: Callable[..., Trial], toy: ModuleType
) -> None:
    class Sure(toy.Toy):  # type: ignore[misc, name-defined]
        def log_odds(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.map(x.flatten(1)), 1).double().logit()

    vars(toy).update(Sure=Sure)
    run = _finished(make_trial(method="models.toy_for_tests:Sure"))
    data, result = run.dataset, run.result()
    with torch.no_grad():
        logits, on_validation = (
            run.method.map((x.float() * data.scale).flatten(1)) for x in (data.x_test, data.x_validation)
        )
    assert result is not None
    test, right = result["last"]["test"], torch.as_tensor(data.y_test)
    for name, table, classes in (
        ("exemplar", logits, right),
        ("validation_exemplar", on_validation, data.y_validation),
    ):
        named = torch.as_tensor(classes)[torch.softmax(table, 1).argmax(0)]
        assert test[name] == pytest.approx(100 * float((named[logits.argmax(1)] != right).float().mean()))
    assert "exemplar" not in _finished(make_trial()).curve[-1]["test"]


@pytest.mark.parametrize("task", ["clustering", "classification"])
def test_the_confusion_of_a_result_is_that_of_each_classifier_at_the_last_step(
    make_trial: Callable[..., Trial], task: str
) -> None:
    trial = make_trial(method="models.toy_for_tests:Two", task=task)
    whole = _finished(trial)
    x = whole.dataset.x_test.float() * whole.dataset.scale
    with torch.no_grad():
        answers = whole.method.map(x.flatten(1)).argmax(1)
    result = whole.result()
    assert result is not None
    assert result["confusion"] == {
        "predict": _counted(whole, answers),
        "bayes": [[0, 0, 0], [30, 30, 30], [0, 0, 0]],
    }
    assert len(set(answers.tolist())) > 1  # the count tells rows from columns
    for at in (6, 13, 15):
        run, again = Run(trial, CPU), Run(trial, CPU)
        _advance(run, at)
        again.restore(run.state())
        assert _advance(again) and again.result() == result


def test_before_a_scoring_there_is_no_confusion_and_a_broken_run_keeps_the_last_one(
    make_trial: Callable[..., Trial],
) -> None:
    run = Run(make_trial({"fault": "loss", "at": 6}), CPU)
    assert run.confusion == {}
    with pytest.raises(Diverged):
        _advance(run)
    at_4 = _finished(make_trial(steps=4)).result()
    result = run.result()
    assert at_4 is not None and result is not None
    assert result["confusion"] == at_4["confusion"] and result["trace"]["step"] == [1, 2, 3, 4, 5]


def test_every_classifier_of_a_method_is_scored(make_trial: Callable[..., Trial]) -> None:
    one, two = (_finished(make_trial(method=f"models.toy_for_tests:{name}")) for name in ("Toy", "Two"))
    for alone, both in zip(one.curve, two.curve, strict=True):
        assert alone["losses"] == both["losses"]
        for part in ("validation", "test"):
            assert {f"bayes_{key}" for key in alone[part]} == both[part].keys() - alone[part].keys()
            assert {key: both[part][key] for key in alone[part]} == alone[part]
            assert both[part]["bayes_live"] == 1
    assert two.curve[-1]["test"]["bayes_majority"] == pytest.approx(200 / 3)
    result = _finished(make_trial(method="models.toy_for_tests:Two", task="classification")).result()
    assert result is not None
    assert result["last"]["test"].keys() == {"error", "bayes_error"}
    assert result["last"]["test"]["bayes_error"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(("seconds", "taken"), [(0.25, 5), (0.75, 5), (2.0, 3), (60.0, 1)])
def test_slow_steps_are_timed_over_fewer(
    make_trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch, seconds: float, taken: int
) -> None:
    """On a clock that only steps advance, the third by more; the first is not counted, and the fastest of the others counts."""
    run = Run(make_trial(), CPU)
    monkeypatch.setattr(trainer, "MEASURED", 5)
    monkeypatch.setattr("bench.trainer.time.monotonic", lambda: run.step * seconds + (run.step > 2) / 8)
    assert run.time_step(5.0) == seconds
    assert run.method.calls == ["prepare"] + ["update"] * (1 + taken)


def _point(step: int, validation: float, test: float) -> dict[str, Any]:
    scores = {"validation": {"majority": validation}, "test": {"majority": test}}
    return {"step": step, "losses": {}, **scores}


def test_the_three_steps_of_a_result(make_trial: Callable[..., Trial]) -> None:
    run = Run(make_trial(), CPU)
    assert run.result() is None
    run.curve = [_point(4, 9, 8), _point(8, 3, 6), _point(12, 3, 2), _point(15, 4, 5)]
    result = run.result()
    assert result is not None
    assert (result["last"]["step"], result["last"]["test"]["majority"]) == (15, 5)
    assert (result["selected"]["step"], result["selected"]["rule"]) == (8, "lowest validation majority error")
    assert (result["best_on_test"]["step"], result["best_on_test"]["comparable"]) == (12, False)
    assert result["curve"] == run.curve
    assert result["weights_sha256"] == weights_digest(run.method)


def test_classification_is_selected_by_its_own_error(make_trial: Callable[..., Trial]) -> None:
    result = _finished(make_trial(task="classification")).result()
    assert result is not None
    assert result["selected"]["rule"].startswith("lowest validation error")
    assert set(result["last"]["test"]) == {"error"}
    assert result["selected"]["validation"]["error"] == min(p["validation"]["error"] for p in result["curve"])


def test_a_weights_digest_sees_every_parameter_and_buffer() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    seen = {weights_digest(net)}
    for value in net.state_dict().values():
        value.view(-1)[0] += 1
        seen.add(weights_digest(net))
    assert len(seen) == 1 + len(net.state_dict())
    assert weights_digest(torch.nn.ReLU()) is None


PLANE = {"data": "plane", "validation": 300, "batch": 1200, "steps": 7, "validate": 3}
CASES = {
    "amm": ("models.amm:AMM", {"nets": "plane", "components": 6, "learning_rate": 1e-3, "init_std": 0.2}),
    "amm alternating": (
        "models.amm:AMM",
        {"nets": "plane", "components": 6, "schedule": "alternating", "d_steps": 2, "prior": "learned_variance"},
    ),
    "ali": ("baselines.ali:ALI", {"nets": "plane", "components": 6, "n_init": 1, "penalty_weight": 1.0}),
    "aae": ("baselines.aae:AAE", {"components": 6, "hidden": 12, "output": "linear", "batchnorm": True}),
    "kmeans": ("baselines.kmeans:KMeans", {"components": 6, "n_init": 1}),
    "samm": ("models.samm:SAMM", {"nets": "plane", "components": 6, "learning_rate": 1e-3, "init_std": 0.2}),
    "supervised": ("baselines.supervised:Supervised", {"nets": "plane", "components": 6, "init_std": 0.2}),
}
LABELLED: dict[str, Any] = {"labels": 500, "task": "classification"}  # 7 batches of 1200 run out of them amid a batch


def _case(make_trial: Callable[..., Trial], name: str, **more: Any) -> Trial:
    method, config = CASES[name]
    full = asdict(method_class(method).Config(**config))
    extra: dict[str, Any] = LABELLED if name in ("samm", "supervised") else {}
    return replace(make_trial(**{**PLANE, **extra, **more}), row=name.replace(" ", "_"), method=method, config=full)


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_stopped_anywhere_and_restored_equals_one_that_was_not(
    name: str, make_trial: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.amm.DRAWS", 20)  # a thousand draws for each of 18 scorings take half of the time
    trial = _case(make_trial, name)
    whole = _finished(trial).result()
    assert whole is not None
    path = tmp_path / "seed00.checkpoint"
    for at in (0, 2, 3, 4, 6):  # before, amid and at an epoch's end (4 batches), at a scoring
        run = Run(trial, CPU)
        if not _advance(run, at):
            assert run.step == at
        checkpoint.save(path, run.state())
        again = Run(trial, CPU)
        state, _ = checkpoint.load(path, trial.digest)
        assert state is not None
        again.restore(state)
        assert _advance(again)
        assert again.result() == whole
        assert again.resumed == 1


@pytest.mark.parametrize("labels", [0, 100, 12])  # of 40 a batch
def test_a_run_that_is_stopped_at_every_step_equals_one_that_was_not(
    make_trial: Callable[..., Trial], labels: int
) -> None:
    trial = make_trial(labels=labels, method=f"models.toy_for_tests:{'Taught' if labels else 'Toy'}")
    whole, state, lives, seen = _finished(trial), None, 0, list[Run]()
    while True:
        run = Run(trial, CPU)
        if state is not None:
            run.restore(state)
        lives += 1
        seen.append(run)
        if _advance(run, 1):
            break
        state = run.state()
    assert lives == 15
    assert run.result() == whole.result()
    assert run.resumed == 14
    if labels:
        given = [batch.x_labelled for life in seen for batch in life.method.seen]
        assert torch.equal(torch.cat(given), torch.cat([batch.x_labelled for batch in whole.method.seen]))
    assert run.method.calls.count("prepare") == 0  # done in the first life


def test_a_finished_run_that_is_restored_has_its_result_at_once(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial()
    whole = _finished(trial)
    again = Run(trial, CPU)
    again.restore(whole.state())
    assert _advance(again)
    assert again.result() == whole.result()
    assert again.method.calls == []


def test_optimisers_count_their_steps_where_this_device_wants_it_whoever_wrote_the_checkpoint(
    make_trial: Callable[..., Trial],
) -> None:
    run, again = Run(make_trial(), CPU), Run(make_trial(), CPU)
    _advance(run, 3)
    state = deepcopy(run.state())
    (group,) = state["optimizers"]["adam"]["param_groups"]
    assert group["capturable"] is False
    group["capturable"] = True  # as on a GPU, whose graph counts them
    again.restore(state)
    assert again.method.adam.param_groups[0]["capturable"] is False
    assert _advance(again) and _advance(run) and again.result() == run.result()


def test_the_stream_of_a_trial_does_not_depend_on_other_trials(make_trial: Callable[..., Trial]) -> None:
    trial, other = make_trial(), make_trial(seed=1)
    alone = _finished(trial).result()
    first, second = Run(trial, CPU), Run(other, CPU)
    ended = False
    while not ended:  # a step of one, a step of the other
        torch.manual_seed(first.step)
        ended = _advance(first, 1) and _advance(second)
        if not ended:
            _advance(second, 1)
    assert first.result() == alone
    assert second.result() != alone


def test_a_trial_is_a_function_of_its_seed(make_trial: Callable[..., Trial]) -> None:
    assert _finished(make_trial()).result() == _finished(make_trial()).result()
    weights = {_finished(make_trial(seed=seed)).result()["weights_sha256"] for seed in range(3)}  # type: ignore[index]
    assert len(weights) == 3


def test_all_rows_of_a_seed_share_the_split(make_trial: Callable[..., Trial]) -> None:
    splits = {
        (row, seed): Run(make_trial(row=row, seed=seed), CPU).dataset.split_digest
        for row in ("one", "two")
        for seed in (0, 1)
    }
    assert splits["one", 0] == splits["two", 0] != splits["one", 1] == splits["two", 1]


def test_seconds_go_on_from_the_checkpoint(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial()
    run = Run(trial, CPU)
    _advance(run, 3)
    state = {**run.state(), "seconds": 1000.0}
    again = Run(trial, CPU)
    again.restore(state)
    _advance(again)
    assert 1000 < again.seconds < 1100


def test_what_does_not_fit_a_run_is_not_taken_for_its_state(make_trial: Callable[..., Trial]) -> None:
    run = Run(make_trial(), CPU)
    state = run.state()
    assert run.fits(state)
    (adam,) = state["optimizers"]
    group = state["optimizers"][adam]["param_groups"][0]
    fewer = {adam: {**state["optimizers"][adam], "param_groups": [{**group, "params": group["params"][:1]}]}}
    for other in (
        {"data": "of other files"},
        {"optimizers": {"sgd": state["optimizers"][adam]}},
        {"optimizers": fewer},
        {"module": {**state["module"], "map.bias": torch.zeros(4)}},
        {"module": {"map.weight": state["module"]["map.weight"]}},
        {"noise": state["noise"][:16]},
    ):
        assert not run.fits({**state, **other}), other.keys()
    assert not run.fits({key: value for key, value in state.items() if key != "trace"})


def test_a_buffer_that_prepare_fills_takes_the_size_it_had(make_trial: Callable[..., Trial]) -> None:
    """IMSAT keeps a radius for each training example, which a new object does not know yet."""
    config = {"components": 3, "hidden": 12, "neighbour": 3}
    trial = replace(make_trial(), method="baselines.imsat:IMSAT", config=asdict(IMSATConfig(**config)))  # type: ignore[arg-type]
    whole = _finished(trial)
    first, second = Run(trial, CPU), Run(trial, CPU)
    assert not first.advance(lambda: first.step == 6, lambda *_: None, lambda _: None)
    assert second.fits(first.state())
    second.restore(first.state())
    assert second.advance(lambda: False, lambda *_: None, lambda _: None)
    assert weights_digest(second.method) == weights_digest(whole.method)
