"""Convolutions of images, whose second derivatives cost what first ones cost, and laid out for a CPU where that pays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# inputs x width² up to which patches and a matrix product are faster, on a CPU 2-3 times for Table 3's first row
FEW_TAPS = {"cpu": 16}


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int = 0, transposed: bool = False
) -> Tensor:
    """The (transposed) convolution of x [B, C, H, H] with square kernels; can be differentiated twice."""
    device = x.device.type
    inputs, width = weight.shape[1], weight.shape[-1]  # the outputs, where it is transposed
    if not padding and inputs * width**2 <= FEW_TAPS.get(device, 0):
        if not transposed:
            return _few_inputs(x, weight, bias, stride)
        if stride == 1:
            return _few_outputs(x, weight, bias)
    if transposed:
        return F.conv_transpose2d(x, weight, bias, stride, padding)
    half = torch.is_autocast_enabled(device)
    if not (x.requires_grad and torch.is_grad_enabled()) or (half and device == "cpu"):
        return F.conv2d(x, weight, bias, stride, padding)
    if half:  # here, since autocast would round within `forward` what `backward` would then find in single precision
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    # a leaf cannot be asked, see below
    out: Tensor = _Convolution.apply(x, weight.view_as(weight), bias, stride, padding)
    return out


class _Convolution(torch.autograd.Function):
    """PyTorch's, but its second derivatives, which the penalty of Eq. 18 needs, cost what first ones cost.

    Its gradient by x is a transposed convolution, and is differentiated as one. PyTorch differentiates it by convolutions that
    take the batch for channels: three to four times as long for the widest of D's on MNIST, on a GPU 40 % of the whole step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (x, weight), (stride, padding) = ctx.saved_tensors, ctx.how
        by_x, _, by_bias, *_ = ctx.needs_input_grad
        weights, _ = torch._C._current_autograd_node().next_functions[1]
        # as PyTorch's own does: the penalty's first derivative is by x alone
        by_weight = weights is not None and torch._C._will_engine_execute_node(weights)
        reached = (g.shape[2] - 1) * stride - 2 * padding + weight.shape[2]
        rest = x.shape[2] - reached  # a border where no kernel comes
        how = None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [False, True, False]
        return (
            F.conv_transpose2d(g, weight, None, stride, padding, rest) if by_x else None,
            torch.ops.aten.convolution_backward(g, x, weight, *how)[1] if by_weight else None,
            g.sum((0, 2, 3)) if by_bias else None,
            None,
            None,
        )


def _few_inputs(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A convolution as patches times kernels. The long sides stay inner, for all derivatives too: ten times faster here."""
    (n, _, height, _), (outputs, _, width, _) = x.shape, weight.shape
    size = (height - width) // stride + 1
    end = stride * (size - 1) + 1
    cuts = [x[:, :, i : i + end : stride, j : j + end : stride] for i in range(width) for j in range(width)]
    patches = torch.stack(cuts).transpose(1, 2).reshape(-1, n * size**2).t()  # [positions, taps], taps outer in memory
    kernel = weight.permute(2, 3, 1, 0).reshape(-1, outputs).contiguous()
    out = patches @ kernel if bias is None else torch.addmm(bias, patches, kernel)
    return out.view(n, size, size, outputs).permute(0, 3, 1, 2)


def _few_outputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed convolution of stride 1: products of every position with every tap, added where they belong."""
    (n, inputs, size, _), (_, outputs, width, _) = x.shape, weight.shape
    kernel = weight.permute(2, 3, 1, 0).reshape(-1, inputs).contiguous()
    taps = (kernel @ x.permute(0, 2, 3, 1).reshape(-1, inputs).t()).view(width, width, outputs, n, size, size)
    rest = width - 1
    parts = [F.pad(taps[i, j], (j, rest - j, i, rest - i)) for i in range(width) for j in range(width)]
    out = sum(parts[1:], parts[0]).transpose(0, 1)
    return out if bias is None else out + bias[:, None, None]
