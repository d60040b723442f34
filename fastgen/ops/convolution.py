"""The three linear primitives of a convolution and the autograd Functions that close over them.

    fprop(x, w)    the convolution (or the transposed convolution)
    dgrad(g, w)    its gradient with respect to x
    wgrad(x, g)    its gradient with respect to w

Each is linear in both arguments and each derivative is again one of the three:

    ============  ==============================  ==============================
    primitive     with respect to the first       with respect to the second
    ============  ==============================  ==============================
    fprop(x, w)   dgrad(g, w)                     wgrad(x, g)
    dgrad(g, w)   fprop(v, w)                     wgrad(v, g)
    wgrad(x, g)   dgrad(g, v)                     fprop(x, v)
    ============  ==============================  ==============================

so gradients of every order cost one primitive per term and nothing else. Only the output is saved
beside the operands: for a slope >= 0 its sign is the sign of the pre-activation, and the next
layer saves it anyway.

The mask of leaky ReLU goes along: the backward of a layer is m = mask(g; y) and dgrad(m, w), and
its derivative, the tangent pass of a gradient penalty, is mask(fprop(v, w); y): the layer's own
forward with the mask taken from y, one fused kernel again.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from .geometry import Geometry
from .gradients import (
    MaskKernels,
    all_wanted,
    applier,
    channel_sum,
    is_last_order,
    mask,
    mask_sum,
    masked,
    sheltered,
    wanted,
)

Activation = float | Literal["tanh"]
"""The slope of a leaky ReLU (1 is linear), or the bounded end of a generator."""
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a layer in its input, weight and bias; None where they are not asked for."""


