"""Networks of layer tables.

python -m models.layers mnist.ENCODER        # print a table with its output shapes and parameter counts
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convolution import convolve
from models.latent import exp_n
from models.noise import Noise
from models.tables import Row, Table

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda h: F.softmax(h, dim=1),
}


class Layer(nn.Module):
    """One row with weights or without: dropout on its input, convolution, batch normalisation, activation, pooling.

    With `pool_first` pooling comes before batch normalisation, in the order of the tables' columns.
    A convolution that sees or makes a single position is computed as the matrix product that it is.
    """

    def __init__(
        self, row: Row, inputs: int, transposed: bool, bias: bool, momentum: float, pool_first: bool = False
    ) -> None:
        super().__init__()
        self.row, self.transposed, self.pool_first = row, transposed, pool_first
        a, b = (inputs, row.channels) if transposed else (row.channels, inputs)
        self.weight = nn.Parameter(torch.empty(a, b, row.width, row.width)) if row.width else None
        self.bias = nn.Parameter(torch.zeros(row.channels)) if row.width and bias else None
        self.norm = nn.BatchNorm2d(row.channels, momentum=momentum) if row.batchnorm else None

    def forward(
        self, x: Tensor, noise: Noise | None, before: Tensor | None = None, after: Tensor | None = None
    ) -> Tensor:
        """The row's output; `before` and `after` mask its input and its output: 1 what is kept, 0 what is dropped.

        What makes up for the dropped elements of its input, 1 / (1 - p), multiplies the weights unless the masks have it.
        """
        scale = 1.0 if noise is None or noise.scales or not self.training else 1 / (1 - self.row.dropout)
        x = self.linear(x if before is None else x * before.to(x.dtype), scale)
        if self.pool_first:
            x = self._pool(x)
        if self.norm is not None:
            x = self.norm(x)
        if after is not None and self.row.activation == "Leak" and (self.pool_first or not self.row.pool):
            return leaky_relu(x, self.row.slope, after)
        x = self._activate(x, noise)
        x = x if self.pool_first else self._pool(x)
        return x if after is None else x * after.to(x.dtype)

    def _pool(self, x: Tensor) -> Tensor:
        if not self.row.pool:
            return x
        size = int(self.row.pool[3:])
        return F.max_pool2d(x, size) if self.row.pool.startswith("Max") else F.avg_pool2d(x, size)

    def linear(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """The row's (transposed) convolution, times `scale`, and bias alone; x itself for a row without weights."""
        if self.weight is None:
            return x
        width, bias, weight = self.row.width, self.bias, self.weight * scale if scale != 1 else self.weight
        n, inputs, height, _ = x.shape
        one_position = height == 1 if self.transposed else height == width
        if one_position and not self.row.padding:
            # in the order in which memory holds positions and channels, so that nothing is moved
            if weight.is_contiguous():
                if not self.transposed:
                    return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
                out = (x.flatten(1) @ weight.flatten(1)).view(n, -1, width, width)
                return out if bias is None else out + bias[:, None, None]
            if self.transposed:  # every output position is a product with its own slice
                out = x.flatten(1) @ weight.permute(0, 2, 3, 1).reshape(inputs, -1)
                out = out.view(n, width, width, -1).permute(0, 3, 1, 2)
                return out if bias is None else out + bias[:, None, None]
            x, kernel = x.permute(0, 2, 3, 1).reshape(n, -1), weight.permute(0, 2, 3, 1).reshape(self.row.channels, -1)
            return F.linear(x, kernel, bias)[:, :, None, None]
        return convolve(x, weight, bias, self.row.stride, self.row.padding, self.transposed)

    def _activate(self, x: Tensor, noise: Noise | None) -> Tensor:
        if not self.row.activation:
            return x
        if self.row.activation == "Leak":
            return leaky_relu(x, self.row.slope)
        if self.row.activation == "ExpN":
            return exp_n(x, noise)
        return PLAIN[self.row.activation](x)


def layout(device: str) -> torch.memory_format:
    """In which convolutions are fastest: channels last on a CPU, by 1.3, and in half precision; else on a GPU the usual one."""
    last = device == "cpu" or torch.is_autocast_enabled(device)
    return torch.channels_last if last else torch.contiguous_format


