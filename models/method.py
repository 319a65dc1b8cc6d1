"""The contract between a method and the bench.

A method owns one step: `update(batch)` plays all players of its game once, `predict(x)` answers. It never scores itself,
never opens a file, never sees a seed, never owns a loop. The bench owns everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.noise import Noise


@dataclass(frozen=True)
class Spec:
    """What a method may know about a dataset before it sees it.

    Attributes:
        data: name of the dataset, such as "mnist".
        shape: shape of one example, (channels, height, width); a point in the plane is (2, 1, 1).
        n_classes: number of true classes.
    """

    data: str
    shape: tuple[int, int, int]
    n_classes: int

    @property
    def images(self) -> bool:
        """Whether examples are pictures, grey or in colours, and not points."""
        return self.shape[0] in (1, 3)


@dataclass(frozen=True)
class Batch:
    """What one step gets: examples (float [B, C, H, W], images in [0, 1]), the trial's noise, and labelled examples if any.

    `index` is where in `Data.x` the examples stand, int64 [B].
    """

    x: Tensor
    noise: Noise
    x_labelled: Tensor | None = None
    y_labelled: Tensor | None = None
    index: Tensor | None = None


@dataclass(frozen=True)
class Data:
    """The training examples, whole and on the device, for `prepare` and `finish`.

    Attributes:
        x: stored examples [N, C, H, W], uint8 or float32.
        scale: float example = x * scale.
        noise: the trial's random stream.
        x_labelled, y_labelled: the labelled subset, stored like x, and its int64 classes; None without labels.
    """

    x: Tensor
    scale: float
    noise: Noise
    x_labelled: Tensor | None = None
    y_labelled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Tensor:
        """The examples at `index` (int64 [B]) as float [B, C, H, W]."""
        return self.x[index].float().mul_(self.scale)

    def batches(self, size: int = 1000) -> Iterator[Tensor]:
        """All examples in stored order, as float batches of at most `size`."""
        for chunk in torch.split(self.x, size):
            yield chunk.float() * self.scale  # a new tensor also where the stored ones are float


class Method(nn.Module):
    """Base of every method: an `nn.Module` with a frozen `Config` and one step.

    Optimisers kept as attributes are checkpointed with the parameters and buffers; anything else that a resumed trial
    needs must be a buffer.

    Attributes:
        Config: frozen dataclass; every knob, its default, its symbol, and where its value comes from. Its field
            `components` is the number of clusters, K; without one there are as many as classes.
        graphable: False when `update` synchronises with the host and so cannot be captured as a graph.
        iterative: False for a method that learns in `finish` alone; the bench then takes no steps.
        needs_labels: True for a method that cannot learn without labelled examples.
    """

    Config: ClassVar[type[Any]]
    graphable: ClassVar[bool] = True
    iterative: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    def __init__(self, config: Any, spec: Spec, noise: Noise) -> None:
        """Nets and optimisers. `noise` initialises the parameters."""
        super().__init__()
        self.config = config
        self.spec = spec

    def prepare(self, data: Data) -> None:
        """Called once before the first step: pretraining, radii, label frequencies."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players; returns detached scalar losses. No `.item()`, no branch on a tensor's value.

        The bench may record it once and replay it, so a number that changes over time is a tensor, not Python's.
        """
        raise TypeError(f"{type(self).__name__} takes no steps")

    def finish(self, data: Data) -> None:
        """Called before predictions are scored: k-means on features, refitted statistics.

        It may run several times in a trial, so it must replace, not accumulate.
        """

    def predict(self, x: Tensor) -> Tensor:
        """Cluster or class ids, int64 [B], of float [B, C, H, W]; the same input always gives the same answer.

        The bench calls `eval()` first, here and before `finish`, and takes no gradients.
        """
        raise TypeError(f"{type(self).__name__} does not predict")

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        """All answers that a record scores, by name: `predict`'s, and those of a method's further classifiers."""
        return {"predict": self.predict(x)}

    def instruments(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name that show the run from inside, for its curve; of a batch like `update`'s, with a stream of its own.

        Called in training mode whenever the bench scores. It must leave weights, buffers and optimisers as they are.
        """
        return {}

    def departures(self) -> list[str]:
        """Footnotes for the record, each a difference from the published description; by default those of its networks."""
        found = [text for part in self.children() for text in getattr(part, "departures", ())]
        return list(dict.fromkeys(found))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers found among the attributes, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)}