class ConvolutionKernels(MaskKernels, Protocol):
    """What a backend gives: the primitives, without autograd. No primitive changes a layout: what
    comes in contiguous goes out contiguous.
    """

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> Tensor:
        """activation(fprop(input, weight) + bias)."""

    def masked_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        negative_slope: float,
        geometry: Geometry,
    ) -> Tensor:
        """mask(fprop(input, weight) + bias; output)."""

    def input_gradient(
        self, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
    ) -> Tensor:
        """dgrad(grad, weight) for an input of height and width `size`."""

    def weight_gradient(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> Tensor:
        """wgrad(input, grad) for a weight like `weight`."""

    def both_gradients(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """(dgrad(grad, weight), wgrad(input, grad))."""


class Convolution(Function):
    """activation(fprop(input, weight) + bias), or the tangent of that layer: given `mask_from`,
    the output of a leaky ReLU, mask(fprop(input, weight) + bias; mask_from).
    """

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask_from: Tensor | None,
        activation: Activation,
        geometry: Geometry,
        kernels: ConvolutionKernels,
    ) -> Tensor:
        if mask_from is None:
            return kernels.forward(input, weight, bias, activation, geometry)
        assert activation != "tanh"
        return kernels.masked_forward(input, weight, bias, mask_from, activation, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        input, weight, _, mask_from, ctx.activation, ctx.geometry, ctx.kernels = inputs
        ctx.size = tuple(input.shape[2:])
        # What no gradient will need is not kept alive.
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight,
            None if ctx.activation == 1 else output if mask_from is None else mask_from,
        )

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None, None, None, None
        input, weight, output = ctx.saved_tensors
        rest = ctx.activation, ctx.size, ctx.geometry, ctx.kernels
        gradients = layer_gradients(all_wanted(ctx, 3), grad, input, weight, output, *rest)
        return *gradients, None, None, None, None


def layer_gradients(
    asked: tuple[bool, ...],
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    output: Tensor | None,
    activation: Activation,
    size: tuple[int, int],
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Gradients:
    """A layer's gradients in input, weight and bias, those asked for; of every order.

    Args:
        input: may be None where no gradient of the weight is asked for.
        output: of the layer, or None where it is linear.
    """
    if is_last_order():
        return last_gradients(
            asked, grad, input, weight, output, activation, size, geometry, kernels
        )
    input_too, weight_too, bias_too = asked
    if activation == "tanh":
        # PyTorch's own, whose derivative in the output is not 0.
        grad, output = torch.ops.aten.tanh_backward(grad, output), None

    grad_input = grad_bias = None
    if output is None:
        if input_too:
            grad_input = input_gradient(grad, weight, size, geometry, kernels)
        if bias_too:
            grad_bias = channel_sum(grad)
    else:
        assert activation != "tanh"
        if input_too:
            grad_input, grad, grad_bias = layer_gradient(
                grad, weight, output, activation, size, bias_too, geometry, kernels
            )
        elif bias_too:
            grad, grad_bias = mask_sum(grad, output, activation, kernels)
        elif weight_too:
            grad = mask(grad, None, output, activation, kernels)

    grad_weight = None
    if weight_too:
        assert input is not None
        grad_weight = weight_gradient(input, grad, weight, geometry, kernels)
    return grad_input, grad_weight, grad_bias


def last_gradients(
    asked: tuple[bool, ...],
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    output: Tensor | None,
    activation: Activation,
    size: tuple[int, int],
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Gradients:
    """`layer_gradients` that nothing will be differentiated through."""
    input_too, weight_too, bias_too = asked
    grad_bias = None
    if output is not None:
        if activation == "tanh":
            grad = torch.ops.aten.tanh_backward(grad, output)
        elif bias_too:
            grad, grad_bias = kernels.mask_sum(grad, output, activation)
        elif input_too or weight_too:
            grad = kernels.mask(grad, None, output, activation)
    if bias_too and grad_bias is None:
        grad_bias = channel_sum(grad)

    grad_input = grad_weight = None
    if weight_too:
        assert input is not None
        if input_too:
            grad_input, grad_weight = kernels.both_gradients(input, grad, weight, geometry)
        else:
            grad_weight = kernels.weight_gradient(input, grad, weight, geometry)
    elif input_too:
        grad_input = kernels.input_gradient(grad, weight, size, geometry)
    return grad_input, grad_weight, grad_bias


class LayerGradient(Function):
    """The backward of a layer in its input: (dgrad(m, w), m, sum of m per channel or None) with
    m = mask(g; y).

    Its adjoint takes (v, u, t) to mask(fprop(v, w) + u + t_c; y), which without u, and a penalty
    has none, is the forward of the layer with its mask taken from y.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        weight: Tensor,
        output: Tensor,
        negative_slope: float,
        size: tuple[int, int],
        with_sum: bool,
        geometry: Geometry,
        kernels: ConvolutionKernels,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        total = None
        if with_sum:
            through, total = kernels.mask_sum(grad, output, negative_slope)
        else:
            through = kernels.mask(grad, None, output, negative_slope)
        return kernels.input_gradient(through, weight, size, geometry), through, total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        _, weight, layer_output, ctx.negative_slope, _, _, ctx.geometry, ctx.kernels = inputs
        _, through, _ = output
        ctx.save_for_backward(through if ctx.needs_input_grad[1] else None, weight, layer_output)

    @staticmethod
    @sheltered
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, t: Tensor | None) -> Any:
        if v is None and u is None and t is None:
            return (None,) * 8
        through, weight, output = ctx.saved_tensors
        rest = ctx.geometry, ctx.kernels

        grad_grad = grad_weight = None
        if wanted(ctx, 0):
            if v is None:
                grad_grad = masked(u, t, output, ctx.negative_slope, ctx.kernels)
            elif u is None:
                grad_grad = tangent(v, weight, t, output, ctx.negative_slope, *rest)
            else:
                sum_of_both = convolution(v, weight, None, 1.0, *rest) + u
                grad_grad = mask(sum_of_both, t, output, ctx.negative_slope, ctx.kernels)
        if v is not None and wanted(ctx, 1):
            grad_weight = weight_gradient(v, through, weight, *rest)
        return grad_grad, grad_weight, None, None, None, None, None, None


class InputGradient(Function):
    """dgrad(grad, weight)."""

    @staticmethod
    def forward(
        grad: Tensor,
        weight: Tensor,
        size: tuple[int, int],
        geometry: Geometry,
        kernels: ConvolutionKernels,
    ) -> Tensor:
        return kernels.input_gradient(grad, weight, size, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        grad, weight, _, ctx.geometry, ctx.kernels = inputs
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, weight)

    @staticmethod
    @sheltered
    def backward(ctx: Any, tangent: Tensor | None) -> Any:
        if tangent is None:
            return None, None, None, None, None
        grad, weight = ctx.saved_tensors
        rest = ctx.geometry, ctx.kernels

        grad_grad = convolution(tangent, weight, None, 1.0, *rest) if wanted(ctx, 0) else None
        grad_weight = weight_gradient(tangent, grad, weight, *rest) if wanted(ctx, 1) else None
        return grad_grad, grad_weight, None, None, None


class WeightGradient(Function):
    """wgrad(input, grad); `weight` gives the shape and layout and takes no gradient."""

    @staticmethod
    def forward(
        input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, kernels: ConvolutionKernels
    ) -> Tensor:
        return kernels.weight_gradient(input, grad, weight, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        input, grad, _, ctx.geometry, ctx.kernels = inputs
        ctx.size = tuple(input.shape[2:])
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None, grad if ctx.needs_input_grad[0] else None
        )

    @staticmethod
    @sheltered
    def backward(ctx: Any, tangent: Tensor | None) -> Any:
        if tangent is None:
            return None, None, None, None, None
        input, grad = ctx.saved_tensors
        rest = ctx.geometry, ctx.kernels

        grad_input = input_gradient(grad, tangent, ctx.size, *rest) if wanted(ctx, 0) else None
        grad_grad = convolution(input, tangent, None, 1.0, *rest) if wanted(ctx, 1) else None
        return grad_input, grad_grad, None, None, None


_apply_convolution, _apply_layer_gradient = applier(Convolution), applier(LayerGradient)
_apply_input_gradient, _apply_weight_gradient = applier(InputGradient), applier(WeightGradient)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Tensor:
    """activation(fprop(input, weight) + bias), differentiable to every order."""
    if is_last_order():
        return kernels.forward(input, weight, bias, activation, geometry)
    output: Tensor = _apply_convolution(input, weight, bias, None, activation, geometry, kernels)
    return output


def tangent(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Tensor:
    """mask(fprop(input, weight) + bias; output), differentiable to every order."""
    if is_last_order():
        return kernels.masked_forward(input, weight, bias, output, negative_slope, geometry)
    result: Tensor = _apply_convolution(
        input, weight, bias, output, negative_slope, geometry, kernels
    )
    return result


def layer_gradient(
    grad: Tensor,
    weight: Tensor,
    output: Tensor,
    negative_slope: float,
    size: tuple[int, int],
    with_sum: bool,
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dgrad(m, w), m, sum of m per channel or None) with m = mask(grad; output); of every
    order.
    """
    apply = LayerGradient.forward if is_last_order() else _apply_layer_gradient
    result: tuple[Tensor, Tensor, Tensor | None] = apply(
        grad, weight, output, negative_slope, size, with_sum, geometry, kernels
    )
    return result


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`; of every order."""
    if is_last_order():
        return kernels.input_gradient(grad, weight, size, geometry)
    output: Tensor = _apply_input_gradient(grad, weight, size, geometry, kernels)
    return output


def weight_gradient(
    input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, kernels: ConvolutionKernels
) -> Tensor:
    """wgrad(input, grad) for a weight like `weight`, differentiable to every order."""
    if is_last_order():
        return kernels.weight_gradient(input, grad, weight, geometry)
    output: Tensor = _apply_weight_gradient(input, grad, weight.detach(), geometry, kernels)
    return output
