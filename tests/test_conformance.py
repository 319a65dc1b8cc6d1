"""Every method on disk keeps the contract of models/method.py; a new file below models/ or baselines/ is found here."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import baselines
import models
from bench.data import SOURCES, load
from bench.methods import method_class
from bench.plan import trials
from bench.suite import load_suite, names
from bench.trainer import Run
from models.method import Batch, Data, Method, Spec
from models.noise import Noise

SMALL = {"backbone": "dense", "hidden": 12, "n_init": 1, "n_clusters": 6}  # taken where a Config has such a key
NETS = {"plane": "plane", "digits": "synthetic"}  # nets -> data of their shape


def found() -> list[str]:
    """Import paths of every concrete Method defined below models/ and baselines/."""
    paths = []
    for package in (models, baselines):
        for item in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(item.name)).items():
                own = isinstance(value, type) and issubclass(value, Method) and value.__module__ == item.name
                if own and "Config" in dir(value) and not inspect.isabstract(value) and not name.startswith("_"):
                    paths.append(f"{item.name}:{name}")
    return sorted(paths)


METHODS = found()
every_method = pytest.mark.parametrize("path", METHODS)


def _config(cls: type[Method], nets: str | None = None) -> Any:
    keys = {item.name for item in fields(cls.Config)}
    small = {key: value for key, value in SMALL.items() if key in keys}
    if nets:
        small["nets"] = nets
    if "components" in keys:
        small["components"] = 6
    return cls.Config(**small)


class Case:
    """A small instance of a method with data of its own: 60 examples, 12 of them labelled."""

    def __init__(self, path: str, seed: int = 5) -> None:
        cls = method_class(path)
        has_nets = "nets" in {item.name for item in fields(cls.Config)}
        nets = "plane" if has_nets else None
        self.data = NETS[nets] if nets else "synthetic"
        self.noise = Noise.seeded(seed)
        source = SOURCES[self.data]
        spec = Spec(source.name, source.shape, source.n_classes)
        whole = load(self.data, split_seed=0, validation=10, noise=self.noise, labels=12).train
        self.train = Data(whole.x[:60], whole.scale, self.noise, whole.x_labelled, whole.y_labelled)
        self.method = cls(_config(cls, nets), spec, self.noise)
        self.method.prepare(self.train)

    def batch(self, start: int = 0) -> Batch:
        labelled = self.train.x_labelled
        assert labelled is not None
        index = torch.arange(start, start + 20)
        labels = labelled.float() * self.train.scale, self.train.y_labelled
        return Batch(self.train.take(index), self.noise, *labels, index)

    def train_for(self, steps: int) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for step in range(steps if self.method.iterative else 0):
            losses = self.method.update(self.batch(20 * (step % 3)))
        return losses

    @contextmanager
    def scoring(self) -> Iterator[Method]:
        self.method.eval()
        with torch.no_grad():
            yield self.method
        self.method.train()

    def answers(self, x: Tensor) -> Tensor:
        with self.scoring() as method:
            method.finish(self.train)
            return method.predict(x)


def _state(method: Method) -> dict[str, Any]:
    optimizers = {name: optimizer.state_dict() for name, optimizer in method.optimizers().items()}
    return {"module": method.state_dict(), "optimizers": optimizers}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


class NoSync(TorchDispatchMode):
    """Raises where a tensor's value is read by Python, or moved to another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise AssertionError(f"{func} synchronises with the host")
        if func in (torch.ops.aten.nonzero.default, torch.ops.aten.equal.default, torch.ops.aten.masked_select.default):
            raise AssertionError(f"{func} needs a value on the host")
        return func(*args, **(kwargs or {}))


def test_the_methods_of_the_paper_and_the_baselines_are_found() -> None:
    assert {"models.amm:AMM", "baselines.aae:AAE", "baselines.ali:ALI", "baselines.kmeans:KMeans"} <= set(METHODS)


def test_the_guard_against_synchronisation_works() -> None:
    for read in (lambda x: x.item(), lambda x: bool(x > 0), float, int):
        with NoSync(), pytest.raises(AssertionError):
            read(torch.tensor(1.0))


@every_method
def test_config_is_a_frozen_dataclass_of_plain_defaults(path: str) -> None:
    cls = method_class(path)
    assert is_dataclass(cls.Config) and cls.Config.__dataclass_params__.frozen
    config = cls.Config()
    assert json.loads(json.dumps(asdict(config), allow_nan=False))


