"""Fixtures that several test files share: toy methods, small trials, and a suite file on disk."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import record
from bench.suite import Trial
from models.method import Batch, Data, Method, Spec
from models.noise import Noise

SUITE = """suite: small
title: "Small"
artefact: ours
data: plane
task: clustering
metric: test.majority
validation: 300
seeds: 0
margin: 1.0
batch: 50
budgets:
  quick: {steps: 30, validate: 5, label: "quick: 30 steps"}
rows:
"""
ROWS = {
    "kmeans": "{row: kmeans, label: k-means, method: baselines.kmeans:KMeans, config: {components: 6, n_init: 1}}",
    "amm": "{row: amm, label: AMM, method: models.amm:AMM, config: {nets: plane, components: 6, learning_rate: 1e-3}}",
    "aae": "{row: aae, label: AAE, method: baselines.aae:AAE, config: {components: 6, hidden: 16, output: linear}}",
    "mismatch": "{row: mismatch, label: wrong nets, method: baselines.ali:ALI, config: {nets: digits, components: 6}}",
    "absurd": "{row: absurd, label: AMM, method: models.amm:AMM, config: {nets: plane, learning_rate: 1e20}}",
}


def pytest_collection_finish() -> None:
    """What is imported by now stays, and its million objects are not walked over for every few hundred new ones."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    """What was frozen would pass for a leak at the end."""
    gc.unfreeze()


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that is computed is in double precision, so that no processor's rounding turns a leaky ReLU or a cluster over."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """Writes tmp_path/small.yaml with some of ROWS; `old` and `new` change its text."""

    def write(*rows: str, **changes: str) -> Path:
        text = SUITE
        for old, new in changes.items():
            line = next(line for line in text.splitlines() if line.strip().startswith(f"{old}:"))
            text = text.replace(line, f"{line[: len(line) - len(line.lstrip())]}{old}: {new}")
        path = tmp_path / "small.yaml"
        path.write_text(text + "".join(f"  - {ROWS[row]}\n" for row in rows), encoding="utf-8")
        return path

    return write


@dataclass(frozen=True)
class ToyConfig:
    components: int = 3
    rate: float = 0.1
    fault: str = ""
    at: int = 4


class Toy(Method):
    """A linear map that notes what the bench does with it; `fault` makes it misbehave at step `at`."""

    Config = ToyConfig
    graphable = False  # its notes are Python's

    def __init__(self, config: ToyConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        pixels = torch.Size(spec.shape).numel()
        self.map = nn.Linear(pixels, config.components)
        with torch.no_grad():
            self.map.weight.copy_(noise.normal(config.components, pixels))
            self.map.bias.zero_()
        self.adam = torch.optim.Adam(self.map.parameters(), config.rate)
        self.seen: list[Any] = []
        self.calls: list[str] = []

    def prepare(self, data: Data) -> None:
        self.calls.append("prepare")

    def update(self, batch: Batch) -> dict[str, Tensor]:
        assert self.training
        self.seen.append(replace(batch, index=batch.index.clone()))  # the bench writes the next step's into it
        self.calls.append("update")
        loss = (self.map(batch.x.flatten(1)) + batch.noise.normal(len(batch.x), 1)).square().mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        last = len(self.seen) == self.config.at
        if self.config.fault == "raise" and last:
            raise RuntimeError("broken\non purpose")
        if self.config.fault == "weights" and last:
            self.map.weight.data.fill_(float("nan"))
        value = loss.detach()
        return {"loss": value * float("nan") if self.config.fault == "loss" and last else value}

    def finish(self, data: Data) -> None:
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append("finish")
        if not bool(torch.isfinite(self.map.weight).all()):
            raise ValueError("Input X contains NaN.")

    def predict(self, x: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append("predict")
        return self.map(x.flatten(1)).argmax(1)


class Still(Toy):
    """Learns in `finish` alone."""

    iterative = False


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A dry run sets the number of this process's threads, which decides the bits of sums; the next test gets it back."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Toy and Still, importable as models.toy_for_tests while the test runs."""
    module = ModuleType("models.toy_for_tests")
    vars(module).update(Toy=Toy, Still=Still)
    monkeypatch.setitem(sys.modules, "models.toy_for_tests", module)
    yield module


BASE = Trial(
    suite="small",
    row="toy",
    budget="quick",
    seed=0,
    method="models.toy_for_tests:Toy",
    config={"components": 3, "rate": 0.1, "fault": "", "at": 4},
    data="synthetic",
    validation=60,
    labels=0,
    task="clustering",
    batch=40,
    steps=15,
    validate=4,
)


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """A trial of Toy on the synthetic images; `config` entries are merged, other fields replaced."""

    def make(config: dict[str, Any] | None = None, **fields: Any) -> Trial:
        return replace(BASE, config=BASE.config if config is None else {**BASE.config, **config}, **fields)

    return make


POINT = {"step": 1, "test": {"majority": 1.0}, "validation": {"majority": 1.0}}
RESULT = {"last": POINT, "selected": POINT, "best_on_test": POINT, "curve": [POINT], "weights_sha256": None}


@pytest.fixture
def store() -> Callable[..., Path]:
    """Writes the record of a trial that never ran below a root: so many minutes long as its seed says, and two."""

    def write(root: Path, trial: Trial, status: str = "done", sources: str = "a", **more: Any) -> Path:
        path = record.record_path(root, trial)
        run: dict[str, Any] = {"git": {"sources": sources, "sha": None, "dirty": False}}
        run |= {"device": "cpu", "threads": 2, "seconds": 60.0 * (2 + trial.seed)}
        result = RESULT | {"steps": trial.steps} if status in record.FINAL else None
        record.write(path, record.new_record(trial, status, result=result, run=run, **more))
        return path

    return write
