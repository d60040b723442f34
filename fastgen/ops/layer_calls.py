"""Calls of layers: each kind checked once and its kernels chosen once, then remembered.

A training calls a few layers over and over, with tensors of the same shapes and layouts. What such
a call needs beside its kernels costs the host as much as a small kernel does, so it is looked up in
one place for a forward and in one for a backward.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from .convolution import Activation, Gradients, convolution, last_gradients, layer_gradients
from .geometry import Geometry, check, size_of
from .gradients import all_wanted, is_last_order, sheltered, transforms_are_active, unwrapped
from .routing import (
    ConvolutionPasses,
    ConvolutionRouter,
    NarrowedConvolution,
    is_deterministic,
    precision_on,
    uses_onednn,
)
from .torch_bias_leaky_relu import SMALL, TorchMask, mask
from .torch_convolution import are_plain, gradients

MOST_KNOWN = 4096
"""Kinds of calls that an operation's kernels remember."""
CONSTANT = frozenset({int, float, bool, str, tuple, torch.Size})
"""Types of arguments that are what they were as long as they are the same object."""


def recalled(
    kernels: ConvolutionRouter,
    arguments: tuple[Any, ...],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> LayerCall | None:
    """The kind of a call whose like, with the very same arguments beside the tensors, was made
    before; None where it is not known or where every call is for itself.
    """
    tensors = _kind_of(input, weight, bias)
    if tensors is None:
        return None
    try:
        known = kernels.recalled.get((*map(id, arguments), tensors))
    except TypeError:  # a size that is a symbol
        return None
    return None if known is None else known[0]


def layer(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
    kernels: ConvolutionRouter,
    arguments: tuple[Any, ...] | None,
) -> Tensor:
    """activation(fprop(input, weight) + bias), differentiable to every order.

    Args:
        arguments: what `activation` and `geometry` stand for, by which the call is recalled; None
            where they say more than that.

    Raises:
        TypeError, ValueError: the tensors do not fit each other or the geometry.
    """
    tensors = _kind_of(input, weight, bias)
    try:
        call = None if tensors is None else kernels.known.get((activation, geometry, tensors))
    except TypeError:  # a size that is a symbol
        tensors = call = None
    if call is None:
        check(input, weight, bias, geometry)
    if tensors is None:
        return convolution(input, weight, bias, activation, geometry, kernels)
    if call is None:
        if len(kernels.known) >= MOST_KNOWN:
            kernels.known.clear()
            kernels.recalled.clear()
        call = LayerCall(activation, geometry, size_of(input), kernels.narrowed())
        kernels.known[activation, geometry, tensors] = call
    if arguments is not None and all(type(a) in CONSTANT for a in arguments):
        if len(kernels.recalled) >= MOST_KNOWN:
            kernels.recalled.clear()
        # The arguments are kept with it: no other object has their identity then.
        kernels.recalled[(*map(id, arguments), tensors)] = call, arguments
    return call(input, weight, bias)


def _kind_of(input: Tensor, weight: Tensor, bias: Tensor | None) -> Hashable | None:
    """Everything about the tensors but their numbers, and the settings that choices depend on."""
    if (
        is_compiling()
        or transforms_are_active()
        or forward_ad._current_level >= 0
        or not isinstance(weight, Tensor)
    ):
        return None
    # Every call of a layer comes by here: one flat tuple, built in place.
    return (
        is_deterministic(),
        uses_onednn(),
        precision_on(input),
        type(input),  # tensors without memory are not measured
        input.shape,
        input.stride(),
        input.dtype,
        input.device,
        # Kernels with wide accesses want aligned addresses, so a shifted view is another case.
        input.storage_offset() % 8 == 0,
        type(weight),
        weight.shape,
        weight.stride(),
        weight.dtype,
        weight.device,
        weight.storage_offset() % 8 == 0,
        bias
        if not isinstance(bias, Tensor)
        else (bias.shape, bias.stride(), bias.dtype, bias.device, bias.storage_offset() % 8 == 0),
    )


class Layer(Function):
    """A layer whose kind of call is known: `convolution.Convolution`, with less to carry."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, call: LayerCall
    ) -> Tensor:
        output = call.forward(input, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.call = call
        # What no gradient will need is not kept alive.
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight,
            None if call.activation == 1 else output,
        )
        return output

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        gradients = ctx.call.backward(all_wanted(ctx, 3), grad, *ctx.saved_tensors)
        return *gradients, None


_apply: Callable[..., Tensor] = super(Function, Layer).apply  # see `gradients.applier`


class ChosenPasses(ConvolutionPasses):
    """The passes of calls that are alike to their layouts and settings, which is the caller's to
    know: each is its kernel itself, once that is found.
    """

    def __init__(self, kernels: NarrowedConvolution) -> None:
        self._kernels = kernels

    def run(self, pass_: str, *arguments: Any) -> Any:
        """Compute the pass, the first time."""
        run, final = self._kernels.find(pass_, *arguments)
        if final:
            setattr(self, pass_, run)  # instead of the method that led here
        return run(*arguments)

    def both_gradients(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Both, the first time: by one call of PyTorch's where each is its own by itself."""
        size = size_of(input)
        input_run, settled = self._kernels.find("input_gradient", grad, weight, size, geometry)
        weight_run, final = self._kernels.find("weight_gradient", input, grad, weight, geometry)
        run: Callable[..., tuple[Tensor, Tensor]] = super().both_gradients
        if are_plain(input_run, weight_run, input, grad, weight, geometry):
            run = _both
        if settled and final:
            self.both_gradients = run  # type: ignore[method-assign]
        return run(input, grad, weight, geometry)


def _both(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    grad_input, grad_weight, _ = gradients((True, True, False), input, grad, weight, geometry)
    assert grad_input is not None
    assert grad_weight is not None
    return grad_input, grad_weight


class LayerCall:
    """One kind of call: activation, geometry, shapes, layouts, dtypes, device and settings."""

    def __init__(
        self,
        activation: Activation,
        geometry: Geometry,
        size: tuple[int, int],
        kernels: NarrowedConvolution,
    ) -> None:
        self.activation = activation
        self._geometry, self._size, self._kernels = geometry, size, kernels
        self.forget()

    def forget(self) -> None:
        """Drop the choices; graphs that are still to be differentiated may hold this."""
        self._kernels.forget()
        self._forward = ChosenPasses(self._kernels)
        self._backward: dict[Hashable, Callable[..., Gradients]] = {}

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, differentiable to every order."""
        if is_last_order():
            return self.forward(input, weight, bias)
        operands = unwrapped(input), unwrapped(weight), None if bias is None else unwrapped(bias)
        return _apply(*operands, self)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, without autograd."""
        return self._forward.forward(input, weight, bias, self.activation, self._geometry)

    def backward(
        self,
        asked: tuple[bool, ...],
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor,
        output: Tensor | None,
    ) -> Gradients:
        """The gradients in input, weight and bias that are asked for; of every order."""
        rest = grad, input, weight, output, self.activation, self._size, self._geometry
        if not is_last_order():
            return layer_gradients(asked, *rest, self._kernels)
        # What was saved may have been unpacked to another layout, or a weight moved to one.
        key = (
            asked,
            is_deterministic(),
            uses_onednn(),
            precision_on(grad),
            grad.stride(),
            grad.storage_offset() % 8 == 0,
            weight.stride(),
            weight.storage_offset() % 8 == 0,
            input if input is None else (input.stride(), input.storage_offset() % 8 == 0),
            output if output is None else (output.stride(), output.storage_offset() % 8 == 0),
        )
        way = self._backward.get(key)
        if way is None:
            way = self._backward[key] = self._way(asked, grad, input, weight, output)
        return way(asked, grad, input, weight, output)

    def _way(
        self,
        asked: tuple[bool, ...],
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor,
        output: Tensor | None,
    ) -> Callable[..., Gradients]:
        """What computes a backward that nothing will be differentiated through."""
        if self._is_pytorchs(asked, grad, input, weight, output):
            return self._as_pytorch
        return partial(
            last_gradients,
            activation=self.activation,
            size=self._size,
            geometry=self._geometry,
            kernels=ChosenPasses(self._kernels),
        )

    def _is_pytorchs(
        self,
        asked: tuple[bool, ...],
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor,
        output: Tensor | None,
    ) -> bool:
        """Whether each pass is PyTorch's own by itself, where it has them all but the mask in one:
        on a CPU, whose convolutions add a bias gradient up for nothing.
        """
        input_too, weight_too, bias_too = asked
        if not (weight_too and bias_too) or grad.device.type != "cpu" or self.activation == "tanh":
            return False
        assert input is not None
        find, through, input_run = self._kernels.find, grad, None
        if output is not None:
            if find("mask_sum", grad, output, self.activation)[0] is not TorchMask.mask_sum:
                return False
            through = output  # the masked gradient has its layout
        elif grad.numel() >= SMALL.get(grad.dtype, 0):  # a sum of its own is more accurate
            return False
        if input_too:
            input_run, _ = find("input_gradient", through, weight, self._size, self._geometry)
        weight_run, _ = find("weight_gradient", input, through, weight, self._geometry)
        return are_plain(input_run, weight_run, input, through, weight, self._geometry)

    def _as_pytorch(
        self,
        asked: tuple[bool, ...],
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        output: Tensor | None,
    ) -> Gradients:
        if output is not None:
            assert self.activation != "tanh"
            grad = mask(grad, None, output, self.activation)
        return gradients(asked, input, grad, weight, self._geometry)
