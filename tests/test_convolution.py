"""Our convolution is PyTorch's, with all first and second derivatives that the penalty needs, and takes no useless ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.convolution import convolve
from models.noise import Noise

CASES = [(1, 0, False), (2, 0, False), (1, 1, False), (1, 0, True), (2, 0, True)]  # stride, padding, transposed
cases = pytest.mark.parametrize(("stride", "padding", "transposed"), CASES)


def _given(transposed: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    noise = Noise.seeded(0)
    x, weight = noise.normal(2, 3, 7, 7), noise.normal(*((3, 4) if transposed else (4, 3)), 3, 3)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def _theirs(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> Tensor:
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, None, stride, padding)


def _penalty(function: Any, x: Tensor, weight: Tensor, how: tuple[int, int, bool]) -> list[Tensor]:
    """Gradients of a loss that holds the output, its gradient by x, and a layer that is not linear between them."""
    out = torch.tanh(function(x, weight, *how))
    (by_x,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(by_x.square().sum() + out.sum(), [x, weight]))


@cases
def test_values_and_derivatives_are_pytorchs(stride: int, padding: int, transposed: bool) -> None:
    x, weight = _given(transposed)
    how = stride, padding, transposed
    assert torch.equal(convolve(x, weight, *how), _theirs(x, weight, *how))
    for ours, theirs in zip(_penalty(convolve, x, weight, how), _penalty(_theirs, x, weight, how), strict=True):
        torch.testing.assert_close(ours, theirs)


@cases
def test_derivatives_are_those_of_finite_differences(stride: int, padding: int, transposed: bool) -> None:
    x, weight = _given(transposed)
    assert torch.autograd.gradcheck(lambda x, w: convolve(x, w, stride, padding, transposed), (x, weight))

    def by_x(x: Tensor, weight: Tensor, along: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(convolve(x, weight, stride, padding, transposed), x, along, create_graph=True)
        return found

    along = torch.randn_like(_theirs(x, weight, stride, padding, transposed), requires_grad=True)
    weight, along = weight.detach().requires_grad_(), along.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda w, g: by_x(x, w, g), (weight, along))


class Backward(TorchDispatchMode):
    """Counts what backward passes of convolutions are asked for: by x, by weight, by bias."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[tuple[bool, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.asked[tuple(args[-1])] += 1
        return func(*args, **(kwargs or {}))


def test_only_what_is_wanted_is_computed() -> None:
    x, weight = _given(False, torch.float32)
    with Backward() as first:
        (by_x,) = torch.autograd.grad(convolve(x, weight, 1, 0, False).square().sum(), x, create_graph=True)
    assert first.asked == {(True, False, False): 1}
    with Backward() as second:
        torch.autograd.grad(by_x.square().sum(), weight)
    assert second.asked[(True, False, False)] == 0 and second.asked[(False, True, False)] == 2


def test_a_bias_is_pytorchs_too() -> None:
    x, weight = _given(False)
    bias = Noise.seeded(1).normal(4).double().requires_grad_()
    found, expected = convolve(x, weight, 2, 0, False, bias), F.conv2d(x, weight, bias, 2)
    assert torch.equal(found, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(out.square().sum(), [x, weight, bias]) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_gradient_by_the_weight_cannot_be_differentiated_again() -> None:
    x, weight = _given(False)
    (by_weight,) = torch.autograd.grad(convolve(x, weight, 1, 0, False).square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        by_weight.sum().backward()


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_makes_it_half_precision_as_it_does_pytorchs(grad: bool) -> None:
    x, weight = _given(False, torch.float32)
    x.requires_grad_(grad)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = convolve(x, weight, 1, 0, False), F.conv2d(x, weight)
    assert out.dtype == expected.dtype == torch.bfloat16 and torch.equal(out, expected)
    out.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
