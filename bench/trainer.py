"""The one loop: prepare, update n times, score, and nothing that a method could know about.

A `Run` is a trial under way. All that decides its future is in `state()`, so a run restored from a checkpoint continues
exactly. The loop reads a loss from the device only when it scores.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import checkpoint, metrics
from bench.data import Dataset, load_for
from bench.engine import set_precision
from bench.plan import build_config, method_class
from bench.suite import Trial
from bench.trace import Trace
from models.method import Batch
from models.noise import Noise

Progress = Callable[[int, int], None]  # step, steps
MEASURED_S = 5.0  # seconds after which `time_step` has seen enough
EVALUATED = 250  # examples predicted at once: a network keeps all its rows, so this bounds the memory of scoring
HEADLINE = {"clustering": "majority", "classification": "error"}  # what selects a step on the validation split


class Run:
    """A trial under way on one device.

    Args:
        trial: what to run.
        device: where all tensors live.
        data_root: folder of downloaded datasets, or None for the default.
    """

    def __init__(self, trial: Trial, device: torch.device, data_root: Path | None = None) -> None:
        self.trial = trial
        self.noise = Noise.seeded(trial.init_seed, device)
        self.precision = set_precision(trial.precision, device)
        self.dataset: Dataset = load_for(trial, self.noise, data_root)
        cls = method_class(trial.method)
        self.method = cls(build_config(trial), self.dataset.spec, self.noise).to(device)
        self.steps = trial.steps if cls.iterative else 0
        self.step = 0
        self.order = torch.empty(0, dtype=torch.int64, device=device)
        self.labelled_order = torch.empty(0, dtype=torch.int64, device=device)
        self.trace = Trace(self.steps)
        self.curve: list[dict[str, Any]] = []
        self.confusion: dict[str, list[list[int]]] = {}
        self.prepared = False
        self.seconds = 0.0
        self.resumed = 0

    # persistence

    def state(self) -> checkpoint.State:
        """Everything that decides how the run goes on."""
        return {
            "digest": self.trial.digest,
            "step": self.step,
            "module": self.method.state_dict(),
            "optimizers": {name: adam.state_dict() for name, adam in self.method.optimizers().items()},
            "noise": self.noise.generator.get_state(),
            "order": self.order,
            "labelled_order": self.labelled_order,
            "trace": self.trace.state(),
            "curve": self.curve,
            "confusion": self.confusion,
            "prepared": self.prepared,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }

    def fits(self, state: checkpoint.State) -> bool:
        """Whether `restore` can take `state`: the code that wrote it may have had other tensors."""
        mine = self.state()
        if not mine.keys() <= state.keys() or state["optimizers"].keys() != mine["optimizers"].keys():
            return False
        own, other = mine["module"], state["module"]
        # an empty buffer of mine is one that `prepare` fills; the method resizes it when it is loaded
        same = own.keys() == other.keys() and all(v.shape in (other[name].shape, (0,)) for name, v in own.items())
        groups = [
            [[len(group["params"]) for group in adam["param_groups"]] for adam in of["optimizers"].values()]
            for of in (mine, state)
        ]
        return same and groups[0] == groups[1]

    def restore(self, state: checkpoint.State) -> None:
        """Continues from what `state()` returned, which must fit."""
        device = self.noise.device
        self.step, self.curve, self.confusion = state["step"], state["curve"], state["confusion"]
        self.trace.restore(state["trace"], device)
        self.prepared, self.seconds, self.resumed = state["prepared"], state["seconds"], state["resumed"] + 1
        self.method.load_state_dict(state["module"])
        for name, optimizer in self.method.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.noise.generator.set_state(state["noise"])
        self.order, self.labelled_order = state["order"].to(device), state["labelled_order"].to(device)

    # the loop

    def advance(self, stop: Callable[[], bool], progress: Progress, keep: Callable[[Run], None]) -> bool:
        """Runs to the end or until `stop()`; True at the end.

        Args:
            stop: asked before every step; a true answer leaves the run as it is, ready for `state()`.
            progress: told the step after every step.
            keep: called after every step and its scoring, if any: the moment for a checkpoint.

        Raises:
            Diverged: a loss or a parameter is not finite.
        """
        started = time.monotonic() - self.seconds
        try:
            if not self.prepared:
                self.method.prepare(self.dataset.train)
                self.prepared = True
            while self.step < self.steps:
                if stop():
                    return False
                self._update()
                progress(self.step, self.steps)
                scoring = self.step % self.trial.validate == 0 or self.step == self.steps
                if scoring:
                    self._score()
                elif self.trace.due(self.step):
                    self.trace.close(self.step)
                self.seconds = time.monotonic() - started
                keep(self)
            if not self.steps and not self.curve:
                self._score()
            return True
        finally:
            self.seconds = time.monotonic() - started

    def time_step(self, n: int) -> float:
        """Seconds per step over `n` steps, fewer if these are slow, after one to warm up; the run is of no further use."""
        self.method.prepare(self.dataset.train)
        self._update()
        started = time.monotonic()
        taken = 0
        while taken < n and time.monotonic() - started < MEASURED_S:
            self._update()
            taken += 1
        return (time.monotonic() - started) / taken

    def _update(self) -> None:
        """One step on the next batch of the current epoch's order; an incomplete last batch is left out."""
        batch, n = self.trial.batch, len(self.dataset.train)
        at = self.step % (n // batch)
        if at == 0:
            self.order = self.noise.permutation(n)
        index = self.order[at * batch : (at + 1) * batch]
        x = self.dataset.train.take(index)
        labelled = self._labelled(batch)
        with self.precision:
            losses = self.method.update(Batch(x, self.noise, *labelled, index))
        self.trace.add(losses)
        self.step += 1

    def _labelled(self, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """The next labelled examples: one random order of all of them after another; nothing without labels."""
        train = self.dataset.train
        if train.x_labelled is None or train.y_labelled is None:
            return None, None
        while len(self.labelled_order) < batch:
            self.labelled_order = torch.cat([self.labelled_order, self.noise.permutation(len(train.y_labelled))])
        index, self.labelled_order = self.labelled_order[:batch], self.labelled_order[batch:]
        return train.x_labelled[index].float().mul_(train.scale), train.y_labelled[index]

    def _score(self) -> None:
        """Adds a point to the curve: mean losses since the last one, and the scores of both splits."""
        parameters = self.method.named_parameters()
        self.trace.close(self.step, [f"parameter {name!r}" for name, p in parameters if not bool(p.isfinite().all())])
        data, n_classes = self.dataset, self.dataset.spec.n_classes
        n_clusters = int(self.trial.config.get("components", n_classes))
        self.method.eval()
        with torch.no_grad():
            self.method.finish(data.train)
            validation, test = self.predictions(data.x_validation), self.predictions(data.x_test)
        self.method.train()
        scores = metrics.evaluate(
            self.trial.task, validation, data.y_validation, test, data.y_test, n_clusters, n_classes
        )
        since = self.curve[-1]["step"] if self.curve else 0
        self.curve.append({"step": self.step, "losses": self.trace.means(since), **scores})
        self.confusion = {
            name: metrics.contingency(pred, data.y_test, n_clusters, n_classes).tolist() for name, pred in test.items()
        }

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        """The method's answers on stored examples by classifier, int64 [N], on the CPU."""
        chunks = [self.method.predictions(chunk.float() * self.dataset.scale) for chunk in torch.split(x, EVALUATED)]
        return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}

    # the outcome

    def result(self) -> dict[str, Any] | None:
        """The scores of a record at three steps, the curve, and the digest of the final weights."""
        if not self.curve:
            return None
        key = HEADLINE[self.trial.task]
        points = [{name: point[name] for name in ("step", "test", "validation")} for point in self.curve]
        return {
            "step": self.step,
            "steps": self.steps,
            "last": points[-1],
            "selected": {
                **min(points, key=lambda point: point["validation"][key]),
                "rule": "lowest validation error" if key == "error" else f"lowest validation {key} error",
            },
            "best_on_test": {**min(points, key=lambda point: point["test"][key]), "comparable": False},
            "curve": self.curve,
            "trace": self.trace.columns(),
            "confusion": self.confusion,
            "weights_sha256": weights_digest(self.method),
        }


def weights_digest(module: torch.nn.Module) -> str | None:
    """sha256 of all parameters and buffers in order; None if there are none."""
    state = module.state_dict()
    if not state:
        return None
    sha = hashlib.sha256()
    for name, value in state.items():
        sha.update(name.encode() + b"\0" + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
