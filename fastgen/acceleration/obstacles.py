"""Why a layer is left as it is, and why a model as a whole is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from fastgen.nn import BiasLeakyReLU, ConvLeakyReLU2d, ConvTransposeLeakyReLU2d, LinearLeakyReLU
from fastgen.ops import checks

from .activations import is_slope
from .classes import is_accelerated, original_class
from .layers import layer_of

OURS = (BiasLeakyReLU, ConvLeakyReLU2d, ConvTransposeLeakyReLU2d, LinearLeakyReLU)
TWO_DIMENSIONAL = (nn.Conv2d, nn.ConvTranspose2d)
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)
CANDIDATES = (_ConvNd, nn.Linear, nn.ReLU, nn.LeakyReLU, nn.PReLU, *POOLS, *OURS)


def is_candidate(module: nn.Module) -> bool:
    """Whether a module is of a kind that is replaced, or that one might expect to be."""
    return isinstance(module, CANDIDATES) or _is_quantized(module)


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")) and any(
        name in kind.__name__ for name in ("Conv", "Linear")
    )


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, OURS) and not is_accelerated(module)


def _has_own_forward(module: nn.Module) -> bool:
    return layer_of(original_class(module)) is None


def _has_unknown_tensors(module: nn.Module) -> bool:
    return any(
        parameter.dtype not in checks.DTYPES or type(parameter) is not nn.Parameter
        for parameter in module.parameters()
    )


OBSTACLES: tuple[tuple[Callable[[nn.Module], bool], str], ...] = (
    (_is_ours, "it is fastgen's already"),
    (
        lambda m: isinstance(m, torch.jit.ScriptModule),
        "it is scripted, so its code is fixed: accelerate the model before scripting it",
    ),
    (
        lambda m: isinstance(m, LazyModuleMixin),
        "it has no weights yet: run one batch, then accelerate",
    ),
    (_is_quantized, "it is quantized"),
    (lambda m: isinstance(m, nn.PReLU), "its slope is learned"),
    (
        lambda m: isinstance(m, _ConvNd) and not isinstance(m, TWO_DIMENSIONAL),
        "only two-dimensional convolutions have a fused form",
    ),
    (
        lambda m: "forward" in m.__dict__,
        "its forward was replaced on the instance",
    ),
    (_has_own_forward, "it is a subclass with a forward of its own"),
    (
        lambda m: isinstance(m, _ConvNd) and m.padding_mode != "zeros",
        "its padding_mode is not 'zeros'",
    ),
    (
        lambda m: isinstance(m, nn.LeakyReLU) and not is_slope(m.negative_slope),
        "its slope lies outside of [0, 1]",
    ),
    (_has_unknown_tensors, "its weights are no plain floating-point parameters"),
)
"""Each with its reason, the first that applies counts."""


def obstacle(module: nn.Module) -> str | None:
    """Why a candidate cannot be replaced; None where it can."""
    return next((reason for applies, reason in OBSTACLES if applies(module)), None)


WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel(...)",
    "DataParallel": "DataParallel(...)",
    "FullyShardedDataParallel": "FullyShardedDataParallel(...)",
    "FSDPModule": "fully_shard(...)",
    "OptimizedModule": "torch.compile(...)",
}
"""Classes that hold a model in a way that what is inside must not change, and what makes them."""


def refuse(model: object) -> None:
    """Refuse what cannot be accelerated at all.

    Raises:
        TypeError: it is no module, or wrapped in one of `WRAPPERS`, compiled or scripted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module (got {type(model).__name__})")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model must not be scripted, its code is fixed then: call fastgen.accelerate(model) "
            "before torch.jit.script or torch.jit.trace"
        )
    for name, module in model.named_modules():
        wrapper = next(
            (
                WRAPPERS[kind.__name__]
                for kind in type(module).__mro__
                if kind.__name__ in WRAPPERS and kind.__module__.startswith("torch.")
            ),
            None,
        )
        if wrapper is None and module.__dict__.get("_compiled_call_impl") is not None:
            wrapper = "model.compile()"
        if wrapper is not None:
            # It takes contiguous parameters only.
            how = ", channels_last=False" if wrapper == WRAPPERS["FSDPModule"] else ""
            raise TypeError(
                f"{name or 'model'} is wrapped by {wrapper}: accelerate the model itself first, "
                f"fastgen.accelerate(model{how}), then {wrapper}"
            )
