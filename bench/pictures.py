"""Pictures of a trained trial, after the paper's Figures 2-4; `bench.figures` writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data import Dataset
from bench.seeds import derive
from bench.trained import Trained
from models.noise import Noise

# Okabe and Ito's colours, which the colour-blind can tell apart, the yellow darkened, and two greys
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#b5a000", "#0072b2", "#d55e00", "#cc79a7", "#999999", "#555555")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "svg.hashsalt": "amm-bench",  # names inside an SVG are then the same every time
    "svg.fonttype": "none",  # words stay words
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a label may hold a dollar
}
EACH = 10  # images of a component, pairs of a reconstruction, points of an interpolation
POINTS = 200  # drawn from a component in the plane
MOMENTS = 20  # scorings at which what a component drew is shown
PROJECTED = 2000  # test images in the t-SNE projection


@dataclass(frozen=True)
class Picture:
    """A figure of matplotlib with its file name and what it shows, in words."""

    name: str
    alt: str
    figure: Any


def new_figure(width: float, height: float) -> Any:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")  # pyplot would keep it until it is told to close it


def _grid(axis: Any, images: Sequence[Tensor | None], columns: int) -> None:
    """Images [C, H, W] in [0, 1] in rows of `columns`, with a white line between; None leaves a place empty."""
    channels, height, width = next(image.shape for image in images if image is not None)
    rows = -(-len(images) // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels))
    for place, image in enumerate(images):
        if image is not None:
            top, left = (place // columns) * (height + 1), (place % columns) * (width + 1)
            sheet[top : top + height, left : left + width] = image.permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


class Pictures:
    """The pictures of one trained trial."""

    def __init__(self, trained: Trained, dataset: Dataset) -> None:
        self.method, self.trial, self.record, self.data = trained.method, trained.trial, trained.record, dataset
        self.drawn = trained.drawn
        self.x = dataset.x_test.float() * dataset.scale
        self.k = int(self.trial.config.get("components", dataset.spec.n_classes))
        with torch.no_grad():
            self.clusters = torch.cat([self.method.predict(x) for x in self.x.split(250)])

    def _noise(self, name: str) -> Noise:
        return Noise.seeded(derive("figures", self.trial.init_seed, name), self.x.device)

    def _number(self, axis: Any, height: int) -> None:
        """A component's number beside each row of a grid, whose rows are `height` apart."""
        axis.set_yticks([k * height + height / 2 for k in range(self.k)], [str(k) for k in range(self.k)])
        axis.tick_params(length=0)

    def components(self) -> Picture:
        """Figures 2a, 3a, 4a and 4b."""
        noise = self._noise("components")
        figure = new_figure(6.0, 0.29 * self.k + 0.3)
        left, right = figure.subplots(1, 2)
        members: list[Tensor | None] = []
        for k in range(self.k):
            found = self.x[self.clusters == k][:EACH]
            members += [*found, *[None] * (EACH - len(found))]
        drawn: list[Tensor | None] = []
        for k in range(self.k):
            drawn += [*self.method.sample(torch.full((EACH,), k, device=self.x.device), noise)]  # type: ignore[operator]
        for axis, title, images in (
            (left, "test images", members),
            (right, "drawn from the component", drawn),
        ):
            _grid(axis, images, EACH)
            axis.set_title(title)
        self._number(left, self.x.shape[2] + 1)
        alt = f"One row for each of {self.k} components: on the left test images given to it, on the right images drawn from it"
        return Picture("components", alt, figure)

    def points(self) -> Picture:
        """What `components` shows, for data in the plane."""
        noise = self._noise("components")
        drawn = self.method.sample(torch.arange(self.k, device=self.x.device).repeat_interleave(POINTS), noise)  # type: ignore[operator]
        figure = new_figure(6.0, 3.2)
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, title, found, component in (
            (left, "test points", self.x, self.clusters),
            (right, "drawn from the component", drawn, torch.arange(self.k).repeat_interleave(POINTS)),
        ):
            for k in range(self.k):
                mine = found[component.to(found.device) == k].flatten(1).cpu().numpy()
                axis.scatter(*mine.T, s=4, color=COLOURS[k % len(COLOURS)], linewidths=0, label=str(k))
            axis.set_title(title)
            axis.set_aspect("equal")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", title="component", markerscale=2)
        alt = f"On the left the test points given to each of {self.k} components, on the right {POINTS} points drawn from each"
        return Picture("components", alt, figure)

    def clusters_by_class(self) -> Picture:
        """Figures 2b, 3d and 4f: components by class, with the numbers of test images; rows in the order of their class."""
        counts = np.array(self.record["result"]["confusion"]["predict"])
        order = sorted(range(len(counts)), key=lambda k: (counts[k].argmax(), -counts[k].max()))
        figure = new_figure(0.42 * counts.shape[1] + 1.0, 0.26 * len(counts) + 0.8)
        axis = figure.subplots()
        shade = counts[order] / np.maximum(counts.sum(1)[order, None], 1)
        axis.imshow(shade, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, k in enumerate(order):
            for column, count in enumerate(counts[k]):
                if count:
                    dark = "white" if shade[row, column] > 0.6 else "black"
                    axis.text(column, row, str(count), ha="center", va="center", color=dark, fontsize=6)
        axis.set_xticks(range(counts.shape[1]))
        axis.set_yticks(range(len(order)), [str(k) for k in order])
        axis.set_xlabel("class")
        axis.set_ylabel("component")
        alt = "How many test images of each class every component holds; the shade is the share of the component"
        return Picture("clusters", alt, figure)

    def reconstructions(self) -> Picture:
        """Figure 2c: originals on the left of each pair."""
        originals = self.x[: 4 * EACH]
        again = self.method.reconstruct(originals)  # type: ignore[operator]
        figure = new_figure(5.0, 2.2 * self.x.shape[2] / self.x.shape[3])
        pairs = [image for pair in zip(originals, again, strict=True) for image in pair]
        _grid(figure.subplots(), pairs, EACH)
        return Picture("reconstructions", "Pairs of test images, each followed by its reconstruction", figure)

    def interpolations(self) -> Picture:
        """Figures 2d, 3c and 4c: between pairs of test images, which stand in the first and last columns."""
        a, b = self.x[:EACH], self.x[EACH : 2 * EACH]
        between = [self.method.interpolate(a, b, t) for t in np.linspace(0, 1, EACH)]  # type: ignore[operator]
        images = [image for row in zip(a, *between, b, strict=True) for image in row]
        figure = new_figure(5.0, 4.2)
        _grid(figure.subplots(), images, EACH + 2)
        alt = "Each row goes from one test image, first column, to another, last column, by images made from codes between theirs"
        return Picture("interpolations", alt, figure)

    def projection(self) -> Picture:
        """Figures 2e, 3b and 4d."""
        from sklearn.manifold import TSNE

        x, y = self.x[:PROJECTED], self.data.y_test[:PROJECTED].cpu().numpy()
        codes = torch.cat([self.method.embed(part) for part in x.split(250)]).cpu().numpy()  # type: ignore[operator]
        places = TSNE(random_state=0, init="pca", perplexity=min(30, (len(x) - 1) / 3)).fit_transform(codes)
        figure = new_figure(4.5, 4.0)
        axis = figure.subplots()
        for label in range(self.data.spec.n_classes):
            mine = places[y == label]
            axis.scatter(
                *mine.T, s=14, color=COLOURS[label % 10], marker=f"${label}$", linewidths=0.1, label=str(label)
            )
        axis.set_axis_off()
        alt = f"t-SNE of the embeddings of {len(x)} test images; each point is the number of its class"
        return Picture("projection", alt, figure)

    def over_time(self) -> Picture:
        """What each component drew as it was trained: a column a scoring, all from the same noise."""
        points = self.record["result"]["curve"]
        chosen = sorted({round(at) for at in np.linspace(0, len(self.drawn) - 1, MOMENTS)})
        images: list[Tensor | None] = [self.drawn[at][k].float() / 255 for k in range(self.k) for at in chosen]
        height, width = (size + 1 for size in self.drawn[0].shape[2:])
        cell = 5.4 / len(chosen)
        figure = new_figure(6.0, cell * self.k * height / width + 0.8)
        axis = figure.subplots()
        _grid(axis, images, len(chosen))
        steps = [f"{points[at]['step']:,}" for at in chosen]
        axis.set_xticks([i * width + width / 2 for i in range(len(chosen))], steps, rotation=90)
        self._number(axis, height)
        axis.set_xlabel("step")
        axis.set_ylabel("component")
        alt = f"What each of {self.k} components drew from the same noise, one row a component, at growing numbers of steps"
        return Picture("over_time", alt, figure)

    def made(self) -> list[Picture]:
        """All pictures that the method can make: it has what they ask of it."""
        images = self.data.spec.images
        asked: dict[Callable[[], Picture], str] = {self.components if images else self.points: "sample"}
        asked |= {self.clusters_by_class: "predict"}
        asked |= {self.reconstructions: "reconstruct", self.interpolations: "interpolate"} if images else {}
        asked |= {self.projection: "embed"}
        found = []
        for make, member in asked.items():
            if hasattr(self.method, member):
                with torch.no_grad():
                    found.append(make())
            else:
                print(f"{make.__name__}: {self.trial.method} cannot make it", file=sys.stderr)
        if self.drawn and images:
            found.append(self.over_time())
        return found
