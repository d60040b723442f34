"""A forward of the user's own, run as it is but for a few functions that it calls.

While it runs, a `TorchFunctionMode` takes over:

* `relu`, `leaky_relu` as functions or methods of a tensor, convolutions and pooling as functions:
  computed by fastgen's;
* `tensor.view(...)` of a channels_last tensor, which PyTorch refuses where it would have to copy:
  `reshape`, which copies; that what is written to one of the two does not reach the other is an
  error as soon as the other is used;
* where the forward's `Plan` says that a layer takes in what stands behind it: the layer is asked
  to, and the activation that then meets the layer's output returns it as it is.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgen.ops import checks, conv2d_bias_leaky_relu, conv_transpose2d_bias_leaky_relu
from fastgen.ops.convolution import Activation

from . import pooling
from .activations import FUNCTIONS, Call, leaky_relu
from .classes import Accelerated
from .epilogues import NOTHING, Epilogue, call_of, is_bare, is_frozen_norm, sees_output, takes
from .mentions import is_users, mentions


class Link(NamedTuple):
    """What stands behind a layer of a forward.

    Attributes:
        norm: the name of a normalization to fold, relative to the module.
        module: the name of the activation's module; None where the forward calls a function.
        call: the activation, as it was when the forward was traced.
        only_read: whether nothing behind the activation overwrites its output.
    """

    norm: str | None
    module: str | None
    call: Call
    only_read: bool

    @property
    def fuses_always(self) -> bool:
        """Whether the layer may keep its output for the backward."""
        return self.only_read or self.call.keeps_output


Plan = dict[str, Link]


class _Frame:
    """One forward that is running: what its layers are asked, and which outputs are still to meet
    the activation that they had already.
    """

    def __init__(self, module: nn.Module, epilogues: dict[int, Epilogue]) -> None:
        self.module = module
        self.epilogues = epilogues
        self.outputs: dict[int, tuple[Tensor, Epilogue]] = {}


class _Running(threading.local):
    """The forwards that run, one inside of the other.

    Attributes:
        copies: what `view` had to copy, and of what.
        stale: of those the ones that lack what was written to the other.
        hooks: of saved tensors, as they were when the innermost method under the mode began.
    """

    def __init__(self) -> None:
        self.frames: list[_Frame] = []
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.stale: list[Tensor] = []
        self.hooks: object = None


_running = _Running()


def asked(layer: nn.Module) -> Epilogue | None:
    """What the running forward asks of one of its layers."""
    epilogue = _running.frames[-1].epilogues.get(id(layer)) if _running.frames else None
    return None if epilogue is not None and _is_recomputed() else epilogue


def _saving_hooks() -> object:
    """What packs the tensors that are saved for backward now, None where nothing does."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is None else hooks[0]


def _is_recomputed() -> bool:
    """Whether the code that runs is a part of a method that a checkpoint inside of it will run
    again, without the method around it and so without the mode: what saves other tensors than
    PyTorch's own does must not be taken over then, nor an activation that stands behind the part
    into a layer inside of it.
    """
    return _saving_hooks() is not _running.hooks


def announce(output: Tensor, epilogue: Epilogue) -> None:
    """The output of a layer that did what it was asked."""
    _running.frames[-1].outputs[id(output)] = (output, epilogue)


def met(input: Tensor, activation: Activation | None) -> bool:
    """Whether an activation, or a normalization (None), meets an output that has had it already."""
    if not _running.frames:
        return False
    outputs = _running.frames[-1].outputs
    output, left = outputs.get(id(input), (None, NOTHING))
    if output is not input or (activation is None) != (left.norm is not None):
        return False
    if activation not in (None, left.activation):
        raise _no_longer(_running.frames[-1].module, f"met {activation} instead")
    left = Epilogue(None, 1.0 if activation is not None else left.activation)
    if left == NOTHING:
        del outputs[id(input)]
    else:
        outputs[id(input)] = (output, left)
    return True


def undisturbed(input: object) -> contextlib.AbstractContextManager[object]:
    """A layer's own arithmetic, which needs no rerouting; every look at a shape would cost 1 us."""
    if _running.frames and type(input) is Tensor:
        return torch._C.DisableTorchFunction()
    return contextlib.nullcontext()


