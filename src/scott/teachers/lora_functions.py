"""Layers with the weight W + s B A, as one operation forward and low-rank gradients backward.

The merged weight is made anew in the backward pass rather than kept, so the memory is the plain layer's:

    y = (W + s B A) x      ∂x = (W + s B A)ᵀ g      ∂B = s g (A x)ᵀ      ∂A = s (Bᵀ g) xᵀ

A Function's backward may only be written for one derivative; a second raises torch's own error.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

Context = Any


class MergedLinear(torch.autograd.Function):
    """x (..., in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        x_needs, a_needs, b_needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.needs_input_grad[4]
        grad_x = g @ torch.addmm(weight, b, a, alpha=ctx.scale) if x_needs else None
        rows, g = x.flatten(0, -2), g.flatten(0, -2)
        # the scale last: these products are the weight's size, their factors as long as the batch
        grad_a = ctx.scale * ((g @ b).T @ rows) if a_needs else None
        grad_b = ctx.scale * (g.T @ (rows @ a.T)) if b_needs else None
        return grad_x, None, None, grad_a, grad_b, None


class MergedConv2d(torch.autograd.Function):
    """x (N, in, H, W), W (out, in, k, k), A (r, in, k, k), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale, ctx.stride, ctx.padding = scale, stride, padding
        return F.conv2d(x, _merged(weight, a, b, scale), bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            merged = _merged(weight, a, b, ctx.scale)
            grad_x = conv2d_input(x.shape, merged, g, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[3]:
            # batched products read g as it lies; an einsum would bring it into another order first
            inner = (b.T @ g.flatten(2)).unflatten(2, g.shape[2:])
            grad_a = ctx.scale * conv2d_weight(x, a.shape, inner, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[4]:
            down = F.conv2d(x, a, None, ctx.stride, ctx.padding)
            grad_b = ctx.scale * (g.flatten(2) @ down.flatten(2).mT).sum(0)
        return grad_x, None, None, grad_a, grad_b, None, None, None


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.addmm(weight.flatten(1), b, a.flatten(1), alpha=scale).view_as(weight)
