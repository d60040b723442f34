"""What `from_torch` and `to_torch` of every layer share: adopting parameters, reading an
activation's slope.
"""

from __future__ import annotations

from torch import nn


def slope_of(activation: nn.Module | None) -> float:
    """The negative slope that stands for an activation: None is 1, ReLU is 0, LeakyReLU its own.

    Raises:
        TypeError: another activation.
    """
    if activation is None:
        return 1.0
    if type(activation) is nn.ReLU:
        return 0.0
    if type(activation) is nn.LeakyReLU:
        return float(activation.negative_slope)
    raise TypeError(
        f"activation must be nn.LeakyReLU, nn.ReLU or None (got {type(activation).__name__})"
    )


def activation_of(negative_slope: float) -> nn.Module | None:
    """The torch.nn activation of a slope: the inverse of `slope_of`."""
    if negative_slope == 1:
        return None
    return nn.ReLU() if negative_slope == 0 else nn.LeakyReLU(negative_slope)


def share(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the very parameters of `source`: no copy, so optimizers and tied weights stay
    right.
    """
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, parameter)
    target.train(source.training)


def with_activation(layer: nn.Module, negative_slope: float) -> nn.Module:
    """`layer` alone, or followed by its activation."""
    activation = activation_of(negative_slope)
    return layer if activation is None else nn.Sequential(layer, activation)
