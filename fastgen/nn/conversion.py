"""What `from_torch` and `to_torch` of every layer share: adopting parameters, reading an
activation's slope.
"""

from __future__ import annotations

from torch import nn


def slope_of(activation: nn.Module | None, allowed: str = "nn.LeakyReLU, nn.ReLU or None") -> float:
    """The negative slope that stands for an activation: None is 1, ReLU is 0, LeakyReLU its own.

    Raises:
        TypeError: another activation; the message says which are `allowed`.
    """
    if activation is None:
        return 1.0
    if type(activation) is nn.ReLU:
        return 0.0
    if type(activation) is nn.LeakyReLU:
        return float(activation.negative_slope)
    raise TypeError(f"activation must be {allowed} (got {type(activation).__name__})")


def check_computes_as(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Refuse what is no layer of this kind, or a subclass that may compute something else.

    Raises:
        TypeError: with what to do.
    """
    if not isinstance(layer, kind):
        raise TypeError(f"the layer must be an nn.{kind.__name__} (got {type(layer).__name__})")
    for name in ("forward", "_conv_forward", "_output_padding"):
        if getattr(type(layer), name, None) is not getattr(kind, name, None):
            raise TypeError(
                f"{type(layer).__name__} has a {name} of its own, which may compute something else "
                f"than nn.{kind.__name__} does; make an nn.{kind.__name__} of its parameters first"
            )


def share(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the very parameters of `source`: no copy, so optimizers and tied weights stay
    right.

    Raises:
        TypeError: one of them is computed anew at each call, by a parametrization.
    """
    for name, parameter in target._parameters.items():
        if parameter is None:
            continue
        shared = source._parameters.get(name)
        if shared is None:
            raise TypeError(
                f"the {name} of {type(source).__name__} is no parameter but computed from others "
                "(by spectral_norm, weight_norm or another parametrization): convert the layer "
                "first and parametrize the result, or let fastgen.accelerate(model) exchange it "
                "with its parametrization"
            )
        setattr(target, name, shared)
    target.train(source.training)


def with_activation(layer: nn.Module, negative_slope: float) -> nn.Module:
    """`layer` alone, or followed by the activation of a slope: the inverse of `slope_of`."""
    if negative_slope == 1:
        return layer
    return nn.Sequential(layer, nn.ReLU() if negative_slope == 0 else nn.LeakyReLU(negative_slope))
