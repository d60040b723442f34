"""What the autograd Functions of all operations share: which gradients are wanted, and the mask.

Two rules make a second gradient cheap (the third, to compute weight gradients by the
weight-gradient primitive, lives in `convolution`):

1. An undefined gradient stays undefined: `ctx.set_materialize_grads(False)`, `None` in, `None` out.
   Otherwise autograd pushes tensors of zeros through the whole forward graph.
2. A gradient that nobody waits for is not computed. `ctx.needs_input_grad` is fixed at the forward
   and says True for every weight, also while `torch.autograd.grad(scores, images)` runs; the
   engine knows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

_engine_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


transforms_are_active = torch._C._are_functorch_transforms_active
unwrapped = torch._C._functorch.unwrap_if_dead
_levels = torch._C._functorch.get_interpreter_stack
_Transform = torch._C._functorch.TransformType


def is_followed() -> bool:
    """Whether a compiler or a transform of `torch.func` goes along with what kernels do: then they
    are PyTorch's operators, which both know, and change nothing in place.
    """
    return is_compiling() or transforms_are_active()


def _is_in(*transforms: Any) -> bool:
    return transforms_are_active() and any(level.key() in transforms for level in _levels() or ())


def is_mapped() -> bool:
    """Whether `torch.vmap` is active."""
    return _is_in(_Transform.Vmap)


def takes_no_function() -> bool:
    """Whether a transform is active that takes no Function of Python's: `vmap`, forward mode and
    `functionalize`.
    """
    return _is_in(_Transform.Vmap, _Transform.Jvp, _Transform.Functionalize)


def have_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is a dual number of `torch.autograd.forward_ad`, or a transform's
    wrapper of one.
    """
    return forward_ad._current_level >= 0 and any(
        tensor is not None and _has_tangent(tensor) for tensor in tensors
    )


