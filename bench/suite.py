"""Suites: a YAML file -> rows, budgets and seeds -> trials, the values that the bench runs.

Reading a suite imports neither torch nor a method, so that listing suites is instant; `bench.plan` looks methods up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from bench.errors import UserError
from bench.seeds import derive, parse_seeds
from bench.yaml_strict import Section, build, load, unknown

PROTOCOL = 1  # raised when the bench itself changes what a trial means: split, order of batches, scoring
SUITES = Path(__file__).parent / "suites"

Task = Literal["clustering", "classification"]
Split = Literal["random", "whole", "ali", "train", "extra"]  # see bench.data
Precision = Literal["fp32", "tf32", "bf16"]  # see bench.engine
_NAME = re.compile(r"[a-z0-9_]+")
_UNITS = {  # of the scores that bench.metrics gives each task
    "clustering": dict.fromkeys(
        ("majority", "hungarian", "validation_mapping", "validation_exemplar", "exemplar"), "percent"
    )
    | {"nmi": "nmi", "ari": "ari", "live": "clusters"},
    "classification": {"error": "percent"},
}
# a classifier's name may stand before its score
_METRIC = re.compile(
    rf"(?:test|validation)\.(?:[a-z0-9_]+_)?({'|'.join(n for found in _UNITS.values() for n in found)})"
)


def unit(metric: str, task: Task) -> str:
    """The unit of a score such as "test.bayes_majority"; empty for one that no record of such a task has."""
    match = _METRIC.fullmatch(metric)
    return _UNITS[task].get(match[1], "") if match else ""


def _require_name(key: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{key} {name!r} names a file; use a-z, 0-9 and _ only")


def _require_least(item: Any, **least: int) -> None:
    for key, low in least.items():
        value = getattr(item, key)
        if value is not None and value < low:
            raise ValueError(f"{key} must be at least {low}, got {value}")


@dataclass(frozen=True)
class Published:
    """A number as the paper prints it: mean, std and n of its trials, where it stands, how it was taken.

    `metric` is in place of the suite's, and of the same unit, because the suite's margin judges it.
    """

    mean: float
    std: float | None = None
    n: int | None = None
    metric: str | None = None
    source: str = ""
    how: str = ""

    def __post_init__(self) -> None:
        _require_least(self, std=0, n=1)


@dataclass(frozen=True)
class Budget:
    """How long a trial trains: `steps` or `epochs`, never both; `validate` is the steps between two validations.

    Without `validate` the bench validates once an epoch; `batch` and `batch_labelled` take the place of the row's and the
    suite's. `label` is printed in tables, and only a `comparable` budget may be compared with published numbers.
    """

    steps: int | None = None
    epochs: int | None = None
    validate: int | None = None
    batch: int | None = None
    batch_labelled: int | None = None
    label: str = ""
    comparable: bool = False

    def __post_init__(self) -> None:
        _require_least(self, steps=1, epochs=1, validate=1, batch=1, batch_labelled=1)
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a budget needs exactly one of steps and epochs")
        if not (self.label or self.comparable):
            raise ValueError("a budget that is not comparable needs a label that says so in tables")


@dataclass(frozen=True)
class Override:
    """What one row changes in a budget; `steps` takes the place of the budget's `epochs`, and the other way round."""

    steps: int | None = None
    epochs: int | None = None
    validate: int | None = None
    batch: int | None = None
    batch_labelled: int | None = None

    def __post_init__(self) -> None:
        _require_least(self, steps=1, epochs=1, validate=1, batch=1, batch_labelled=1)
        if self.steps and self.epochs:
            raise ValueError("steps and epochs exclude each other; keep one")

    def apply(self, budget: Budget) -> Budget:
        kept = {key: getattr(self, key) or getattr(budget, key) for key in ("validate", "batch", "batch_labelled")}
        budget = replace(budget, **kept)
        return replace(budget, steps=self.steps, epochs=self.epochs) if self.steps or self.epochs else budget


