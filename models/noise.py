"""Every random number of a trial comes from one `Noise`, so a trial's stream never depends on who shares the device."""

from __future__ import annotations

import torch
from torch import Tensor


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

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws, the paper's epsilon."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draws from U[0, 1)."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def keep(self, like: Tensor, p: float) -> Tensor:
        """A dropout mask for `like`: 0 with probability `p` (to 16 bits), else 1 / (1 - p), so that its mean is 1.

        Four elements share one 64-bit draw: several times faster than a Bernoulli draw each on a CPU, where masks would
        otherwise take a third of a step. The mask has the memory layout of `like`, so that their product is one sweep.
        """
        n = like.numel()
        words = torch.empty(-(-n // 4), dtype=torch.int64, device=self.device)
        bits = words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[:n]
        mask = bits.float().ge_(round(p * 2**16) - 2**15).mul_(1.0 / (1.0 - p)).to(like.dtype)
        if like.is_contiguous() or like.ndim != 4:
            return mask.view(like.shape)
        n_images, channels, height, width = like.shape
        return mask.view(n_images, height, width, channels).permute(0, 3, 1, 2)

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