def _has_tangent(tensor: Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with torch._C._DisableFuncTorch():
        return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def are_alone() -> bool:
    """Whether no Function stands around a kernel: under a transform, and where torch.compile
    traces inside of a level of dual numbers, PyTorch differentiates what the kernel is made of.
    """
    return transforms_are_active() or (is_compiling() and forward_ad._current_level >= 0)


def applier(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, for arguments that are all given by their places.

    `Function.apply` asks `inspect` for the signature and binds its arguments to it in every call:
    18 of the 38 us that a small tensor takes through a Function on one core of an EPYC. What it
    does beside that is done here, and where a graph is traced or a transform of `torch.func` is
    active, it is left to it. Where both are, torch.compile (torch 2.13) leaves the backward out or
    gives it gradients of 0, it drops the tangent of a dual number, and `vmap` and forward mode know
    no Function: the forward stands alone there, and PyTorch differentiates it (see
    `routing.Router.candidates`).
    """
    plain = super(Function, function).apply  # type: ignore[misc]
    forward = function.forward

    def apply(*arguments: Any) -> Any:
        if is_compiling():
            if are_alone():
                return forward(*arguments)
            return function.apply(*arguments)  # type: ignore[no-untyped-call]
        if transforms_are_active():
            if takes_no_function():
                return forward(*arguments)
            return function.apply(*arguments)  # type: ignore[no-untyped-call]
        return plain(*[unwrapped(a) if isinstance(a, Tensor) else a for a in arguments])

    return apply


def is_last_order() -> bool:
    """Whether nothing that is computed now will be differentiated or traced.

    Then a backward calls the kernels themselves: a Function around them would record nothing.
    """
    return not (
        torch.is_grad_enabled()
        or is_compiling()
        or transforms_are_active()
        or forward_ad._current_level >= 0
    )


def is_unwatched() -> bool:
    """Whether no mode, no transform and no tracing stands between an operator and its kernel."""
    return not (is_followed() or torch._C._len_torch_dispatch_stack() > 0)


_autocasts = torch._C._is_any_autocast_enabled
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def sheltered(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's backward that computes, as PyTorch's own of a convolution do, in the dtypes of
    its forward whatever autocast is on meanwhile, and takes the gradients of
    `torch.autograd.grad(..., is_grads_batched=True)`, which are no ordinary tensors, one by one.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if is_compiling():
            return backward(ctx, *grads)
        for grad in grads:
            if grad is not None and _is_batched(grad):
                return _one_by_one(backward, ctx, grads)
        if _autocasts():
            return _without_autocast(backward, ctx, grads)
        return backward(ctx, *grads)

    return run


def _without_autocast(
    backward: Callable[..., Any], ctx: Any, grads: tuple[Tensor | None, ...]
) -> Any:
    kind = next((grad.device.type for grad in grads if grad is not None), "meta")
    # Tensors without memory know no autocast: the question alone is an error.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return backward(ctx, *grads)
    torch.set_autocast_enabled(kind, False)
    try:
        return backward(ctx, *grads)
    finally:
        torch.set_autocast_enabled(kind, True)


def _one_by_one(backward: Callable[..., Any], ctx: Any, grads: tuple[Tensor | None, ...]) -> Any:
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    given = next(grad for grad in grads if grad is not None and _is_batched(grad))
    count = len(torch._remove_batch_dim(given, level, 1, 0))
    rows = [
        [None] * count if grad is None else torch._remove_batch_dim(grad, level, count, 0).unbind()
        for grad in grads
    ]
    results = [_without_autocast(backward, ctx, row) for row in zip(*rows, strict=True)]
    return tuple(
        torch._add_batch_dim(torch.stack(found), 0, level) if found[0] is not None else None
        for found in zip(*results, strict=True)
    )


_returned: dict[object, frozenset[int]] = {}


@contextmanager
def returning(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Around a `torch.autograd.grad` that returns the gradients of all these leaves.

    Without it `wanted` still finds that out of every one of them, by an error of the engine, which
    takes the host as long as a small layer does.
    """
    run = object()  # the engine runs in threads of its own, and several may train at once
    _returned[run] = frozenset(map(id, leaves))
    try:
        yield
    finally:
        del _returned[run]


def wanted(ctx: Any, index: int) -> bool:
    """Whether the backward pass that is running asks for the gradient of tensor argument `index`.

    Every tensor argument of the Function must come before its other arguments, the optional ones
    last, so that arguments and edges of the graph have the same numbers.

    The engine is asked about the node behind the argument. It answers for every node but one: a
    leaf whose gradient `torch.autograd.grad` returns; there it raises, so the error itself means
    yes (see `returning`). Where the question does not exist, or while a graph is traced, whatever
    is differentiable counts as asked for.
    """
    if not ctx.needs_input_grad[index]:
        return False
    return _cannot_ask() or _is_waited_for(ctx.next_functions[index][0])


def all_wanted(ctx: Any, count: int) -> tuple[bool, ...]:
    """`wanted` of the first `count` arguments, by one look at the graph."""
    needed = ctx.needs_input_grad
    if _cannot_ask():
        return tuple(needed[:count])
    edges = ctx.next_functions
    return tuple([needed[i] and _is_waited_for(edges[i][0]) for i in range(count)])


def _cannot_ask() -> bool:
    return _engine_will_execute is None or is_compiling()


def _is_waited_for(node: Any) -> bool:
    if _returned and type(node).__name__ == "AccumulateGrad":
        leaf = id(node.variable)
        for leaves in tuple(_returned.values()):
            if leaf in leaves:
                return True
    try:
        return bool(_engine_will_execute(node))  # type: ignore[misc]  # not where it is None
    except (RuntimeError, AttributeError):
        return True


class MaskKernels(Protocol):
    """What a backend gives for the derivative of leaky ReLU, without autograd."""

    def mask(
        self, grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
    ) -> Tensor: ...

    def mask_sum(
        self, grad: Tensor, output: Tensor, negative_slope: float
    ) -> tuple[Tensor, Tensor]: ...


class Mask(Function):
    """mask(g, s; y) = (g + s_c) * (1 if y > 0 else negative_slope), s one number per channel or
    None.

    Leaky ReLU's derivative from its output y. Linear in (g, s); its adjoint takes v to
    mask(v; y) and that one's sum per channel, which is `MaskSum`. In y it is piecewise constant:
    that derivative is 0 almost everywhere and stays undefined.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        shift: Tensor | None,
        output: Tensor,
        negative_slope: float,
        kernels: MaskKernels,
    ) -> Tensor:
        return kernels.mask(grad, shift, output, negative_slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, ctx.shift, saved, ctx.negative_slope, ctx.kernels = inputs
        ctx.shift = ctx.shift is not None
        ctx.save_for_backward(saved)

    @staticmethod
    @sheltered
    def backward(ctx: Any, tangent: Tensor | None) -> Any:
        if tangent is None:
            return None, None, None, None, None
        (output,) = ctx.saved_tensors
        rest = output, ctx.negative_slope, ctx.kernels

        grad_grad = grad_shift = None
        if ctx.shift and wanted(ctx, 1):
            grad_grad, grad_shift = mask_sum(tangent, *rest)
        elif wanted(ctx, 0):
            grad_grad = mask(tangent, None, *rest)
        return grad_grad, grad_shift, None, None, None


class MaskSum(Function):
    """mask(g; y) and its sum per channel, the gradient of a bias: one pass over both tensors.

    Its adjoint takes (v, t) to mask(v, t; y): the two close under differentiation.
    """

    @staticmethod
    def forward(
        grad: Tensor, output: Tensor, negative_slope: float, kernels: MaskKernels
    ) -> tuple[Tensor, Tensor]:
        return kernels.mask_sum(grad, output, negative_slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        _, saved, ctx.negative_slope, ctx.kernels = inputs
        ctx.save_for_backward(saved)

    @staticmethod
    @sheltered
    def backward(ctx: Any, tangent: Tensor | None, tangent_sum: Tensor | None) -> Any:
        if (tangent is None and tangent_sum is None) or not wanted(ctx, 0):
            return None, None, None, None
        (output,) = ctx.saved_tensors
        grad_grad = masked(tangent, tangent_sum, output, ctx.negative_slope, ctx.kernels)
        return grad_grad, None, None, None


_apply_mask, _apply_mask_sum = applier(Mask), applier(MaskSum)


def mask(
    grad: Tensor,
    shift: Tensor | None,
    output: Tensor,
    negative_slope: float,
    kernels: MaskKernels,
) -> Tensor:
    """`grad + shift` where `output` is positive, `negative_slope` times that elsewhere;
    differentiable in `grad` and `shift`.
    """
    # The edge to `output` stays, though nothing flows back on it: what is masked then requires a
    # gradient exactly where PyTorch's own composition does, and a backward through it alone is no
    # error.
    if is_last_order():
        return kernels.mask(grad, shift, output, negative_slope)
    result: Tensor = _apply_mask(grad, shift, output, negative_slope, kernels)
    return result


def mask_sum(
    grad: Tensor, output: Tensor, negative_slope: float, kernels: MaskKernels
) -> tuple[Tensor, Tensor]:
    """mask(grad; output) and its sum over everything but the channels; differentiable in `grad`."""
    if is_last_order():
        return kernels.mask_sum(grad, output, negative_slope)
    pair: tuple[Tensor, Tensor] = _apply_mask_sum(grad, output, negative_slope, kernels)
    return pair


def masked(
    grad: Tensor | None,
    shift: Tensor | None,
    output: Tensor,
    negative_slope: float,
    kernels: MaskKernels,
) -> Tensor:
    """`mask` of whichever of the two is there."""
    if grad is None:
        assert shift is not None
        grad, shift = shift.view(-1, *[1] * (output.dim() - 2)).expand_as(output), None
    return mask(grad, shift, output, negative_slope, kernels)


def channel_sum(grad: Tensor) -> Tensor:
    """The gradient of a bias: the sum over everything but the channels (dimension 1)."""
    # The dtype is named because autocast would answer in float32.
    return grad.sum([d for d in range(grad.dim()) if d != 1], dtype=grad.dtype)