# --- the functions taken over ---


def _activate(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "out" in kwargs:
        return function(*args, **kwargs)
    input, call = FUNCTIONS[function](*args, **kwargs)
    if met(input, call.activation):
        return input
    if call.activation == "tanh" or not isinstance(input, Tensor):
        return function(*args, **kwargs)
    return leaky_relu(input, call)


def _convolve(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A convolution without activation, by the operation that has a cheap second order."""
    operands = [*args[:3], *(kwargs[k] for k in ("input", "weight", "bias") if k in kwargs)]
    tensors = [operand for operand in operands if operand is not None]
    fits = all(type(t) in (Tensor, nn.Parameter) and t.dtype in checks.DTYPES for t in tensors)
    if not fits or _is_recomputed():
        return function(*args, **kwargs)
    return CONVOLUTIONS[function](*args, **kwargs, negative_slope=1.0)


CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    F.conv2d: conv2d_bias_leaky_relu,
    F.conv_transpose2d: conv_transpose2d_bias_leaky_relu,
}


def _pool(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return (function if _is_recomputed() else pooling.FUNCTIONS[function])(*args, **kwargs)


def _normalize(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args and met(args[0], None) else function(*args, **kwargs)


def _view(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor = args[0] if args else None
    if not isinstance(tensor, Tensor) or tensor.is_contiguous():
        return function(*args, **kwargs)
    try:
        return function(*args, **kwargs)
    except RuntimeError:
        shape = _viewed_as(function, *args[1:], **kwargs)
        if shape is None:
            raise
        copy = tensor.reshape(shape)
        _running.copies.append((copy, tensor))
        return copy


def _viewed_as(function: Any, *size: Any, **named: Any) -> Any:
    """The shape that the arguments of `view` or `view_as` ask for; None where it is a dtype."""
    (first, *_) = size = (*size, *named.values())
    if function is torch.Tensor.view_as:
        return first.shape
    if isinstance(first, (int, Tensor)):  # a size may be a tensor, as in `torch.jit.trace`
        return size
    return None if isinstance(first, torch.dtype) else first


# --- copies that should have been views ---


def wrote(tensor: object) -> None:
    """Something has written to a tensor: what is a copy of it, or it of what, has not got it."""
    if _running.copies and isinstance(tensor, Tensor):
        for one, other in _running.copies:
            if _share(tensor, one):
                _running.stale.append(other)
            elif _share(tensor, other):
                _running.stale.append(one)


def _refuse_stale(*values: Any) -> None:
    """An error where one of these lacks what was written to what it is a copy of."""
    for value in values:
        if isinstance(value, (tuple, list)):
            _refuse_stale(*value)
        elif isinstance(value, dict):
            _refuse_stale(*value.values())
        elif isinstance(value, Tensor) and any(_share(value, stale) for stale in _running.stale):
            raise RuntimeError(
                "a tensor in channels_last is used, of which `view` had to make a copy, after one "
                "of the two was written to in place: in the other the change is missing. Write to "
                "it before the view, or call fastgen.accelerate(model, channels_last=False)"
            )


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in the same memory."""
    if one is other or type(one) is not Tensor or type(other) is not Tensor:
        return one is other
    with torch._C.DisableTorchFunction():
        return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


IN_PLACE = re.compile(r"[a-z0-9_]*[a-z0-9]_|__setitem__|__i[a-z]+__")
# What asks for a tensor's shape and the like, or for an attribute, whatever its numbers are.
LOOKS = re.compile(
    r"size|dim|numel|nelement|ndimension|stride|is_[a-z_]+|storage_offset|element_size|get_device|"
    r"data_ptr|__len__|__hash__|__get__|[a-z]+_like|new_[a-z]+"
)


def _guarded(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function while there are copies that should have been views."""
    take_over = REROUTED.get(function)
    name = getattr(function, "__name__", "")
    if _running.stale and not LOOKS.fullmatch(name):
        _refuse_stale(args, kwargs)
    result = function(*args, **kwargs) if take_over is None else take_over(function, args, kwargs)
    if IN_PLACE.fullmatch(name) or kwargs.get("inplace"):
        wrote(args[0] if args else kwargs.get("input"))
    wrote(kwargs.get("out"))
    return result


REROUTED: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    **dict.fromkeys(FUNCTIONS, _activate),
    **dict.fromkeys(CONVOLUTIONS, _convolve),
    **dict.fromkeys(pooling.FUNCTIONS, _pool),
    F.batch_norm: _normalize,
    torch.Tensor.view: _view,
    torch.Tensor.view_as: _view,
}


class Rerouting(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _running.copies:
            return _guarded(func, args, kwargs or {})
        take_over = REROUTED.get(func)
        if take_over is None:
            return func(*args, **(kwargs or {}))
        return take_over(func, args, kwargs or {})


class Reshaping(TorchFunctionMode):
    """What is left of it in a graph that is traced or compiled."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.Tensor.view, torch.Tensor.view_as):
            shape = _viewed_as(func, *args[1:], **(kwargs or {}))
            if shape is not None:
                return torch.Tensor.reshape(args[0], shape)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def rerouting(module: nn.Module, plan: Plan, *, fold: bool) -> Iterator[None]:
    """Run what the `with` holds as a forward of `module`."""
    frame = _Frame(module, _epilogues(module, plan, fold=fold))
    outermost = not _running.frames
    _running.frames.append(frame)
    try:
        with Rerouting() if outermost else contextlib.nullcontext():
            yield
    finally:
        _running.frames.pop()
        if outermost:
            _running.copies, _running.stale = [], []
    if frame.outputs:
        raise _no_longer(module, "did not go on to that activation")


def _no_longer(module: nn.Module, what: str) -> RuntimeError:
    return RuntimeError(
        f"{type(module).__name__}: a layer took its activation in, but the forward {what}: it is "
        "no longer what it was when the model was accelerated. Call fastgen.restore(model), and "
        "fastgen.accelerate(model) again"
    )


def _epilogues(module: nn.Module, plan: Plan, *, fold: bool) -> dict[int, Epilogue]:
    """What the plan comes to now: hooks, slopes and training flags as they are at this call."""
    found: dict[int, Epilogue] = {}
    for name, link in plan.items():
        layer = _part(module, name)
        if not isinstance(layer, Accelerated) or sees_output(layer):
            continue
        norm: nn.BatchNorm2d | None = None
        if link.norm is not None:
            candidate = _part(module, link.norm)
            if not fold or candidate is None or not is_frozen_norm(candidate, layer):
                continue
            norm = candidate
        if link.module is not None:
            behind = _part(module, link.module)
            call = call_of(behind) if behind is not None and is_bare(behind) else None
            if call is None:
                continue
            link = link._replace(call=call)
        if takes(layer, link.call.activation) and (
            link.fuses_always or not torch.is_grad_enabled()
        ):
            found[id(layer)] = Epilogue(norm, link.call.activation)
    return found


def _part(module: nn.Module, name: str) -> nn.Module | None:
    """A module inside of another; None where it is there no more."""
    for step in name.split("."):
        found = module._modules.get(step)
        if found is None:
            return None
        module = found
    return module


# --- the accelerated class of a class of the user's ---


def rerouted_methods(kind: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """`forward`, and the other methods that mention something rerouted, each run under the mode."""
    methods = {}
    for name in dir(kind):
        method = inspect.getattr_static(kind, name)
        own = isinstance(method, FunctionType) and is_users(method.__code__)
        if not own or inspect.isgeneratorfunction(method) or inspect.iscoroutinefunction(method):
            continue
        if name == "forward" or (not name.startswith("__") and mentions(method)):
            methods[name] = _rerouted(method, planned=name == "forward")
    return methods


def _rerouted(method: FunctionType, *, planned: bool) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            with Reshaping():
                return method(self, *args, **kwargs)
        plan = self.__dict__.get("_accelerated_plan", {}) if planned else {}
        outside, _running.hooks = _running.hooks, _saving_hooks()
        try:
            if not plan and _running.frames:
                # A method of a module whose forward is running stays in that forward's frame.
                return method(self, *args, **kwargs)
            with rerouting(self, plan, fold=self.__dict__.get("_accelerated_fold", False)):
                result = method(self, *args, **kwargs)
                if _running.stale:
                    _refuse_stale(result)
                return result
        finally:
            _running.hooks = outside

    return run
