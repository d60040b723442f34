"""A forward of the user's own, run as it is but for a few functions that it calls.

While it runs, a `TorchFunctionMode` takes over:

* `relu`, `leaky_relu` as functions or methods of a tensor, convolutions and pooling as functions:
  computed by fastgen's;
* `tensor.view(...)` of a channels_last tensor, which PyTorch refuses where it would have to copy:
  `reshape`, which copies;
* where the forward's `Plan` says that a layer takes in what stands behind it: the layer is asked
  to, and the activation that then meets the layer's output returns it as it is.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sysconfig
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgen.ops import checks, conv2d_bias_leaky_relu, conv_transpose2d_bias_leaky_relu

from . import pooling
from .activations import FUNCTIONS, Call, leaky_relu
from .classes import Accelerated
from .epilogues import NOTHING, Epilogue, call_of, is_bare, is_frozen_norm, sees_output, takes


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

    def __init__(self, epilogues: dict[int, Epilogue]) -> None:
        self.epilogues = epilogues
        self.outputs: dict[int, tuple[Tensor, Epilogue]] = {}


class _Running(threading.local):
    def __init__(self) -> None:
        self.frames: list[_Frame] = []


_running = _Running()


def asked(layer: nn.Module) -> Epilogue | None:
    """What the running forward asks of one of its layers."""
    return _running.frames[-1].epilogues.get(id(layer)) if _running.frames else None


def announce(output: Tensor, epilogue: Epilogue) -> None:
    """The output of a layer that did what it was asked."""
    _running.frames[-1].outputs[id(output)] = (output, epilogue)


def met(input: Tensor, *, norm: bool = False) -> bool:
    """Whether a normalization or an activation meets an output that has had it already."""
    if not _running.frames:
        return False
    outputs = _running.frames[-1].outputs
    output, left = outputs.get(id(input), (None, NOTHING))
    if output is not input or norm != (left.norm is not None):
        return False
    left = Epilogue(None, left.activation if norm else 1.0)
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
    if met(input):
        return input
    if call.activation == "tanh" or not isinstance(input, Tensor):
        return function(*args, **kwargs)
    return leaky_relu(input, call)


def _convolve(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A convolution without activation, by the operation that has a cheap second order."""
    operands = [*args[:3], *(kwargs[k] for k in ("input", "weight", "bias") if k in kwargs)]
    tensors = [operand for operand in operands if operand is not None]
    if not all(type(t) in (Tensor, nn.Parameter) and t.dtype in checks.DTYPES for t in tensors):
        return function(*args, **kwargs)
    return CONVOLUTIONS[function](*args, **kwargs, negative_slope=1.0)


CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    F.conv2d: conv2d_bias_leaky_relu,
    F.conv_transpose2d: conv_transpose2d_bias_leaky_relu,
}


def _pool(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return pooling.FUNCTIONS[function](*args, **kwargs)


def _normalize(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args and met(args[0], norm=True) else function(*args, **kwargs)


def _view(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, *shape = args
    if (
        not isinstance(tensor, Tensor)
        or kwargs
        or tensor.is_contiguous()
        or any(isinstance(s, torch.dtype) for s in shape)
    ):
        return function(*args, **kwargs)
    try:
        return function(*args)
    except RuntimeError:
        return tensor.reshape(*shape)


REROUTED: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    **dict.fromkeys(FUNCTIONS, _activate),
    **dict.fromkeys(CONVOLUTIONS, _convolve),
    **dict.fromkeys(pooling.FUNCTIONS, _pool),
    F.batch_norm: _normalize,
    torch.Tensor.view: _view,
}
NAMES = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "conv2d", "conv_transpose2d",
    "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "view",
}  # fmt: skip
"""What code must mention for the mode to be of use, if it has no plan."""


class Rerouting(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        take_over = REROUTED.get(func)
        if take_over is None:
            return func(*args, **(kwargs or {}))
        return take_over(func, args, kwargs or {})


class Reshaping(TorchFunctionMode):
    """What is left of it in a graph that is traced: the compiler fuses by itself."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.view and not isinstance(args[-1], torch.dtype):
            func = torch.Tensor.reshape
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def rerouting(module: nn.Module, plan: Plan, *, fold: bool) -> Iterator[None]:
    """Run what the `with` holds as a forward of `module`."""
    frame = _Frame(_epilogues(module, plan, fold=fold))
    outermost = not _running.frames
    _running.frames.append(frame)
    try:
        with Rerouting() if outermost else contextlib.nullcontext():
            yield
    finally:
        _running.frames.pop()
    if frame.outputs:
        raise RuntimeError(
            f"{type(module).__name__}: a layer took its activation in, but the forward did not go "
            "on to that activation: it is no longer what it was when the model was accelerated. "
            "Call fastgen.restore(model), and fastgen.accelerate(model) again"
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
            assert isinstance(candidate, nn.BatchNorm2d)
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
        if torch.compiler.is_compiling():
            with Reshaping():
                return method(self, *args, **kwargs)
        frames = _running.frames
        plan = self.__dict__.get("_accelerated_plan", {}) if planned else {}
        if not plan and frames:
            # A method of a module whose forward is running stays in that forward's frame.
            return method(self, *args, **kwargs)
        with rerouting(self, plan, fold=self.__dict__.get("_accelerated_fold", False)):
            return method(self, *args, **kwargs)

    return run


def mentions_rerouted(kind: type[nn.Module]) -> bool:
    """Whether a method of the class, or a function that it calls by name, mentions something
    rerouted.
    """
    methods = [inspect.getattr_static(kind, name) for name in dir(kind)]
    return any(
        isinstance(method, FunctionType) and is_users(method.__code__) and mentions(method)
        for method in methods
    )


def is_users(code: CodeType) -> bool:
    """Whether code stands outside of torch, of fastgen and of Python's own library."""
    file = code.co_filename
    if file.startswith(("<frozen", *_LIBRARIES)):
        return False
    return not file.startswith(_PYTHON) or "site-packages" in file


_LIBRARIES = (
    torch.__file__.removesuffix("__init__.py"),
    __file__.removesuffix("acceleration/rerouting.py"),
)
_PYTHON = sysconfig.get_path("stdlib")


def mentions(function: FunctionType) -> bool:
    """Whether a function, or one outside of torch that it names, mentions something rerouted."""
    waiting, seen = [function], set()
    while waiting:
        current = waiting.pop()
        if current.__code__ in seen:
            continue
        seen.add(current.__code__)
        for code in _nested(current.__code__):
            if NAMES.intersection(code.co_names):
                return True
            named = [current.__globals__.get(name) for name in code.co_names]
            waiting += [f for f in named if isinstance(f, FunctionType) and is_users(f.__code__)]
    return False


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
