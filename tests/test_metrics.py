"""bench.metrics against hand-worked cases and against every mapping, tried one by one."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch

from bench.metrics import (
    Score,
    contingency,
    evaluate,
    exemplar_mapping,
    majority_mapping,
    mapped_error,
    plain_error,
    score,
)


def best_error(pred: np.ndarray, true: np.ndarray, mappings: list[tuple[int, ...]]) -> float:
    """Eq. 17 as printed: the lowest error over all mappings (class of cluster 0, 1, ...)."""
    return min(100 * float(np.mean(np.array(mapping)[pred] != true)) for mapping in mappings)


def draw(seed: int, n_clusters: int, n_classes: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(n_clusters, size=n), generator.integers(n_classes, size=n)


def evaluate_one(task: str, pred_val: Any, y_val: Any, pred_test: Any, y_test: Any, *sizes: int) -> dict[str, Score]:
    """`evaluate` for a method with one classifier; `sizes` are the numbers of clusters and of classes."""
    return evaluate(task, {"predict": pred_val}, y_val, {"predict": pred_test}, y_test, *sizes)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n_clusters", "n_classes"), [(2, 3), (3, 3), (4, 3), (5, 2), (4, 4)])
def test_majority_is_the_best_of_all_mappings(seed: int, n_clusters: int, n_classes: int) -> None:
    pred, true = draw(seed, n_clusters, n_classes)
    best = best_error(pred, true, list(product(range(n_classes), repeat=n_clusters)))
    scores = score(pred, true, n_clusters=n_clusters, n_classes=n_classes)
    assert scores["majority"] == pytest.approx(best, abs=1e-12)
    assert mapped_error(pred, true, majority_mapping(pred, true)) == scores["majority"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n_clusters", "n_classes"), [(2, 4), (3, 3), (4, 5)])
def test_hungarian_is_the_best_of_all_one_to_one_mappings(seed: int, n_clusters: int, n_classes: int) -> None:
    pred, true = draw(seed, n_clusters, n_classes)
    best = best_error(pred, true, list(permutations(range(n_classes), n_clusters)))
    scores = score(pred, true, n_clusters=n_clusters, n_classes=n_classes)
    assert scores["hungarian"] == pytest.approx(best, abs=1e-12)
    assert float(scores["hungarian"] or 0) >= float(scores["majority"] or 0)


def test_hand_worked_case() -> None:
    # cluster 0 holds classes 0 0 0 1, cluster 1 holds 0 0 1, cluster 2 holds 2; majority 0, 0, 2: 2 of 8 are wrong;
    # one-to-one 0, 1, 2: the 1 in cluster 0 and both 0s in cluster 1 are wrong
    pred, true = [0, 0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 0, 0, 1, 2]
    assert contingency(pred, true).tolist() == [[3, 1, 0], [2, 1, 0], [0, 0, 1]]
    assert majority_mapping(pred, true) == {0: 0, 1: 0, 2: 2}
    scores = score(pred, true)
    assert (scores["majority"], scores["hungarian"], scores["live"]) == (25.0, 37.5, 3)
    assert "validation_mapping" not in scores


def test_more_clusters_than_classes_have_no_one_to_one_error() -> None:
    assert score([0, 1, 1], [0, 1, 1], n_clusters=3, n_classes=2)["hungarian"] is None
    assert score([0, 1, 1], [0, 1, 1], n_clusters=2, n_classes=2)["hungarian"] == 0.0


def test_a_tie_goes_to_the_smaller_class() -> None:
    assert majority_mapping([0, 0, 0, 0], [3, 1, 3, 1]) == {0: 1}


def test_perfect_and_collapsed_clusters() -> None:
    true = np.repeat(np.arange(4), 5)
    perfect, collapsed = score((true + 1) % 4, true), score(np.full(20, 2), true, n_clusters=4, n_classes=4)
    assert (perfect["majority"], perfect["hungarian"], perfect["live"]) == (0.0, 0.0, 4)
    assert perfect["nmi"] == pytest.approx(1) and perfect["ari"] == pytest.approx(1)
    assert (collapsed["majority"], collapsed["hungarian"], collapsed["live"]) == (75.0, 75.0, 1)
    assert collapsed["nmi"] == pytest.approx(0) and collapsed["ari"] == pytest.approx(0)


def test_nmi_and_ari_by_hand() -> None:
    # two classes of 2, split as (0 0) and (1)(1): H(true) = ln 2, H(pred) = 1.5 ln 2, mutual information ln 2
    scores = score([0, 0, 1, 2], [0, 0, 1, 1])
    assert scores["nmi"] == pytest.approx(1 / 1.25)
    # pairs together in both 1, in truth 2, in prediction 1, of 6: (1 - 1/3) / (1.5 - 1/3)
    assert scores["ari"] == pytest.approx((1 - 1 / 3) / (1.5 - 1 / 3))


def test_scores_ignore_the_names_of_clusters() -> None:
    pred, true = draw(3, 4, 4, n=60)
    renamed = np.array([2, 0, 3, 1])[pred]
    assert score(pred, true) == pytest.approx(score(renamed, true))


def test_clusters_unseen_in_validation_are_errors() -> None:
    scores = evaluate_one("clustering", [0, 0, 1], [1, 1, 0], [0, 1, 2, 2], [1, 1, 0, 1], 3, 2)
    assert scores["test"]["validation_mapping"] == 75.0  # only the first is right; cluster 2 has no class
    assert scores["test"]["majority"] == 25.0
    assert scores["test"]["hungarian"] is None
    assert scores["validation"]["validation_mapping"] == scores["validation"]["majority"] == 0.0


def test_every_set_has_the_same_keys() -> None:
    scores = evaluate_one("clustering", [0, 1], [0, 1], [0, 1], [1, 0], 2, 2)
    keys = {"majority", "hungarian", "nmi", "ari", "live", "validation_mapping"}
    assert set(scores["validation"]) == set(scores["test"]) == keys
    assert all(type(value) in (float, int) for value in scores["test"].values())


def test_the_most_confident_example_names_a_cluster() -> None:
    # cluster 0 is likeliest for the second example, 1 for the last; 2 for none, but most for the first
    probabilities = [[0.5, 0.1, 0.4], [0.9, 0.1, 0.0], [0.4, 0.5, 0.1], [0.1, 0.6, 0.3]]
    assert exemplar_mapping(torch.tensor(probabilities).logit(), [7, 3, 3, 5]) == {0: 3, 1: 5, 2: 7}
    assert exemplar_mapping([[1.0, 0.0], [1.0, 0.0]], [4, 2]) == {0: 4, 1: 4}  # the first wins a tie
    for table, true in (([[1.0, 0.0]], [4, 2]), ([0.5, 0.5], [4, 2]), (np.empty((0, 2)), [])):
        with pytest.raises(ValueError, match=r"expected (a row of log odds|one row of integers)"):
            exemplar_mapping(table, true)


def test_clusters_named_by_an_example_of_either_set() -> None:
    validation, test = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9]])
    y_validation, y_test = [1, 0, 0], [0, 0, 1]  # clusters: by validation 0 -> 1, 1 -> 0; by test 0 -> 0, 1 -> 1
    answers = [{"predict": table.argmax(1)} for table in (validation, test)]
    sets = answers[0], y_validation, answers[1], y_test, 2, 2
    scores = evaluate("clustering", *sets, [validation, test])
    assert scores["test"]["validation_exemplar"] == 100.0 and scores["test"]["exemplar"] == 0.0
    own = scores["validation"]
    assert own["validation_exemplar"] == own["exemplar"] == pytest.approx(100 / 3)
    without = evaluate("clustering", *sets)
    assert {part: scores[part].keys() - found.keys() for part, found in without.items()} == {
        part: {"validation_exemplar", "exemplar"} for part in ("validation", "test")
    }
    assert evaluate("classification", *sets, [validation, test]) == evaluate("classification", *sets)


def test_classification_counts_plain_errors() -> None:
    scores = evaluate_one("classification", [0, 1], [0, 1], [1, 0, 2, 2], [0, 1, 2, 2], 3, 3)
    assert scores == {"validation": {"error": 0.0}, "test": {"error": 50.0}}
    assert plain_error([1], [0]) == 100.0


@pytest.mark.parametrize("task", ["clustering", "classification"])
def test_each_classifier_has_its_scores_under_its_name(task: str) -> None:
    y_validation, y_test = draw(0, 3, 3)
    answers = {name: draw(seed, 3, 3) for seed, name in enumerate(("predict", "bayes", "other"), 1)}
    validation, test = ({name: pair[i] for name, pair in answers.items()} for i in (0, 1))
    together = evaluate(task, validation, y_validation, test, y_test, 3, 3)
    for name, (on_validation, on_test) in answers.items():
        alone = evaluate_one(task, on_validation, y_validation, on_test, y_test, 3, 3)
        prefix = "" if name == "predict" else f"{name}_"
        for part, scores in alone.items():
            assert {key: together[part].pop(prefix + key) for key in scores} == scores
    assert together == {"validation": {}, "test": {}}


def test_a_second_classifier_maps_its_clusters_by_its_own_validation_answers() -> None:
    true = [0, 0, 1, 1]
    scores = evaluate(
        "clustering", {"predict": true, "bayes": [1, 1, 0, 0]}, true, {"predict": true, "bayes": true}, true, 2, 2
    )
    assert scores["test"]["validation_mapping"] == 0.0
    assert scores["test"]["bayes_validation_mapping"] == 100.0  # fitted to the swapped names
    assert scores["test"]["bayes_majority"] == 0.0


def test_tensors_and_small_integers_are_taken() -> None:
    pred, true = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0], dtype=torch.uint8)
    assert score(pred, true)["majority"] == 0.0


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        ([], [], "expected one row of integers|and some"),
        ([0, 1], [0], "2 and 1"),
        ([0.5], [0], "integers"),
        ([[0]], [0], "shape"),
        ([-1], [0], ">= 0"),
        ([3], [0], "cluster id 3 is out of range: there are 2"),
        ([0], [2], "class id 2 is out of range: there are 2"),
    ],
)
def test_bad_input_is_refused(pred: list, true: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(pred, true, n_clusters=2, n_classes=2)


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'regression'"):
        evaluate_one("regression", [0], [0], [0], [0], 1, 1)
