"""How long trials will take: a few steps of each row, timed here on made-up examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.errors import UserError, told
from bench.progress import duration
from bench.sources import SOURCES
from bench.suite import Trial

if TYPE_CHECKING:
    from bench.data import Dataset
    from models.noise import Noise

EXAMPLES = 1000  # made up, or two batches if that is more


@dataclass(frozen=True)
class Estimate:
    """One row: seconds of a step, steps of a trial, and how many trials are left; preparing and scoring are not counted."""

    row: str
    step: float
    steps: int
    trials: int

    @property
    def seconds(self) -> float:
        """Of all its trials one after another."""
        return self.step * self.steps * self.trials

    def text(self) -> str:
        if not self.steps:
            return f"{self.row}: learns at once, without steps: not timed, {counted(self.trials)}"
        each = f"{self.step:.3g} s a step x {self.steps:,} steps = {duration(self.step * self.steps)} a trial"
        return f"{self.row}: {each}, {counted(self.trials)} {duration(self.seconds)}"


def counted(trials: int) -> str:
    return f"{trials} trial{'s' * (trials != 1)}"


def total(left: Sequence[Trial], device: str, threads: int, say: Callable[[str], None]) -> tuple[float, int]:
    """Seconds of all trials that take steps, one after another, and how many take none, whose time is not known.

    What is known of a row is said at once, since some take a minute to time.
    """
    seconds, untimed = 0.0, 0
    for found in _estimates(left, device, threads):
        say(found.text())
        seconds += found.seconds
        untimed += 0 if found.steps else found.trials
    return seconds, untimed


def summed(seconds: float, untimed: int) -> str:
    """What `total` found, in words, such as "about 3 h, and 10 trials that learn at once, not timed"."""
    at_once = f"{counted(untimed)} that learn{'s' * (untimed == 1)} at once, not timed"
    if not seconds and untimed:
        return at_once
    return f"about {duration(seconds)}" + (f", and {at_once}" if untimed else "")


def _estimates(left: Sequence[Trial], device: str, threads: int) -> Iterator[Estimate]:
    """One for each row among the trials, timed on `device` with so many CPU threads when it is asked for.

    UserError for a row that cannot take a step: whatever its method raises for a value of its config.
    """
    import torch

    from bench.trainer import Run

    torch.set_num_threads(threads)
    for name, trials in _by_row(left).items():
        trial = trials[0]
        try:
            run = Run(trial, torch.device(device), data=partial(made_up, trial))
            step = run.time_step() if run.steps else 0.0
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name}: cannot take a step ({told(error)}); mend the row in its suite") from error
        yield Estimate(name, step, run.steps, len(trials))


def _by_row(left: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Trials by suite and row: rows of several suites may have one name."""
    rows: dict[str, list[Trial]] = {}
    for trial in left:
        rows.setdefault(f"{trial.suite}/{trial.row}", []).append(trial)
    return rows


def made_up(trial: Trial, noise: Noise) -> Dataset:
    """Noise in the shape of the trial's data, on the device of `noise`: a step takes as long on it."""
    import torch

    from bench.data import Dataset
    from models.method import Data, Spec

    source, n = SOURCES[trial.data], max(EXAMPLES, 2 * trial.batch)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, *source.shape), generator=generator, dtype=torch.uint8).to(noise.device)
    y = (torch.arange(n) % source.n_classes).to(noise.device)
    labelled = (x[: trial.labels], y[: trial.labels]) if trial.labels else (None, None)
    spec = Spec(trial.data, source.shape, source.n_classes)
    return Dataset(spec, Data(x, 1 / 255, noise, *labelled), x, y, x, y, 1 / 255, "made up", "made up", {})
