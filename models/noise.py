"""Every random number of a trial comes from one `Noise`, so a trial's stream never depends on who shares the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

PART = 2**17  # elements of a mask that are drawn at once, a multiple of 4


# an operation of its own, which a recorded step calls again
@torch.library.custom_op("amm_bench::keep_", mutates_args=("kept",))
def _keep_(kept: Tensor, seed: Tensor, least: int) -> None:
    """Fills `kept`, float32 [n] on the CPU, with 1 where 16 bits of NumPy's SFC64 are at least `least`, else with 0.

    That generator takes half the time of PyTorch's; a part at a time, its bits never leave the processor's cache.
    """
    draw, out = numpy.random.SFC64(int(seed)).random_raw, kept.numpy()
    for start in range(0, len(out), PART):
        part = out[start : start + PART]
        bits = draw(-(-len(part) // 4)).view(numpy.int16)[: len(part)]
        numpy.greater_equal(bits, least, out=part, casting="unsafe")


class Noise:
    """The random stream of one trial.

    Args:
        generator: seeded by the harness; all tensors are float32 on its device unless said otherwise.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device | str = "cpu") -> Noise:
        """A fresh stream; `seed` is any non-negative integer below 2**63, of which PyTorch's CPU generator uses 32 bits."""
        return cls(torch.Generator(device).manual_seed(seed))

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @property
    def scales(self) -> bool:
        """Whether `masks` make up for what they drop. If not, a layer's weights do, which are fewer: less work for a CPU.

        A GPU prefers one more sweep over all masks to a product, and its derivatives, for each layer.
        """
        return self.device.type != "cpu"

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws, the paper's epsilon."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draws from U[0, 1)."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def keep(self, like: Tensor, p: float) -> Tensor:
        """A dropout mask for `like`: 0 with probability `p` (to 16 bits), else 1 / (1 - p), so that its mean is 1.

        It has the memory layout of `like`, so that their product is one sweep.
        """
        channels_last = like.ndim == 4 and not like.is_contiguous()
        shape = (like.shape[0], *like.shape[2:], like.shape[1]) if channels_last else like.shape
        mask = self._kept(like.numel(), p).mul_(1 / (1 - p)).to(like.dtype).view(shape)
        return mask.permute(0, 3, 1, 2) if channels_last else mask

    def masks(
        self,
        shapes: Sequence[tuple[int, int, int, int]],
        p: float,
        layout: torch.memory_format = torch.channels_last,
    ) -> list[Tensor]:
        """Where images [B, C, H, W] are kept (1) and where dropped (0, with probability `p`), all from one draw.

        In memory of this layout. What is kept is scaled as by `keep` if the noise `scales`, else not.
        """
        sizes = [math.prod(shape) for shape in shapes]
        kept = self._kept(sum(sizes), p)
        parts = (kept.mul_(1 / (1 - p)) if self.scales else kept).split(sizes)
        if layout != torch.channels_last:
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [part.view(b, h, w, c).permute(0, 3, 1, 2) for part, (b, c, h, w) in zip(parts, shapes, strict=True)]

    def _kept(self, n: int, p: float) -> Tensor:
        """`n` times 0 with probability `p`, else 1.

        Four elements share one 64-bit draw: several times faster than a Bernoulli draw each on a CPU, where masks would
        otherwise take a third of a step.
        """
        kept, least = torch.empty(n, device=self.device), round(p * 2**16) - 2**15
        if self.device.type == "cpu":
            _keep_(kept, self.integers(2**63 - 1, 1), least)
            return kept
        bits = torch.empty(max(1, -(-n // 4)), dtype=torch.int64, device=self.device)
        bits.random_(-(2**63), None, generator=self.generator)
        return torch.ge(bits.view(torch.int16)[:n], least, out=kept)

    def categorical(self, probabilities: Tensor, n: int) -> Tensor:
        """`n` category ids, int64 [n], drawn with the given probabilities, float [K]."""
        return torch.multinomial(probabilities, n, replacement=True, generator=self.generator)

    def integers(self, high: int, n: int) -> Tensor:
        """`n` integers in [0, high), int64 [n]."""
        return torch.randint(high, (n,), generator=self.generator, device=self.device)

    def permutation(self, n: int) -> Tensor:
        """A random order of 0..n-1, int64 [n]."""
        return torch.randperm(n, generator=self.generator, device=self.device)

    def seed(self) -> int:
        """A seed below 2**31 for a library that keeps a random state of its own (scikit-learn, scipy)."""
        return int(self.integers(2**31 - 1, 1))
