"""Scores of predicted clusters or classes against true classes: Eq. 17 of the AMM paper and its relatives.

Error rates are percentages in [0, 100]; NMI and ARI are fractions. Eq. 17 maximises over "all mappings" from clusters
to classes. Read literally that is the majority class of each cluster (many-to-one), the only reading possible for more
clusters than classes; papers with as many clusters as classes often mean one-to-one (Hungarian). Both are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Score = dict[str, float | int | None]


def _labels(values: Any, what: str) -> Labels:
    """`values` (array, list or tensor of any device, [N]) as int64; raises ValueError unless whole numbers >= 0."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{what}: expected one row of integers, got {array.dtype} of shape {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"{what}: expected ids >= 0, got {array.min()}")
    return array.astype(np.int64)


def _pair(pred: Any, true: Any) -> tuple[Labels, Labels]:
    """Predictions and truths of one non-empty set, [N] each."""
    predicted, truth = _labels(pred, "predictions"), _labels(true, "true classes")
    if len(predicted) != len(truth) or not len(truth):
        raise ValueError(f"expected as many predictions as true classes, and some: {len(predicted)} and {len(truth)}")
    return predicted, truth


def contingency(pred: Any, true: Any, n_clusters: int | None = None, n_classes: int | None = None) -> Labels:
    """Counts [n_clusters, n_classes] of examples by predicted cluster and true class; sizes default to what occurs."""
    predicted, truth = _pair(pred, true)
    n_clusters = int(predicted.max()) + 1 if n_clusters is None else n_clusters
    n_classes = int(truth.max()) + 1 if n_classes is None else n_classes
    for name, ids, size in (("cluster", predicted, n_clusters), ("class", truth, n_classes)):
        if ids.max() >= size:
            raise ValueError(f"{name} id {ids.max()} is out of range: there are {size}")
    counts = np.bincount(predicted * n_classes + truth, minlength=n_clusters * n_classes)
    return counts.reshape(n_clusters, n_classes)


def majority_mapping(pred: Any, true: Any) -> dict[int, int]:
    """The most frequent class of each cluster that occurs; the smaller class id wins a tie. The maximum of Eq. 17."""
    counts = contingency(pred, true)
    return {int(cluster): int(counts[cluster].argmax()) for cluster in np.flatnonzero(counts.sum(axis=1))}


def exemplar_mapping(log_odds: Any, true: Any) -> dict[int, int]:
    """The class of the example to which each cluster is most probable: how Makhzani et al. (2016, section 6) name clusters.

    `log_odds` of all clusters are [N, K], of examples whose true classes are [N]; the first example wins a tie. Probabilities
    would order them alike, were not those of many sure examples rounded to 1.
    """
    table, truth = np.asarray(log_odds), _labels(true, "true classes")
    if table.ndim != 2 or len(table) != len(truth) or not len(truth):
        raise ValueError(f"expected a row of log odds for each of {len(truth)} examples, got {table.shape}")
    return {cluster: int(truth[example]) for cluster, example in enumerate(table.argmax(axis=0))}


def _percent(wrong: int | np.integer[Any], total: int | np.integer[Any]) -> float:
    return 100 * int(wrong) / int(total)


def mapped_error(pred: Any, true: Any, mapping: Mapping[int, int]) -> float:
    """Percentage of examples whose cluster maps to another class, or, being absent from `mapping`, to none."""
    predicted, truth = _pair(pred, true)
    clusters, inverse = np.unique(predicted, return_inverse=True)
    classes = np.array([mapping.get(int(cluster), -1) for cluster in clusters])
    return _percent(np.count_nonzero(classes[inverse] != truth), len(truth))


def plain_error(pred: Any, true: Any) -> float:
    """Percentage of predicted classes that are wrong."""
    predicted, truth = _pair(pred, true)
    return _percent(np.count_nonzero(predicted != truth), len(truth))