@dataclass(frozen=True)
class Row:
    """One line of a table: a method, its configuration, and the published number beside it.

    Attributes:
        row: file-safe name, unique in the suite; `label` is the name in the table.
        method: import path such as "models.amm:AMM".
        config: keys of the method's `Config` that differ from its defaults.
        batch, labels: in place of the suite's.
        batch_labelled: labelled examples of a step; default as many as unlabelled ones.
        precision: what the training step computes in; scores are always computed in fp32.
        budgets: changes to the suite's budgets, by budget name.
        departures: footnotes, each a difference from the paper.
    """

    row: str
    label: str
    method: str
    config: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    batch_labelled: int | None = None
    labels: int | None = None
    precision: Precision = "fp32"
    budgets: Mapping[str, Override] = field(default_factory=dict)
    published: Published | None = None
    departures: tuple[str, ...] = ()
    source: Section = field(default_factory=Section, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_name("row", self.row)
        _require_least(self, batch=1, batch_labelled=1, labels=0)


@dataclass(frozen=True)
class Suite:
    """One table: dataset, task, scoring, rows, budgets, seeds.

    Attributes:
        split: which training examples are held out, learned from and labelled, see `bench.data.load`.
        labels: number of labelled examples; `balanced`: equally many of each class.
        metric: what rows are compared by: a split and a score, "test.majority"; of another classifier "test.bayes_majority".
        margin: of equivalence, in the unit of `metric`, which is percentage points for an error; fixed before any run.
    """

    suite: str
    title: str
    artefact: str
    data: str
    task: Task
    metric: str
    validation: int
    seeds: tuple[int, ...]
    margin: float
    batch: int
    budgets: Mapping[str, Budget]
    rows: tuple[Row, ...]
    split: Split = "random"
    labels: int = 0
    balanced: bool = False
    notes: tuple[str, ...] = ()
    source: Section = field(default_factory=Section, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_name("suite", self.suite)
        _require_least(self, validation=1, batch=1, labels=0)
        if self.margin <= 0:
            raise ValueError(f"margin must be above 0, got {self.margin}")
        if not unit(self.metric, self.task):
            first, *more = _UNITS[self.task]
            choices = f" (or {', '.join(more)})" if more else ""
            raise ValueError(f"metric must look like test.{first}{choices}, got {self.metric!r}")
        for key in ("rows", "budgets"):
            if not getattr(self, key):
                raise ValueError(f"{key} must hold at least one entry")


@dataclass(frozen=True)
class Trial:
    """One training run as a value: everything that decides its result, with all defaults filled in.

    A field that came later has a default, which means what trials without that field did and stays out of the digest.
    """

    suite: str
    row: str
    budget: str
    seed: int
    method: str
    config: Mapping[str, Any]
    data: str
    validation: int
    labels: int
    task: Task
    batch: int
    steps: int
    validate: int
    split: Split = "random"
    balanced: bool = False
    precision: Precision = "fp32"
    batch_labelled: int | None = None  # as many as `batch`

    @property
    def digest(self) -> str:
        """sha256 (hex) of all fields that are not at their defaults and of PROTOCOL: equal digest, equal trial."""
        later = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        told = {key: value for key, value in vars(self).items() if key not in later or value != later[key]}
        text = json.dumps({"protocol": PROTOCOL, **told}, sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()

    @property
    def split_seed(self) -> int:
        """Seed of the split and of the labelled subset: the same for every row and suite on these data."""
        return derive("split", self.data, self.seed)

    @property
    def init_seed(self) -> int:
        """Seed of everything else in the trial."""
        return derive("init", self.suite, self.row, self.seed)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "trial") -> Trial:
        """The trial that `to_json` wrote; UserError at `where` for a missing, unknown or mistyped key."""
        return build(cls, value, where)


def names() -> list[str]:
    """The suites shipped with the bench."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(name: str | Path) -> Suite:
    """The shipped suite `name`, or the suite in a file when `name` ends in .yaml. UserError: any mistake in it."""
    path = Path(name)
    if path.suffix != ".yaml":
        if path.suffix == ".yml" or len(path.parts) > 1:
            raise UserError(f"suite {name}: the file of a suite ends in .yaml; give its name with that ending")
        if str(name) not in names():
            raise unknown("suite", str(name), names(), "suite")
        path = SUITES / f"{name}.yaml"
    section = load(path)
    if "seeds" in section:
        section["seeds"] = parse_seeds(section["seeds"], f"{section.where('seeds')}: seeds")
    suite = build(Suite, section)
    _check(suite, path.stem)
    return suite


def _check(suite: Suite, stem: str) -> None:
    """What no single mapping can check by itself: names that must agree."""
    if suite.suite != stem:
        raise UserError(f"{suite.source.where('suite')}: suite {suite.suite!r} must be named like its file, {stem!r}")
    for name in suite.budgets:
        if not _NAME.fullmatch(name):
            spot = suite.source["budgets"].where(name)
            raise UserError(f"{spot}: budget {name!r} names a folder; use a-z, 0-9 and _ only")
    seen: set[str] = set()
    for row in suite.rows:
        if row.row in seen:
            raise UserError(f"{row.source.where('row')}: row {row.row} stands twice; give each row its own name")
        seen.add(row.row)
        metric = (row.published and row.published.metric) or suite.metric
        if unit(metric, suite.task) != (wanted := unit(suite.metric, suite.task)):
            fit = ", ".join(name for name, of in _UNITS[suite.task].items() if of == wanted)
            raise UserError(
                f"{row.source['published'].where('metric')}: row {row.row}: the margin judges {suite.metric}, not {metric!r}; "
                f"choose test. or validation. with one of {fit}"
            )
        for key in row.budgets:
            if key not in suite.budgets:
                raise unknown("budget", key, suite.budgets, f"{row.source['budgets'].where(key)}: row {row.row}")
