"""Exchanging a module's class, and back.

For each class of modules there is one accelerated class: a subclass of it with another forward.
It pickles as "the accelerated class of that class", and deepcopy goes the same way.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class Accelerated:
    """What all accelerated classes share; stands before torch.nn's classes in the bases."""

    _accelerated_from: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        build, arguments, *state = reduced
        plain = getattr(copyreg, "__newobj__")  # noqa: B009
        if build is plain and arguments == (subclass_of(self._accelerated_from),):
            return (build_empty, (self._accelerated_from,), *state)
        return (build, arguments, *state)


def build_empty(original: type[nn.Module]) -> nn.Module:
    """A module of the accelerated class of `original`, still without its state."""
    accelerated = subclass_of(original)
    empty: nn.Module = accelerated.__new__(accelerated)
    return empty


Maker = Callable[[type[nn.Module]], tuple[tuple[type, ...], dict[str, Any]] | None]
_makers: list[Maker] = []


def makes_classes(maker: Maker) -> Maker:
    """Enter a function that tells the bases and the namespace of a class's accelerated class; None
    where the class is not its concern.
    """
    _makers.append(maker)
    return maker


def subclass_of(original: type[nn.Module]) -> Any:
    """The accelerated class of a class, always the same one."""
    return _subclass_of(original)  # type: ignore[arg-type]  # classes hash, mypy is not sure


@functools.cache
def _subclass_of(original: Any) -> Any:
    for maker in _makers:
        made = maker(original)
        if made is not None:
            bases, namespace = made
            # The name of the module that the class comes from stays: torch.fx takes layers of
            # torch.nn for leaves by it.
            namespace |= {
                "_accelerated_from": original,
                "__module__": original.__module__,
                "__doc__": original.__doc__,
            }
            name = original.__name__
            accelerated = type(original)(name, (*bases, original), namespace)
            accelerated.__qualname__ = original.__qualname__
            return accelerated
    raise AssertionError(f"no accelerated class for {original.__name__}")


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without parametrizations (which derive a class of their own)."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized(module) else kind


def is_accelerated(module: nn.Module) -> bool:
    return "_accelerated_from" in plain_class(module).__dict__


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class as the user made it."""
    kind = plain_class(module)
    original: type[nn.Module] = kind.__dict__.get("_accelerated_from", kind)
    return original


def exchange(module: nn.Module, target: type[nn.Module]) -> None:
    """Make `target` the module's class; a parametrized module's own class is derived anew."""
    if is_parametrized(module):
        kind: Any = type(module)
        namespace = {
            name: value
            for name, value in kind.__dict__.items()
            if name not in ("__dict__", "__weakref__")
        }
        target = type(kind)(kind.__name__, (target,), namespace)
    module.__class__ = target