def leaky_relu(x: Tensor, slope: float, mask: Tensor | None = None) -> Tensor:
    """Leaky ReLU, and dropout if there is a mask, as one product with what does not change with x almost everywhere.

    PyTorch's own takes a second derivative of zeros through the whole network, and dropout is a sweep more each way.
    """
    if mask is None and not (x.requires_grad and torch.is_grad_enabled()):
        return F.leaky_relu(x, slope)
    with torch.no_grad():
        mask = _one(x.device, x.dtype).expand_as(x) if mask is None else mask.to(x.dtype)
        factor = torch.ops.aten.leaky_relu_backward(mask, x, slope, False)  # 1 or the slope, times the mask
    return x * factor


@cache
def _one(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: twenty-five of them in a step would each be a kernel."""
    return torch.ones((), device=device, dtype=dtype)


def _needs_bias(row: Row, rows: list[Row]) -> bool:
    """Whether a bias would change anything: batch normalisation, here or in every row that reads this one, removes it."""
    readers = [other for other in rows if row.name in other.inputs]
    removed = bool(readers) and all(other.batchnorm and not other.width for other in readers)
    return not (row.batchnorm or (removed and not row.activation))


class Net(nn.Module):
    """The network of a layer table.

    Args:
        table: the layer table.
        k: number of categories.
        noise: draws the kernels from N(0, std^2); biases start at 0 (section 4 of the paper).
        momentum: of the running statistics of batch normalisation.
        pool_first: pool before batch normalisation instead of after the activation.
        dropout: factor on the table's probabilities. ValueError: one of them would not lie in [0, 1).
    """

    def __init__(
        self,
        table: Table,
        k: int,
        noise: Noise,
        momentum: float = 0.1,
        std: float = 0.02,
        pool_first: bool = False,
        dropout: float = 1.0,
    ) -> None:
        super().__init__()
        self.rows = [replace(row, dropout=dropout * row.dropout) for row in table.rows(k)]
        wrong = [row.dropout for row in self.rows if not 0 <= row.dropout < 1]
        if wrong:
            raise ValueError(f"{dropout} times the table's dropout gives a probability of {wrong[0]:g}")
        self.departures = table.departures()
        self.sizes = {
            row.name: (row.channels, *2 * (table.sizes.get(row.name, 1),)) for row in self.rows if not row.inputs
        }
        channels = {row.name: row.channels for row in self.rows}
        self.needs: dict[tuple[str, ...], frozenset[str]] = {}
        self.dropped = _dropped(self.rows, self.sizes, table.transposed)
        self.masked = {producer: reader for reader, (producer, _) in self.dropped.items() if producer}
        self.layers = nn.ModuleDict()
        for row in self.rows:
            if row.inputs:
                inputs = channels.get(row.inputs[0], row.channels)
                if row.join == "|":
                    inputs = sum(channels[name] for name in row.inputs)
                bias = _needs_bias(row, self.rows)
                self.layers[row.name] = Layer(row, inputs, table.transposed, bias, momentum, pool_first)
        self.to(noise.device)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = noise.normal(*parameter.shape).mul_(std)
        self.layout = layout(noise.device.type)
        self.to(memory_format=self.layout)

    def forward(self, noise: Noise | None, *wanted: str, **inputs: Tensor) -> dict[str, Tensor]:
        """Rows by name, each [B, channels, height, width].

        Args:
            noise: dropout masks (in training mode) and ExpN draw from it; None leaves both out, ExpN is 0 then.
            wanted: the rows that are needed, which with all that they depend on are computed; all rows if none is named.
            inputs: one tensor for each input that these rows read; [B, channels] is read as one position.
        """
        needed = self._needed(wanted)
        values = {name: _as_image(inputs[name], size) for name, size in self.sizes.items() if name in needed}
        first = next(iter(values.values()))
        masks = self._masks(len(first), noise, needed)
        for row in self.rows:
            if not row.inputs or row.name not in needed:
                continue
            if row.inputs == ("zeros",):
                parts = [torch.zeros(len(first), row.channels, 1, 1, device=first.device)]
            else:
                parts = [values[name] for name in row.inputs]
            joined = torch.cat(parts, 1) if row.join == "|" else sum(parts[1:], parts[0])
            before = None if row.inputs[0] in self.masked else masks.get(row.name)
            values[row.name] = self.layers[row.name](joined, noise, before, masks.get(self.masked.get(row.name, "")))
        return values

    def log_variance(self, row: str, values: dict[str, Tensor]) -> Tensor:
        """What the ExpN of a row multiplies its noise with, as log σ², [B, channels, 1, 1]; `values` are `forward`'s."""
        layer = cast(Layer, self.layers[row])
        return layer.linear(values[layer.row.inputs[0]])

    def _masks(self, n: int, noise: Noise | None, needed: frozenset[str]) -> dict[str, Tensor]:
        """A dropout mask for each needed row that drops, in training; one draw for each probability."""
        masks: dict[str, Tensor] = {}
        if noise is None or not self.training:
            return masks
        rows = [row for row in self.rows if row.dropout and row.name in needed]
        for p in dict.fromkeys(row.dropout for row in rows):
            names = [row.name for row in rows if row.dropout == p]
            shapes = [(n, *self.dropped[name][1]) for name in names]
            masks |= zip(names, noise.masks(shapes, p, self.layout), strict=True)
        return masks

    def _needed(self, wanted: tuple[str, ...]) -> frozenset[str]:
        """Names of the rows that `wanted` depends on, itself included; of all rows for an empty `wanted`."""
        if wanted not in self.needs:
            unknown = set(wanted) - {row.name for row in self.rows}
            if unknown:
                raise KeyError(f"no rows {sorted(unknown)} in this network")
            needed = set(wanted or (row.name for row in self.rows))
            for row in reversed(self.rows):
                needed |= set(row.inputs) if row.name in needed else set()
            self.needs[wanted] = frozenset(needed)
        return self.needs[wanted]

    @torch.no_grad()
    def summary(self) -> list[tuple[str, tuple[int, ...], int]]:
        """(row, output shape without the batch, parameters) of every row."""
        device = next(self.parameters()).device
        values = self.eval()(None, **{name: torch.zeros(2, *size, device=device) for name, size in self.sizes.items()})
        return [
            (row.name, tuple(values[row.name].shape[1:]), sum(p.numel() for p in self.layers[row.name].parameters()))
            if row.inputs
            else (row.name, self.sizes[row.name], 0)
            for row in self.rows
        ]


def _dropped(
    rows: list[Row], sizes: dict[str, tuple[int, int, int]], transposed: bool
) -> dict[str, tuple[str, tuple[int, int, int]]]:
    """Each row that drops elements of its input: that input's shape, and its row if this one alone reads it.

    Then the mask is applied where that row ends, which is the same and lets its activation and the mask be one product.
    """
    shapes, found = dict(sizes), {}
    for row in rows:
        if not row.inputs:
            continue
        channels = [shapes[name][0] for name in row.inputs if name in shapes]
        size = shapes.get(row.inputs[0], (0, 1, 1))[1]
        if row.dropout:
            alone = len(row.inputs) == 1 and sum(row.inputs[0] in other.inputs for other in rows) == 1
            producer = row.inputs[0] if alone and row.inputs[0] not in sizes else ""
            joined = sum(channels) if row.join == "|" else channels[0]
            found[row.name] = producer, (joined, size, size)
        if row.width:
            inside = size + 2 * row.padding
            size = (size - 1) * row.stride + row.width if transposed else (inside - row.width) // row.stride + 1
        size //= int(row.pool[3:]) if row.pool else 1
        shapes[row.name] = (row.channels, size, size)
    return found


def _as_image(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x.view(len(x), *size) if x.ndim == 2 else x


def describe(table: Table, k: int = 10) -> str:
    """The table with output shapes and parameter counts, and its amendments below."""
    net = Net(table, k, Noise.seeded(0))
    lines = table.lines()
    width = max(map(len, lines))
    shown = [lines[0].ljust(width) + "  Output         Parameters"]
    for line, (_, shape, count) in zip(lines[1:], net.summary(), strict=True):
        shown.append(f"{line.ljust(width)}  {'x'.join(map(str, shape)):<13}  {count:>10,}")
    total = f"{sum(p.numel() for p in net.parameters()):,}"
    return "\n".join([table.title, *shown, f"{total} parameters in all, k = {k}", *net.departures])


def main(arguments: list[str]) -> int:
    """`python -m models.layers mnist.ENCODER [K]`: print one table."""
    usage = "usage: python -m models.layers MODULE.TABLE [K], e.g. mnist.ENCODER"
    if {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    try:
        module, _, name = (arguments or [""])[0].partition(".")
        found = vars(importlib.import_module(f"models.{module}")) if module else {}
        tables = {key: value for key, value in found.items() if isinstance(value, Table)}
        if name not in tables:
            raise ValueError(f"no layer table {name!r} in models.{module}, which has {', '.join(tables) or 'none'}")
        k = arguments[1] if len(arguments) > 1 else "10"
        if not k.isdecimal():
            raise ValueError(f"K: expected a whole number, got {k!r}")
        print(describe(tables[name], int(k)))
    except (ValueError, ImportError) as error:
        print(f"error: {error}; {usage}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
