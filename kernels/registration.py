"""Operators `torch.ops.fastgen_triton.*`: how a Python function becomes one.

Registered at the lowest level, without autograd: the autograd Functions of fastgen.ops stand above.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
import triton

from .launching import Replayed

NAMESPACE = "fastgen_triton"
INTERPRETED = bool(triton.knobs.runtime.interpret)

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_F = TypeVar("_F", bound=Callable[..., Any])


def on_device(function: _F) -> _F:
    """The function, run with the GPU of its first tensor as the current one.

    Triton launches on the current GPU and its stream, whatever GPU the tensors are on.
    """

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        tensor = next(a for a in arguments if isinstance(a, torch.Tensor))
        if tensor.get_device() == torch.cuda.current_device():
            return function(*arguments)
        with torch.cuda.device(tensor.device):
            return function(*arguments)

    return cast(_F, guarded)


DIRECT = SimpleNamespace()
"""The same operators without PyTorch's dispatcher, which takes 3 to 6 us of one core of an EPYC to
hand a call to Python. For calls that nothing watches: no mode, no transform, no tracing.
"""


def _direct(
    name: str, on_gpu: Callable[..., Any], interpreted: Callable[..., Any]
) -> Callable[..., Any]:
    plain = (torch.Tensor, torch.nn.Parameter)
    # A tensor that a transform left behind still stands for another one.
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

    def direct(*arguments: Any) -> Any:
        function = on_gpu
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                if type(argument) not in plain or is_wrapped(argument):
                    return getattr(getattr(torch.ops, NAMESPACE), name)(*arguments)
                if not argument.is_cuda:
                    function = interpreted
        return function(*arguments)

    return direct


def operator(schema: str, *, fake: Callable[..., Any]) -> Callable[[_F], _F]:
    """Register the function below as `torch.ops.fastgen_triton.<name>`.

    It runs on CUDA tensors, and on CPU tensors where Triton's interpreter was switched on
    (`TRITON_INTERPRET=1`) before Triton was imported.

    Args:
        schema: name, arguments and results, as in ``"f(Tensor x, float slope) -> Tensor"``.
        fake: the same function for tensors without data: shapes, dtypes and layouts only.
    """

    def register(function: _F) -> _F:
        name = schema.partition("(")[0]
        replayed = Replayed(function)
        guarded = on_device(replayed)
        setattr(DIRECT, name, _direct(name, guarded, replayed))
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, guarded, "CUDA")
        if INTERPRETED:
            _library.impl(name, replayed, "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
        return function

    return register
