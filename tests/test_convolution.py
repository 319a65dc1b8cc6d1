"""Our convolutions are PyTorch's, with the first and second derivatives that the penalty needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.contenders import FlopCounter
from models.convolution import convolve
from models.noise import Noise

CASES = [  # inputs, outputs, width, stride, padding, transposed
    pytest.param(6, 4, 3, 1, 0, False, id="stride 1"),
    pytest.param(6, 4, 3, 2, 0, False, id="stride 2"),
    pytest.param(6, 4, 2, 3, 0, False, id="a border that no kernel reaches"),
    pytest.param(6, 4, 3, 1, 1, False, id="padding"),
    pytest.param(6, 4, 3, 2, 1, False, id="padding and stride"),
    pytest.param(1, 4, 2, 2, 0, False, id="few inputs"),
    pytest.param(6, 4, 3, 2, 0, True, id="transposed"),
    pytest.param(6, 1, 2, 1, 0, True, id="few outputs"),
]


def _second(function: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a loss that holds the output and its gradient by x, with a layer between that is not linear."""
    out = torch.tanh(function(x, *weights))
    (by_x,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    return torch.autograd.grad(by_x.square().sum() + out.sum(), [x, *weights])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "width", "stride", "padding", "transposed"), CASES)
def test_values_and_derivatives_are_pytorchs(
    inputs: int, outputs: int, width: int, stride: int, padding: int, transposed: bool, with_bias: bool
) -> None:
    noise = Noise.seeded(0)
    kernel = noise.normal(*((inputs, outputs) if transposed else (outputs, inputs)), width, width)
    x, *weights = (t.double().requires_grad_() for t in (noise.normal(2, inputs, 7, 7), kernel, noise.normal(outputs)))
    weights = weights if with_bias else weights[:1]
    plain = F.conv_transpose2d if transposed else F.conv2d

    def ours(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return convolve(x, kernel, bias, stride, padding, transposed)

    def theirs(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return plain(x, kernel, bias, stride, padding)

    torch.testing.assert_close(ours(x, *weights), theirs(x, *weights))
    for found, expected in zip(_second(ours, x, *weights), _second(theirs, x, *weights), strict=True):
        torch.testing.assert_close(found, expected)


def _given() -> tuple[Tensor, Tensor]:
    """Images and kernels, of float32."""
    noise = Noise.seeded(0)
    return noise.normal(2, 8, 7, 7).requires_grad_(), noise.normal(4, 8, 3, 3).requires_grad_()


class Kernels(TorchDispatchMode):
    """Notes the widths of the kernels of all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.widths.add(args[1].shape[-1])
        return func(*args, **(kwargs or {}))


def test_second_derivatives_take_no_image_for_a_kernel() -> None:
    x, kernel = _given()
    widths = []
    for function in (convolve, F.conv2d):
        with Kernels() as kernels:
            _second(lambda x, w, function=function: function(x, w, None, 1), x, kernel)
        widths.append(kernels.widths)
    assert widths == [{3}, {3, 5}]


def test_a_gradient_by_x_alone_leaves_out_the_kernels() -> None:
    x, kernel = _given()
    counts = []
    for function in (convolve, F.conv2d):
        with FlopCounter() as counter:
            torch.autograd.grad(function(x, kernel, None, 1).sum(), x, create_graph=True)
        first = counter.total
        with counter:
            _second(lambda x, w, function=function: function(x, w, None, 1), x, kernel)
            function(x, kernel, None, 1).sum().backward()
        counts.append((first, counter.total))
    assert counts[0] == counts[1] and x.grad is not None and kernel.grad is not None


def test_under_autocast_it_is_pytorchs() -> None:
    x, kernel = _given()
    found = []
    for function in (convolve, F.conv2d):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x, kernel, None, 1)
        found.append((out, *torch.autograd.grad(out.float().sum(), [x, kernel])))
    assert found[0][0].dtype == torch.bfloat16 and all(map(torch.equal, *found))
