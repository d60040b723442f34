"""What a layer may do with its result before it returns it: fold in a normalization, activate."""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from fastgen.ops.convolution import Activation

from .activations import MODULES, Call, is_slope
from .classes import original_class


class Epilogue(NamedTuple):
    """What a layer is asked to do with its result, for one call."""

    norm: nn.BatchNorm2d | None
    activation: Activation


NOTHING = Epilogue(None, 1.0)

ACTIVATES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
FOLDS = (nn.Conv2d, nn.ConvTranspose2d)


def takes(layer: nn.Module, activation: Activation) -> bool:
    """Whether a layer has a fused form with this activation."""
    if activation == "tanh":
        return isinstance(layer, nn.ConvTranspose2d)
    return isinstance(layer, ACTIVATES) and is_slope(activation)


def sees_output(layer: nn.Module) -> bool:
    """Whether a hook looks at the layer's output or its gradient, or the layer's forward is not its
    class's.
    """
    return bool(
        layer._forward_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._forward_pre_hooks_with_kwargs
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
        or "forward" in layer.__dict__
    )


def is_bare(module: nn.Module) -> bool:
    """Whether passing the module over goes unnoticed: no hook, no forward put on the instance."""
    return not (sees_output(module) or module._forward_pre_hooks)


def call_of(module: nn.Module) -> Call | None:
    """The activation that a module applies, where it is one that a layer could take in."""
    kind = original_class(module)
    if kind not in MODULES:
        return None
    call = MODULES[kind](module)
    return call if call.activation == "tanh" or is_slope(call.activation) else None


def is_frozen_norm(module: nn.Module, layer: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module behind a layer is a batch normalization by fixed numbers, and nobody looks
    at what is between the two.
    """
    return (
        type(module) is nn.BatchNorm2d
        and isinstance(layer, FOLDS)
        and module.num_features == layer.out_channels
        and module.running_mean is not None
        and not module.training
        and is_bare(module)
        and not sees_output(layer)
    )


# Layers of torch.nn that never overwrite their input, and such as may return it or a view of it.
READERS = (
    _ConvNd, nn.Linear, _BatchNorm, _InstanceNorm, _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd,
    nn.Upsample,
)  # fmt: skip
PASSERS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)


def only_reads(module: nn.Module) -> bool:
    kind = original_class(module)
    return isinstance(module, READERS) and kind.__module__.startswith("torch.nn.")


class Behind(NamedTuple):
    """What stands behind a layer in a sequence: what the layer takes in, from how many modules, and
    if that is nothing although there is an activation, why.
    """

    epilogue: Epilogue
    taken: int
    why_not: str = ""


def behind(layers: list[nn.Module], position: int, *, fold: bool) -> Behind:
    """What the layer at a position takes in of the modules behind it, as they are now."""
    layer = layers[position]
    norm: nn.BatchNorm2d | None = None
    after = position + 1
    if fold and after < len(layers) and is_frozen_norm(found := layers[after], layer):
        norm, after = found, after + 1
    without = Behind(Epilogue(norm, 1.0), after - position - 1)
    if after == len(layers):
        return without
    call = call_of(layers[after])
    if call is None:
        return without
    if not takes(layer, call.activation):
        return without._replace(why_not=TAKES_NO_TANH)
    if sees_output(layer):
        return Behind(NOTHING, 0, OUTPUT_IS_SEEN)
    if not is_bare(layers[after]):
        return without._replace(why_not=ACTIVATION_IS_SEEN)
    if not (call.keeps_output or not torch.is_grad_enabled() or _is_read(layers, after + 1)):
        return without._replace(why_not=MAY_BE_OVERWRITTEN)
    return Behind(Epilogue(norm, call.activation), after - position)


TAKES_NO_TANH = "only a transposed convolution takes tanh in"
OUTPUT_IS_SEEN = "a hook sees its output"
ACTIVATION_IS_SEEN = "its activation has a hook or a forward of its own"
MAY_BE_OVERWRITTEN = (
    "what follows may overwrite the output, which a fused layer keeps for its backward "
    "(fused only under no_grad)"
)


def _is_read(layers: list[nn.Module], position: int) -> bool:
    """Whether what reaches this position in a sequence is surely not overwritten."""
    for module in layers[position:]:
        if isinstance(module, PASSERS) and not getattr(module, "inplace", False):
            continue
        return only_reads(module)
    return False
