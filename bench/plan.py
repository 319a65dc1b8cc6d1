"""Planning: a suite and a budget -> trials, with each method found, its config checked and all defaults filled in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.errors import UserError, told
from bench.methods import Declared, declared, method_class
from bench.seeds import distinct
from bench.sources import SOURCES
from bench.suite import Override, Row, Suite, Trial
from bench.yaml_strict import build, unknown

if TYPE_CHECKING:
    from models.method import Method


def trials(
    suite: Suite, budget: str, only: Sequence[str] | None = None, seeds: Iterable[int] | None = None
) -> list[Trial]:
    """The trials of `suite` under `budget`, rows by seeds, in the order of the file.

    `only` keeps these rows, `seeds` replaces the suite's. UserError: unknown budget, row, data, method or key of a
    config, or numbers that do not fit the data.
    """
    known = [row.row for row in suite.rows]
    for name in only or ():
        if name not in known:
            raise unknown("row", name, known, f"suite {suite.suite}")
    if budget not in suite.budgets:
        raise unknown("budget", budget, suite.budgets, f"suite {suite.suite}")
    chosen = distinct(suite.seeds if seeds is None else seeds, "seeds")
    plans = [_plan(suite, row, budget) for row in suite.rows if not only or row.row in only]
    return [replace(plan, seed=seed) for plan in plans for seed in chosen]


def _plan(suite: Suite, row: Row, budget: str) -> Trial:
    """The row's trial with seed 0, everything resolved."""
    where = f"{row.source.where('method')}: row {row.row}"
    examples, labels = _examples(suite, row), _labels(suite, row)
    length = row.budgets.get(budget, Override()).apply(suite.budgets[budget])
    batch = length.batch or row.batch or suite.batch
    if batch > examples:
        raise UserError(
            f"{where}: a batch of {batch} is more than the {examples} training examples; give at most as many"
        )
    method = declared(row.method, where)
    config = _resolve(method.Config, row.config, where)
    if type(config.get("components", 1)) is not int:
        raise UserError(f"{where}: components: expected a whole number, got {config['components']!r}")
    if config.get("components", 1) < 1:
        raise UserError(f"{where}: components: expected at least 1, got {config['components']}")
    _check_labels(suite, labels, method, config, where)
    labelled = length.batch_labelled or row.batch_labelled
    if labelled and not labels:
        raise UserError(f"{where}: batch_labelled {labelled} without labelled examples; give labels, or remove it")
    return Trial(
        suite=suite.suite,
        row=row.row,
        budget=budget,
        seed=0,
        method=row.method,
        config=config,
        data=suite.data,
        validation=suite.validation,
        labels=labels,
        task=suite.task,
        batch=batch,
        steps=length.steps or (length.epochs or 0) * examples // batch,
        validate=length.validate or examples // batch,
        split=suite.split,
        balanced=suite.balanced,
        precision=row.precision,
        batch_labelled=None if labelled == batch else labelled,
    )


def _labels(suite: Suite, row: Row) -> int:
    return suite.labels if row.labels is None else row.labels


def _check_labels(suite: Suite, labels: int, method: Declared, config: Mapping[str, Any], where: str) -> None:
    """A method that learns from labels gets some, and a component for each class; one that answers with classes no more."""
    if method.needs_labels and not labels:
        raise UserError(f"{where}: {method.name} learns from labels; give the suite labels: N")
    classes = SOURCES[suite.data].n_classes
    found = config.get("components", classes)
    if method.needs_labels and found < classes:
        raise UserError(
            f"{where}: components: {found}, but {suite.data} has labels of {classes} classes; give at least as many"
        )
    if suite.task == "classification" and found != classes:
        raise UserError(
            f"{where}: components: {found}, but {suite.data} has {classes} classes to tell apart; give as many"
        )


def _examples(suite: Suite, row: Row) -> int:
    """Training examples of an epoch; UserError if the row asks for more than there are."""
    if suite.data not in SOURCES:
        raise unknown("data", suite.data, SOURCES, f"{suite.source.where('data')}: data")
    source = SOURCES[suite.data]
    if suite.split not in source.splits:
        spot = suite.source.where("split" if "split" in suite.source else "data")
        raise unknown("split", suite.split, source.splits, f"{spot}: data {suite.data}")
    labels, asking = _labels(suite, row), suite.source if row.labels is None else row.source
    if suite.balanced and labels % source.n_classes:
        spot = f"{asking.where('labels')}: labels"
        raise UserError(
            f"{spot}: {labels} cannot be balanced over the {source.n_classes} classes of {suite.data}; give a multiple of them"
        )
    if suite.split == "whole" and labels:
        spot = f"{asking.where('labels')}: labels"
        raise UserError(f"{spot}: the split whole scores every example, those with labels too; use another split")
    total = source.n_train
    left = total - suite.validation
    for key, need, section in (("validation", 1, suite.source), ("labels", labels, asking)):
        if left < need:
            spot = f"{section.where(key)}: {key}"
            raise UserError(
                f"{spot}: too many; {suite.data} has {total} training examples, {suite.validation} held out"
            )
    of_split = {"train": total, "extra": left + source.n_extra, "whole": total + source.n_test}
    return of_split.get(suite.split, left)


def _resolve(cls: type[Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`config` with the defaults of the Config class `cls`, as plain JSON values.

    It is built twice so that a default written as 1 and a value given as 1.0 make the same trial.
    """
    try:
        once = _plain(build(cls, config, where), where)
        return _plain(build(cls, once, where), where)
    except UserError:
        raise
    except Exception as error:  # of a wrong annotation, or of the Config's own code
        raise UserError(f"{where}: {cls.__module__}.{cls.__name__} cannot be made: {told(error)}") from None


@cache
def _resolved(cls: type[Any], config: str, where: str) -> dict[str, Any]:
    """`_resolve` of a config in JSON, done once for all stored seeds of a row."""
    return _resolve(cls, json.loads(config), where)


def _plain(config: Any, where: str) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a default of the method's Config is not plain JSON: {error}") from None
    return plain


def as_planned_today(trial: Trial) -> Trial:
    """A stored trial with the defaults of knobs that its method has got since: a new knob's default changes nothing.

    A key that the method no longer has leaves the trial as it is, and so different from any planned one.
    """
    try:
        where = f"{trial.suite}/{trial.row}"
        cls = declared(trial.method, where).Config
        return replace(trial, config=_resolved(cls, json.dumps(trial.config), where))  # type: ignore[arg-type]
    except UserError:
        return trial


def method_of(trial: Trial) -> type[Method]:
    """The class of the trial's method, imported; UserError if there is none."""
    return method_class(trial.method, f"{trial.suite}/{trial.row}")


def build_config(trial: Trial) -> Any:
    """The `Config` instance of the trial's method; UserError if the method no longer has such a key."""
    return build(method_of(trial).Config, trial.config, f"{trial.suite}/{trial.row}")