@every_method
def test_it_says_what_it_is(path: str) -> None:
    cls = method_class(path)
    own = [cls.__doc__, cls.Config.__doc__, inspect.getmodule(cls).__doc__]  # type: ignore[union-attr]
    assert all(text and len(text.split()) > 2 for text in own)
    assert cls.__doc__ != Method.__doc__


@every_method
def test_a_step_returns_detached_finite_scalars_and_reads_no_value(path: str) -> None:
    case = Case(path)
    if not case.method.iterative:
        with pytest.raises(TypeError, match="takes no steps"):
            case.method.update(case.batch())
        return
    # tolist and numpy read memory unseen by any mode
    assert not re.search(r"\.(item|tolist|cpu|numpy)\(", inspect.getsource(type(case.method).update))
    case.train_for(1)  # optimisers make their state in the first step
    before = [value.clone() for value in case.method.parameters()]
    if case.method.graphable:
        with NoSync(), pytest.MonkeyPatch.context() as patch:
            # it looks at its ids on a CPU only
            patch.setattr(torch.nn.functional, "one_hot", lambda y, k: torch.eye(k, dtype=torch.int64)[y])
            losses = case.method.update(case.batch())
    else:
        losses = case.method.update(case.batch())
    assert losses and all(isinstance(name, str) for name in losses)
    for name, loss in losses.items():
        assert loss.shape == () and not loss.requires_grad and bool(torch.isfinite(loss)), name
    assert any(not torch.equal(a, b) for a, b in zip(before, case.method.parameters(), strict=True))
    assert losses.keys() == case.method.update(case.batch()).keys()


@every_method
def test_a_step_leaves_the_examples_alone(path: str) -> None:
    case = Case(path)
    if case.method.iterative:
        batch = case.batch()
        before = [batch.x.clone(), batch.x_labelled.clone()]  # type: ignore[union-attr]
        case.method.update(batch)
        assert torch.equal(batch.x, before[0]) and torch.equal(batch.x_labelled, before[1])  # type: ignore[arg-type]


@every_method
def test_answers_are_ids_that_depend_on_the_example_alone(path: str) -> None:
    case = Case(path)
    case.train_for(3)
    x = case.train.take(torch.arange(60))
    y = case.answers(x)
    assert y.dtype == torch.int64 and y.shape == (60,)
    ids = int(getattr(case.method.config, "components", case.method.spec.n_classes))
    assert int(y.min()) >= 0 and int(y.max()) < ids
    before = case.noise.generator.get_state()
    with case.scoring() as method:
        assert torch.equal(method.predict(x), y)
        assert torch.equal(torch.cat([method.predict(part) for part in x.split(7)]), y)
        assert torch.equal(method.predict(x[:1]), y[:1])
        assert torch.equal(method.predict(x.flip(0)), y.flip(0))
    assert torch.equal(case.noise.generator.get_state(), before)  # an answer draws nothing


@every_method
def test_the_log_odds_are_those_of_the_answer(path: str) -> None:
    case = Case(path)
    case.train_for(3)
    x = case.train.take(torch.arange(60))
    y = case.answers(x)
    if hasattr(case.method, "log_odds"):
        with case.scoring() as method:
            table = method.log_odds(x)  # type: ignore[operator]
        assert table.shape == (60, method.config.components) and table.dtype == torch.float64
        assert torch.allclose(table.sigmoid().sum(1), torch.ones(60, dtype=torch.float64), atol=1e-5)
        assert torch.equal(table.argmax(1), y)


def test_the_methods_whose_papers_name_clusters_by_confident_examples_tell_their_log_odds() -> None:
    assert {path for path in METHODS if hasattr(method_class(path), "log_odds")} == {
        "baselines.aae:AAE",
        "baselines.gmvae:GMVAE",
    }


@every_method
def test_finish_replaces_what_it_did_before(path: str) -> None:
    case = Case(path)
    case.train_for(2)
    x = case.train.take(torch.arange(60))
    stream = case.noise.generator.get_state()
    first, state = case.answers(x), {name: value.clone() for name, value in case.method.state_dict().items()}
    case.noise.generator.set_state(stream)
    assert torch.equal(case.answers(x), first)
    assert _same(case.method.state_dict(), state)


@every_method
def test_scoring_changes_nothing_that_is_trained(path: str) -> None:
    case = Case(path)
    case.train_for(2)
    before = {name: value.clone() for name, value in case.method.named_parameters()}
    case.answers(case.train.take(torch.arange(20)))
    assert _same(dict(case.method.named_parameters()), before)


