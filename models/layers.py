"""Networks of layer tables.

python -m models.layers mnist.ENCODER        # print a table with its output shapes and parameter counts
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.latent import exp_n
from models.noise import Noise
from models.tables import Row, Table

FEW_TAPS = 16  # inputs x width² below which a CPU is faster with patches and a matrix product, 2-3 times for Table 3's first row
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda h: F.softmax(h, dim=1),
}


class Layer(nn.Module):
    """One row with weights or without: dropout on its input, convolution, batch normalisation, activation, pooling.

    With `pool_first` pooling comes before batch normalisation, in the order of the tables' columns.
    A convolution that sees or makes a single position is computed as the matrix product that it is, and so is, on a CPU,
    one with few inputs, such as a first layer on grey images.
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

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        if self.row.dropout and noise is not None and self.training:
            x = x * noise.keep(x, self.row.dropout)
        x = self.linear(x)
        if self.pool_first:
            x = self._pool(x)
        if self.norm is not None:
            x = self.norm(x)
        x = self._activate(x, noise)
        return x if self.pool_first else self._pool(x)

    def _pool(self, x: Tensor) -> Tensor:
        if not self.row.pool:
            return x
        size = int(self.row.pool[3:])
        return F.max_pool2d(x, size) if self.row.pool.startswith("Max") else F.avg_pool2d(x, size)

    def linear(self, x: Tensor) -> Tensor:
        """The row's (transposed) convolution and bias alone; x itself for a row without weights."""
        weight = self.weight
        if weight is None:
            return x
        n, _, height, width = x.shape
        if self.row.padding:
            return self._convolve(x, weight)
        if self.transposed and height == width == 1:  # every output position is a product with its own slice
            out = (x.flatten(1) @ weight.flatten(1)).view(n, -1, self.row.width, self.row.width)
            return out if self.bias is None else out + self.bias[:, None, None]
        if not self.transposed and height == width == self.row.width:
            return F.linear(x.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]
        taps = weight[0].numel()
        if not self.transposed and taps <= FEW_TAPS and x.device.type == "cpu":
            patches = F.unfold(x, self.row.width, stride=self.row.stride).transpose(1, 2)
            size = (height - self.row.width) // self.row.stride + 1
            return (
                F.linear(patches, weight.flatten(1), self.bias).view(n, size, -1, self.row.channels).permute(0, 3, 1, 2)
            )
        return self._convolve(x, weight)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        return convolve(x, weight, self.bias, self.row.stride, self.row.padding)

    def _activate(self, x: Tensor, noise: Noise | None) -> Tensor:
        if not self.row.activation:
            return x
        if self.row.activation == "Leak":
            return F.leaky_relu(x, self.row.slope)
        if self.row.activation == "ExpN":
            return exp_n(x, noise)
        return PLAIN[self.row.activation](x)


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
    """

    def __init__(
        self, table: Table, k: int, noise: Noise, momentum: float = 0.1, std: float = 0.02, pool_first: bool = False
    ) -> None:
        super().__init__()
        self.rows = table.rows(k)
        self.departures = table.departures()
        self.sizes = {
            row.name: (row.channels, *2 * (table.sizes.get(row.name, 1),)) for row in self.rows if not row.inputs
        }
        channels = {row.name: row.channels for row in self.rows}
        self.needs: dict[tuple[str, ...], frozenset[str]] = {}
        self.layers = nn.ModuleDict()
        for row in self.rows:
            if row.inputs:
                inputs = channels.get(row.inputs[0], row.channels)
                if row.join == "|":
                    inputs = sum(channels[name] for name in row.inputs)
                bias = _needs_bias(row, self.rows)
                self.layers[row.name] = Layer(row, inputs, table.transposed, bias, momentum, pool_first)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = noise.normal(*parameter.shape).mul_(std)
        # convolutions on a CPU are about 1.3 times as fast with channels last, and so are they in half precision on a GPU
        self.to(noise.device).to(memory_format=torch.channels_last)

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
        for row in self.rows:
            if not row.inputs or row.name not in needed:
                continue
            if row.inputs == ("zeros",):
                parts = [torch.zeros(len(first), row.channels, 1, 1, device=first.device)]
            else:
                parts = [values[name] for name in row.inputs]
            joined = torch.cat(parts, 1) if row.join == "|" else sum(parts[1:], parts[0])
            values[row.name] = self.layers[row.name](joined, noise)
        return values

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
    try:
        module, _, name = arguments[0].partition(".")
        table = vars(importlib.import_module(f"models.{module}"))[name]
        if not isinstance(table, Table):
            raise TypeError(f"{name} is not a layer table")
        print(describe(table, int(arguments[1]) if len(arguments) > 1 else 10))
    except (IndexError, KeyError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error!r}; usage: python -m models.layers MODULE.TABLE [K], e.g. mnist.ENCODER", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
