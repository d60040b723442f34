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
beside
the operands: for a slope >= 0 its sign is the sign of the pre-activation, and the next layer saves
    it anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from . import checks
from .gradients import channel_sum, mask, wanted


class Geometry(NamedTuple):
    """Everything about a convolution that is not a tensor."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    transposed: bool
    output_padding: tuple[int, int]


class ConvolutionKernels(Protocol):
    """What a backend gives: the primitives, without autograd. No primitive converts a layout."""

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        negative_slope: float,
        geometry: Geometry,
    ) -> Tensor: ...

    def input_gradient(
        self, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
    ) -> Tensor: ...

    def weight_gradient(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> Tensor: ...

    def mask(self, grad: Tensor, output: Tensor, negative_slope: float) -> Tensor: ...


class Convolution(Function):
    """leaky_relu(fprop(input, weight) + bias)."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        negative_slope: float,
        geometry: Geometry,
        kernels: ConvolutionKernels,
    ) -> Tensor:
        return kernels.forward(input, weight, bias, negative_slope, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        input, weight, _, ctx.negative_slope, ctx.geometry, ctx.kernels = inputs
        ctx.size = tuple(input.shape[2:])
        # What no gradient will need is not kept alive.
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight,
            output if ctx.negative_slope != 1 else None,
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None, None, None
        input, weight, output = ctx.saved_tensors
        rest = ctx.geometry, ctx.kernels

        if output is not None:
            grad = mask(grad, output, ctx.negative_slope, ctx.kernels)
        grad_input = input_gradient(grad, weight, ctx.size, *rest) if wanted(ctx, 0) else None
        grad_weight = weight_gradient(input, grad, weight, *rest) if wanted(ctx, 1) else None
        grad_bias = channel_sum(grad) if wanted(ctx, 2) else None
        return grad_input, grad_weight, grad_bias, None, None, None


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
    def backward(ctx: Any, tangent: Tensor | None) -> Any:
        if tangent is None:
            return None, None, None, None, None
        input, grad = ctx.saved_tensors
        rest = ctx.geometry, ctx.kernels

        grad_input = input_gradient(grad, tangent, ctx.size, *rest) if wanted(ctx, 0) else None
        grad_grad = convolution(input, tangent, None, 1.0, *rest) if wanted(ctx, 1) else None
        return grad_input, grad_grad, None, None, None


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Tensor:
    """leaky_relu(fprop(input, weight) + bias), differentiable to every order."""
    output: Tensor = Convolution.apply(input, weight, bias, negative_slope, geometry, kernels)  # type: ignore[no-untyped-call]
    return output


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    geometry: Geometry,
    kernels: ConvolutionKernels,
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`; of every order."""
    output: Tensor = InputGradient.apply(grad, weight, size, geometry, kernels)  # type: ignore[no-untyped-call]
    return output


def weight_gradient(
    input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, kernels: ConvolutionKernels
) -> Tensor:
    """wgrad(input, grad) for a weight like `weight`, differentiable to every order."""
    output: Tensor = WeightGradient.apply(input, grad, weight.detach(), geometry, kernels)  # type: ignore[no-untyped-call]
    return output


def check(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    """Refuse tensors that do not fit each other or the geometry, naming the argument."""
    checks.floating_tensor("input", input)
    checks.floating_tensor("weight", weight)
    checks.same_kind("weight", weight, input)
    if input.dim() != 4:
        raise ValueError(
            f"input must have shape (N, C, H, W) or (C, H, W) (got {tuple(input.shape)})"
        )
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(
            f"weight must have four dimensions, none of them 0 (got {tuple(weight.shape)})"
        )

    groups, transposed = geometry.groups, geometry.transposed
    inner, outer = (
        (weight.shape[0], weight.shape[1] * groups)
        if transposed
        else (weight.shape[1] * groups, weight.shape[0])
    )
    if input.shape[1] != inner:
        raise ValueError(
            f"input must have {inner} channels for a weight of shape {tuple(weight.shape)} "
            f"and groups={groups} (got {input.shape[1]} in {tuple(input.shape)})"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide weight.shape[0] = {weight.shape[0]} (got {groups})")
    if bias is not None:
        checks.floating_tensor("bias", bias)
        checks.same_kind("bias", bias, input)
        checks.vector("bias", bias, outer, "one number per output channel")

    for axis, name in enumerate(("height", "width")):
        size, kernel = input.shape[2 + axis], weight.shape[2 + axis]
        reach = geometry.dilation[axis] * (kernel - 1) + 1
        if transposed:
            result = (
                (size - 1) * geometry.stride[axis]
                - 2 * geometry.padding[axis]
                + reach
                + geometry.output_padding[axis]
            )
            if result < 1:
                raise ValueError(
                    f"input of {name} {size} gives an output of {name} {result}: "
                    "use less padding or a larger input"
                )
        elif size + 2 * geometry.padding[axis] < reach:
            raise ValueError(
                f"input of {name} {size} with padding {geometry.padding[axis]} is smaller than "
                f"the kernel, which spans {reach} "
                f"(kernel {kernel}, dilation {geometry.dilation[axis]})"
            )


def autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in autocast's dtype where it is on, as PyTorch's own convolutions do; float64
    stays.
    """
    if not torch.is_autocast_enabled(input.device.type):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(input.device.type)

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    return cast(input), cast(weight), None if bias is None else cast(bias)
