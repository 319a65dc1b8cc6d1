"""The one loop: prepare, update n times, score, and nothing that a method could know about.

A `Run` is a trial under way. All that decides its future is in `state()`, so a run restored from a checkpoint continues
exactly. The loop reads a loss from the device only when it scores.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import checkpoint, metrics
from bench.data import Dataset, load
from bench.plan import build_config, method_class
from bench.suite import Trial
from models.method import Batch
from models.noise import Noise

Progress = Callable[[int, int], None]  # step, steps
EVALUATED = 250  # examples predicted at once: a network keeps all its rows, so this bounds the memory of scoring
HEADLINE = {"clustering": "majority", "classification": "error"}  # what selects a step on the validation split


class Diverged(Exception):
    """A loss stopped being a finite number."""


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
        self.dataset: Dataset = load(
            trial.data,
            split_seed=trial.split_seed,
            validation=trial.validation,
            noise=self.noise,
            root=data_root,
            labels=trial.labels,
        )
        cls = method_class(trial.method)
        self.method = cls(build_config(trial), self.dataset.spec, self.noise).to(device)
        self.steps = trial.steps if cls.iterative else 0
        self.step = 0
        self.order = torch.empty(0, dtype=torch.int64, device=device)
        self.totals: dict[str, Tensor] = {}
        self.counted = 0
        self.curve: list[dict[str, Any]] = []
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
            "totals": self.totals,
            "counted": self.counted,
            "curve": self.curve,
            "prepared": self.prepared,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }

    def restore(self, state: checkpoint.State) -> None:
        """Continues from what `state()` returned."""
        device = self.noise.device
        self.step, self.counted, self.curve = state["step"], state["counted"], state["curve"]
        self.prepared, self.seconds, self.resumed = state["prepared"], state["seconds"], state["resumed"] + 1
        self.method.load_state_dict(state["module"])
        for name, optimizer in self.method.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.noise.generator.set_state(state["noise"])
        self.order = state["order"].to(device)
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}

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
                if self.step % self.trial.validate == 0 or self.step == self.steps:
                    self._score()
                self.seconds = time.monotonic() - started
                keep(self)
            if not self.steps and not self.curve:
                self._score()
            return True
        finally:
            self.seconds = time.monotonic() - started

    def time_step(self, n: int) -> float:
        """Seconds per step over `n` steps after one to warm up; the run is of no further use."""
        self.method.prepare(self.dataset.train)
        self._update()
        started = time.monotonic()
        for _ in range(n):
            self._update()
        return (time.monotonic() - started) / n

    def _update(self) -> None:
        """One step on the next batch of the current epoch's order; an incomplete last batch is left out."""
        batch, n = self.trial.batch, len(self.dataset.train)
        at = self.step % (n // batch)
        if at == 0:
            self.order = self.noise.permutation(n)
        x = self.dataset.train.take(self.order[at * batch : (at + 1) * batch])
        losses = self.method.update(Batch(x, self.noise, *self._labelled(batch)))
        self.totals = {name: loss + self.totals[name] if self.totals else loss for name, loss in losses.items()}
        self.counted += 1
        self.step += 1

    def _labelled(self, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """A batch of labelled examples drawn with replacement, or nothing without labels."""
        train = self.dataset.train
        if train.x_labelled is None or train.y_labelled is None:
            return None, None
        index = self.noise.integers(len(train.y_labelled), batch)
        return train.x_labelled[index].float().mul_(train.scale), train.y_labelled[index]

    def _score(self) -> None:
        """Adds a point to the curve: mean losses since the last one, and the scores of both splits."""
        losses = {name: float(total) / self.counted for name, total in self.totals.items()}
        self.totals, self.counted = {}, 0
        broken = [f"loss {name!r}" for name, loss in losses.items() if not math.isfinite(loss)]
        broken += [f"parameter {name!r}" for name, p in self.method.named_parameters() if not bool(p.isfinite().all())]
        if broken:
            last = self.curve[-1]["step"] if self.curve else 0
            raise Diverged(f"{broken[0]} is not finite between steps {last} and {self.step}")
        self.method.eval()
        with torch.no_grad():
            self.method.finish(self.dataset.train)
            scores = metrics.evaluate(
                self.trial.task,
                self.predictions(self.dataset.x_validation),
                self.dataset.y_validation,
                self.predictions(self.dataset.x_test),
                self.dataset.y_test,
                int(self.trial.config.get("components", self.dataset.spec.n_classes)),
                self.dataset.spec.n_classes,
            )
        self.method.train()
        self.curve.append({"step": self.step, "losses": losses, **scores})

    def predictions(self, x: Tensor) -> Tensor:
        """The method's answers on stored examples, int64 [N], on the CPU."""
        chunks = [self.method.predict(chunk.float() * self.dataset.scale) for chunk in torch.split(x, EVALUATED)]
        return torch.cat(chunks).cpu()

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
                "rule": f"lowest validation {key} error",
            },
            "best_on_test": {**min(points, key=lambda point: point["test"][key]), "comparable": False},
            "curve": self.curve,
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
