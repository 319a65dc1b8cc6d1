"""The one loop: prepare, update n times, score, and nothing that a method could know about.

A `Run` is a trial under way. All that decides its future is in `state()`, so a run restored from a checkpoint continues
exactly. The loop reads a loss from the device only when it scores and at the end of each stretch of its trace.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import checkpoint, metrics
from bench.data import Dataset, load_for
from bench.engine import Engine, Mode, optimizer_tensors, set_precision
from bench.plan import build_config, method_of
from bench.seeds import derive
from bench.suite import Trial
from bench.trace import Trace
from models.method import Batch
from models.noise import Noise

Progress = Callable[[int, int], None]  # step, steps
MEASURED, MEASURED_S = 5, 5.0  # steps, or seconds, after which `time_step` has seen enough
# numbers and examples predicted at once: a network keeps all its rows, so this bounds the memory of scoring
EVALUATED, FEWEST = {"cpu": 0, "cuda": 2 * 10**6}, 250
HEADLINE = {"clustering": "majority", "classification": "error"}  # what selects a step on the validation split


class Run:
    """A trial under way on one device.

    Args:
        trial: what to run.
        device: where all tensors live.
        data_root: folder of downloaded datasets, or None for the default.
        mode: how steps are taken, see `bench.engine`.
        data: makes other examples than the trial's, from the trial's noise.
    """

    def __init__(
        self,
        trial: Trial,
        device: torch.device,
        data_root: Path | None = None,
        mode: Mode = "auto",
        data: Callable[[Noise], Dataset] | None = None,
    ) -> None:
        self.trial = trial
        self.noise = Noise.seeded(trial.init_seed, device)
        self.precision = set_precision(trial.precision, device)
        self.dataset = load_for(trial, self.noise, data_root) if data is None else data(self.noise)
        cls = method_of(trial)
        with self.precision:  # by which networks choose their layout
            self.method = cls(build_config(trial), self.dataset.spec, self.noise).to(device)
        self.steps = trial.steps if cls.iterative else 0
        self.step = 0
        self.order = torch.empty(0, dtype=torch.int64, device=device)
        self.labelled_order = torch.empty(0, dtype=torch.int64, device=device)
        sizes = trial.batch, trial.batch_labelled or trial.batch
        self.index, self.labelled_index = (torch.zeros(n, dtype=torch.int64, device=device) for n in sizes)
        self.trace = Trace(self.steps)
        self.engine = Engine(self.method, self._take_step, self._carried, self.noise, mode)
        self.curve: list[dict[str, Any]] = []
        self.confusion: dict[str, list[list[int]]] = {}
        self.drawn: list[Tensor] = []
        self.prepared = False
        self.seconds = 0.0
        self.resumed = 0

    # persistence

    def state(self) -> checkpoint.State:
        """Everything that decides how the run goes on."""
        self.engine.wait()
        return {
            "digest": self.trial.digest,
            "data": [self.dataset.digest, self.dataset.split_digest],
            "step": self.step,
            "module": self.method.state_dict(),
            "optimizers": {name: adam.state_dict() for name, adam in self.method.optimizers().items()},
            "noise": self.noise.generator.get_state(),
            "order": self.order,
            "labelled_order": self.labelled_order,
            "trace": self.trace.state(),
            "curve": self.curve,
            "confusion": self.confusion,
            "drawn": self.drawn,
            "prepared": self.prepared,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }

    def weights(self) -> checkpoint.State:
        """What stays beside a record: weights and buffers, and what was drawn at each scoring, a list of uint8 [K, C, H, W]."""
        return {"digest": self.trial.digest, "module": self.method.state_dict(), "drawn": self.drawn}

    def fits(self, state: checkpoint.State) -> bool:
        """Whether `restore` can take `state`: the code that wrote it may have had other tensors, other data or another device."""
        mine = self.state()
        if not mine.keys() <= state.keys() or state["optimizers"].keys() != mine["optimizers"].keys():
            return False
        if state["data"] != mine["data"]:
            return False
        own, other = mine["module"], state["module"]
        # an empty buffer of mine is one that `prepare` fills; the method resizes it when it is loaded
        same = own.keys() == other.keys() and all(v.shape in (other[name].shape, (0,)) for name, v in own.items())
        same = same and mine["noise"].shape == state["noise"].shape  # a GPU's is shorter
        groups = [
            [[len(group["params"]) for group in adam["param_groups"]] for adam in of["optimizers"].values()]
            for of in (mine, state)
        ]
        return same and groups[0] == groups[1]

    def restore(self, state: checkpoint.State) -> None:
        """Continues from what `state()` returned, which must fit."""
        device = self.noise.device
        self.step, self.curve, self.confusion = state["step"], state["curve"], state["confusion"]
        self.drawn = state["drawn"]
        self.prepared, self.seconds, self.resumed = state["prepared"], state["seconds"], state["resumed"] + 1
        with self.engine.on_stream():  # memory of another stream might be given away while this one still reads it
            self.trace.restore(state["trace"], device)
            self.method.load_state_dict(state["module"])
            for name, optimizer in self.method.optimizers().items():
                optimizer.load_state_dict(state["optimizers"][name])
            self.noise.generator.set_state(state["noise"])
            self.order, self.labelled_order = state["order"].to(device), state["labelled_order"].to(device)
        self.engine.take_over()

    # the loop

    def advance(self, stop: Callable[[], bool], progress: Progress, keep: Callable[[Run], None]) -> bool:
        """Runs to the end or until `stop()`, which is asked before every step; True at the end. See `stages`."""
        return not any(stop() for _ in self.stages(progress, keep))

    def stages(self, progress: Progress, keep: Callable[[Run], None]) -> Iterator[None]:
        """Runs to the end, and yields before every step: left there, the run is ready for `state()`.

        Args:
            progress: told the step after every step.
            keep: called after every step and its scoring, if any: the moment for a checkpoint.

        Raises:
            Diverged: a loss or a parameter is not finite.
        """
        started = time.monotonic() - self.seconds
        try:
            if not self.prepared:
                with self.engine.on_stream():
                    self.method.prepare(self.dataset.train)
                self.prepared = True
            while self.step < self.steps:
                yield
                with self.engine.on_stream():
                    self._update()
                    progress(self.step, self.steps)
                    if self.step % self.trial.validate == 0 or self.step == self.steps:
                        self._score()
                        self.engine.forget_if_moved()
                    elif self.trace.due(self.step):
                        self.trace.close(self.step)
                    self.seconds = time.monotonic() - started
                    keep(self)
            if not self.steps and not self.curve:
                with self.engine.on_stream():
                    self._score()
        finally:
            self.seconds = time.monotonic() - started

    def time_step(self, seconds: float = MEASURED_S) -> float:
        """Seconds per step as the trial would take them, by the fastest of some; the run is of no further use.

        It goes on until the engine has settled and for some steps more, but not for much longer than `seconds`.
        """
        with self.engine.on_stream():
            self.method.prepare(self.dataset.train)
            self._update()
        until = time.monotonic() + seconds
        times: list[float] = []
        settled = 0
        with self.engine.on_stream():
            while not times or (settled < MEASURED and time.monotonic() < until):
                settled += self.engine.settled
                started = time.monotonic()
                self._update()
                self.engine.wait()
                times.append(time.monotonic() - started)
        return min(times)

    def _update(self) -> None:
        """One step on the next batch of the current epoch's order; an incomplete last batch is left out."""
        batch, n = self.trial.batch, len(self.dataset.train)
        at = self.step % (n // batch)
        if at == 0:
            self.order = self.noise.permutation(n)
        self.index.copy_(self.order[at * batch : (at + 1) * batch])
        self._choose_labelled()
        self.engine()
        self.step += 1

    def _choose_labelled(self) -> None:
        """The next labelled examples: one random order of all of them after another; nothing without labels."""
        batch, y = len(self.labelled_index), self.dataset.train.y_labelled
        if y is None:
            return
        while len(self.labelled_order) < batch:
            self.labelled_order = torch.cat([self.labelled_order, self.noise.permutation(len(y))])
        self.labelled_index.copy_(self.labelled_order[:batch])
        self.labelled_order = self.labelled_order[batch:]

    def _take_step(self) -> None:
        """What the engine executes: all that it reads and changes are tensors that stay where they are."""
        with self.precision:
            losses = self.method.update(self._batch(self.noise))
        self.trace.add(losses)

    def _batch(self, noise: Noise) -> Batch:
        train = self.dataset.train
        x_labelled = y_labelled = None
        if train.x_labelled is not None and train.y_labelled is not None:
            x_labelled = train.x_labelled[self.labelled_index].float().mul_(train.scale)
            y_labelled = train.y_labelled[self.labelled_index]
        return Batch(train.take(self.index), noise, x_labelled, y_labelled, self.index)

    def _carried(self) -> list[Tensor]:
        """All tensors that one step leaves to the next."""
        method = self.method
        moments = (tensor for optimizer in method.optimizers().values() for tensor in optimizer_tensors(optimizer))
        return [*method.parameters(), *method.buffers(), *moments, *self.trace.totals.values()]

    def _score(self) -> None:
        """Adds a point to the curve: mean losses since the last one, and the scores of both splits."""
        named = dict(self.method.named_parameters())
        # read at once: a GPU is waited for at every reading
        finite = torch.stack([p.isfinite().all() for p in named.values()]).tolist() if named else []
        broken = [f"parameter {name!r}" for name, fine in zip(named, finite, strict=True) if not fine]
        self.trace.close(self.step, broken)
        data, n_classes = self.dataset, self.dataset.spec.n_classes
        n_clusters = int(self.trial.config.get("components", n_classes))
        self.method.eval()
        with torch.no_grad():
            self.method.finish(data.train)
            sets = data.x_validation, data.x_test
            validation, test = (self.predictions(x) for x in sets)
            odds = [self.log_odds(x) for x in sets] if hasattr(self.method, "log_odds") else []
            if hasattr(self.method, "sample") and data.spec.images:
                self.drawn.append(self._draw(n_clusters))
        self.method.train()
        scores = metrics.evaluate(
            self.trial.task, validation, data.y_validation, test, data.y_test, n_clusters, n_classes, odds
        )
        since = self.curve[-1]["step"] if self.curve else 0
        inside = {"instruments": self._instruments()} if self.step else {}
        self.curve.append({"step": self.step, "losses": self.trace.means(since), **inside, **scores})
        self.confusion = {
            name: metrics.contingency(pred, data.y_test, n_clusters, n_classes).tolist() for name, pred in test.items()
        }

    def _instruments(self) -> dict[str, float]:
        """The method's own readings on the batch of the last step, to five digits; those that are not finite are left out."""
        noise = Noise.seeded(derive("instruments", self.trial.init_seed, self.step), self.noise.device)
        readings = {name: float(value) for name, value in self.method.instruments(self._batch(noise)).items()}
        return {name: float(f"{value:.5g}") for name, value in readings.items() if math.isfinite(value)}

    def _draw(self, n_clusters: int) -> Tensor:
        """An image of every component, uint8 [K, C, H, W] on the CPU; the noise is the same at every scoring."""
        noise = Noise.seeded(derive("drawn", self.trial.init_seed), self.noise.device)
        images: Tensor = self.method.sample(torch.arange(n_clusters, device=noise.device), noise)  # type: ignore[operator]
        return images.clamp(0, 1).mul(255).round().to("cpu", torch.uint8)

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        """The method's answers on stored examples by classifier, int64 [N], on the CPU."""
        chunks = [self.method.predictions(part) for part in self._parts(x)]
        return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}

    def log_odds(self, x: Tensor) -> Tensor:
        """The log odds of all clusters for stored examples, float64 [N, K], on the CPU."""
        return torch.cat([self.method.log_odds(part) for part in self._parts(x)]).cpu()  # type: ignore[operator]

    def _parts(self, x: Tensor) -> Iterator[Tensor]:
        """Stored examples as the method sees them, as many at once as memory allows."""
        for part in torch.split(x, max(FEWEST, EVALUATED[x.device.type] // math.prod(x.shape[1:]))):
            yield part.float() * self.dataset.scale

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