@every_method
def test_the_noise_alone_decides_the_weights(path: str) -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(states))  # the global stream must not matter
        case = Case(path, seed)
        case.train_for(2)
        case.answers(case.train.take(torch.arange(5)))
        states.append(_state(case.method))
    assert _same(states[0], states[1])
    assert not _same(states[0]["module"], states[2]["module"])


@every_method
def test_what_is_checkpointed_is_all_that_counts(path: str, tmp_path: Path) -> None:
    case, other = Case(path), Case(path, seed=99)
    case.train_for(3)
    torch.save({**_state(case.method), "noise": case.noise.generator.get_state()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    other.method.load_state_dict(state["module"])
    for name, optimizer in other.method.optimizers().items():
        optimizer.load_state_dict(state["optimizers"][name])
    other.noise.generator.set_state(state["noise"])
    losses, again = case.train_for(2), other.train_for(2)
    assert _same(losses, again)
    assert _same(_state(case.method), _state(other.method))
    x = case.train.take(torch.arange(60))
    assert torch.equal(case.answers(x), other.answers(x))


@every_method
def test_every_trained_tensor_is_in_some_optimizer(path: str) -> None:
    method = Case(path).method
    held = {
        id(p) for optimizer in method.optimizers().values() for group in optimizer.param_groups for p in group["params"]
    }
    assert {id(p) for p in method.parameters() if p.requires_grad} <= held


@pytest.mark.parametrize("name", names())
def test_every_shipped_suite_can_be_planned(name: str) -> None:
    suite = load_suite(name)
    for budget in suite.budgets:
        plan = trials(suite, budget)
        assert len(plan) == len(suite.rows) * len(suite.seeds)
        assert len({trial.digest for trial in plan}) == len(plan)


def test_every_method_stands_in_a_shipped_suite() -> None:
    used = {row.method for name in names() for row in load_suite(name).rows}
    assert set(METHODS) - used == set()


PAGE = (Path(__file__).resolve().parent.parent / "docs" / "add-a-method.md").read_text(encoding="utf-8")
NEW, ROW = (re.findall(rf"```{language}\n(.+?)```", PAGE, re.S)[0] for language in ("python", "yaml"))


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file that docs/add-a-method.md shows, in a folder that counts as baselines/."""
    folder = tmp_path / "baselines"
    folder.mkdir()
    (folder / "mine.py").write_text(NEW, encoding="utf-8")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(folder)])
    importlib.invalidate_caches()
    yield "baselines.mine:Mine"
    sys.modules.pop("baselines.mine", None)
    vars(baselines).pop("mine", None)


def test_a_new_file_is_found_and_one_row_plans_it(newcomer: str, write_suite: Any, tmp_path: Path) -> None:
    assert newcomer not in METHODS and newcomer in found()
    path = write_suite("kmeans")
    path.write_text(path.read_text(encoding="utf-8") + ROW, encoding="utf-8")
    (trial,) = trials(load_suite(path), "quick", ["mine"])
    assert (trial.method, trial.config) == (newcomer, {"components": 10, "learning_rate": 0.01})
    run = Run(trial, torch.device("cpu"))
    assert run.advance(lambda: False, lambda *_: None, lambda _: None)
    result = run.result()
    assert result is not None and 0 <= result["last"]["test"]["majority"] < 90


@pytest.mark.parametrize(
    "check",
    [
        test_config_is_a_frozen_dataclass_of_plain_defaults,
        test_it_says_what_it_is,
        test_a_step_returns_detached_finite_scalars_and_reads_no_value,
        test_answers_are_ids_that_depend_on_the_example_alone,
        test_finish_replaces_what_it_did_before,
        test_the_noise_alone_decides_the_weights,
        test_every_trained_tensor_is_in_some_optimizer,
    ],
)
def test_a_new_method_passes_the_same_checks(newcomer: str, check: Any) -> None:
    check(newcomer)


def test_a_method_that_reads_a_loss_is_caught(newcomer: str, tmp_path: Path) -> None:
    file = tmp_path / "baselines" / "mine.py"
    detached = '"marginal": marginal.detach()'
    assert detached in NEW
    file.write_text(NEW.replace(detached, '"marginal": torch.tensor(float(marginal.detach()))'), encoding="utf-8")
    with pytest.raises(AssertionError, match="synchronises"):
        test_a_step_returns_detached_finite_scalars_and_reads_no_value(newcomer)
