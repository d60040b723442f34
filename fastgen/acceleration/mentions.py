"""Whether code of the user's mentions a function that `rerouting` takes over, without a run."""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

import torch
from torch import nn

NAMES = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "conv2d", "conv_transpose2d",
    "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "view",
}  # fmt: skip
"""What code must mention for `rerouting` to be of use, if it has no plan."""


def mentions_rerouted(kind: type[nn.Module]) -> bool:
    """Whether a method of the class, or a function that it calls by name, mentions something
    rerouted.
    """
    found = [inspect.getattr_static(kind, name) for name in dir(kind)]
    methods = [getattr(m, "__func__", m) for m in found]  # of static and class methods
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
    __file__.removesuffix("acceleration/mentions.py"),
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
            modules = [found for found in named if isinstance(found, ModuleType)]
            named += [getattr(m, name, None) for m in modules for name in code.co_names]
            waiting += [f for f in named if isinstance(f, FunctionType) and is_users(f.__code__)]
    return False


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
