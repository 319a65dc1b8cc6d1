"""How a training step is executed: in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch

from bench.errors import UserError
from bench.suite import Precision


def set_precision(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Makes float32 products of this process IEEE single precision, and returns the context for the training steps.

    fp32 stays so, which on a GPU has to be asked for; tf32 rounds the factors of matrix products and convolutions to 10 bits,
    which only a GPU does; bf16 runs them in bfloat16 by autocast, with float32 weights, gradients and optimiser. UserError:
    tf32 without a GPU.
    """
    require_device(precision, device.type)
    _products("ieee")
    return _Computing(precision, device)


def require_device(precision: Precision, device: str) -> None:
    """UserError if `device`, such as "cpu" or "cuda:0", cannot compute in this precision."""
    if precision == "tf32" and not device.startswith("cuda"):
        raise UserError(f"precision: tf32 needs a GPU, the device is {device}; use fp32 or bf16")


def _products(mode: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


class _Computing(AbstractContextManager[None]):
    """Entered anew for every step."""

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self.stack = ExitStack()

    def __enter__(self) -> None:
        if self.precision == "tf32":
            _products("tf32")
            self.stack.callback(_products, "ieee")
        if self.precision == "bf16":  # without autocast's cache, which would not notice an optimiser within a step
            self.stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False))

    def __exit__(self, *error: object) -> None:
        self.stack.close()