def _hungarian_error(counts: Labels) -> float | None:
    """Percentage wrong under the best one-to-one mapping; None when clusters outnumber classes and some stay out."""
    from scipy.optimize import linear_sum_assignment

    if counts.shape[0] > counts.shape[1]:
        return None
    right = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return _percent(counts.sum() - right, counts.sum())


def score(
    pred: Any,
    true: Any,
    mapping: Mapping[int, int] | None = None,
    *,
    n_clusters: int | None = None,
    n_classes: int | None = None,
) -> Score:
    """All clustering scores of one set.

    Args:
        pred, true: predicted cluster and true class of each example, integers [N].
        mapping: class of each cluster, fitted elsewhere; adds `validation_mapping`.
        n_clusters, n_classes: how many there are, occurring or not; they decide whether one-to-one makes sense.

    Returns:
        majority, hungarian (None for more clusters than classes), validation_mapping: errors in percent;
        nmi (arithmetic mean), ari; live: number of clusters that occur.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    predicted, truth = _pair(pred, true)
    counts = contingency(predicted, truth, n_clusters, n_classes)
    scores: Score = {
        "majority": _percent(counts.sum() - counts.max(axis=1).sum(), counts.sum()),
        "hungarian": _hungarian_error(counts),
        "nmi": float(normalized_mutual_info_score(truth, predicted)),
        "ari": float(adjusted_rand_score(truth, predicted)),
        "live": int(np.count_nonzero(counts.sum(axis=1))),
    }
    return scores if mapping is None else {**scores, "validation_mapping": mapped_error(predicted, truth, mapping)}


def evaluate(
    task: str,
    validation: Mapping[str, Any],
    y_validation: Any,
    test: Mapping[str, Any],
    y_test: Any,
    n_clusters: int,
    n_classes: int,
    log_odds: Sequence[Any] = (),
) -> dict[str, Score]:
    """Scores of the validation and the test set, as a record holds them.

    `validation` and `test` hold the answers of each classifier by name. The scores of "predict" stand under their own
    names, those of another one with its name before them, such as `bayes_error`.

    `log_odds`, if any, hold those of all clusters on both sets, each [N, K], for what two papers report:
    `validation_exemplar`, where the most confident validation example names a cluster, and `exemplar`, where that of the
    scored set does.
    """
    scores: dict[str, Score] = {"validation": {}, "test": {}}
    for name in test:
        prefix = "" if name == "predict" else f"{name}_"
        found = _evaluate(task, validation[name], y_validation, test[name], y_test, n_clusters, n_classes)
        for part, values in found.items():
            scores[part] |= {prefix + key: value for key, value in values.items()}
    if log_odds and task == "clustering":
        sets = {"validation": (validation["predict"], y_validation), "test": (test["predict"], y_test)}
        named = [exemplar_mapping(table, true) for table, (_, true) in zip(log_odds, sets.values(), strict=True)]
        for own, (part, answers) in zip(named, sets.items(), strict=True):
            scores[part]["validation_exemplar"] = mapped_error(*answers, named[0])
            scores[part]["exemplar"] = mapped_error(*answers, own)
    return scores


def _evaluate(
    task: str, pred_val: Any, y_val: Any, pred_test: Any, y_test: Any, n_clusters: int, n_classes: int
) -> dict[str, Score]:
    """Scores of one classifier.

    For "clustering" the validation set also fits the mapping of `validation_mapping`, so on itself that equals
    `majority`; for "classification" the only score is `error`, in percent.
    """
    sets = {"validation": (pred_val, y_val), "test": (pred_test, y_test)}
    if task == "classification":
        return {name: {"error": plain_error(pred, true)} for name, (pred, true) in sets.items()}
    if task != "clustering":
        raise ValueError(f"unknown task {task!r}: expected clustering or classification")
    fitted = majority_mapping(pred_val, y_val)
    return {
        name: score(pred, true, fitted, n_clusters=n_clusters, n_classes=n_classes)
        for name, (pred, true) in sets.items()
    }
