"""Convolutions whose second derivatives cost what first ones cost.

PyTorch differentiates the gradient of a convolution by convolutions that take the batch for channels, several times slower
than the first derivatives of the same shapes. The penalty of Eq. 18 needs just that. All derivatives of a bilinear map are
the map itself, its adjoint and its gradient by the weight, so these three serve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

How = tuple[list[int], list[int], list[int], bool, list[int], int]  # stride, padding, dilation, transposed, ..., groups


def convolve(
    x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool, bias: Tensor | None = None
) -> Tensor:
    """The (transposed) convolution of x [B, C, H, W]; twice differentiable, by x or weight each time."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    how: How = [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1
    if not (torch.is_grad_enabled() and x.requires_grad):  # no second derivative goes through the weight alone
        return torch.convolution(x, weight, bias, *how)
    # views, because a leaf cannot be asked whether its gradient is wanted
    given = (None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, bias))
    out: Tensor = _Convolution.apply(*given, how)
    return out


def _wanted(ctx: Any) -> list[bool]:
    """Whose gradient the backward pass under way needs; `ctx.needs_input_grad` says only whose could be needed."""
    edges = [node for node, _ in torch._C._current_autograd_node().next_functions]
    return [
        needs and node is not None and torch._C._will_engine_execute_node(node)
        for needs, node in zip(ctx.needs_input_grad, edges, strict=False)
    ]


def _gradients(g: Tensor, x: Tensor, weight: Tensor, how: How, mask: list[bool]) -> list[Tensor]:
    found: list[Tensor] = torch.ops.aten.convolution_backward(g, x, weight, None, *how, [*mask, False])
    return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = [*_wanted(ctx), False][:3]  # one that is None does not count
        return (
            _Adjoint.apply(g.view_as(g), weight, x, ctx.how) if by_x else None,
            _ByWeight.apply(g, x, weight, ctx.how) if by_weight else None,
            g.sum((0, 2, 3)) if by_bias else None,
            None,
        )


class _Adjoint(torch.autograd.Function):
    """The gradient by x, linear in g and in weight; of x it needs the shape alone."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, x: Tensor, how: How) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.how = how
        return _gradients(g, x, weight, how, [True, False])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        g, weight = ctx.saved_tensors
        by_g, by_weight, *_ = _wanted(ctx)
        return (
            torch.convolution(along, weight, None, *ctx.how) if by_g else None,
            _gradients(g, along, weight, ctx.how, [False, True])[1] if by_weight else None,
            None,
            None,
        )


class _ByWeight(torch.autograd.Function):
    """The gradient by weight, which nothing here differentiates again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
        return _gradients(g, x, weight, how, [False, True])[1]

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Any:
        raise NotImplementedError("the gradient of a convolution by its weight cannot be differentiated again")
