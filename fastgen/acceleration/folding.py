"""A batch normalization by fixed numbers, folded into the convolution before it.

    gamma (w * x + b - mean) / sqrt(var + eps) + beta  =  (s w) * x + (s (b - mean) + beta)

with s = gamma / sqrt(var + eps), one number per output channel. No parameter changes: the folded
weight is computed from them, so that gradients, checkpoints and training go on as ever.
"""

from __future__ import annotations

from typing import NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastgen.ops.gradients import is_last_order


class Folded(NamedTuple):
    weight: Tensor
    bias: Tensor


class Folds(nn.Module):
    """What a layer that may fold has: a change of mode forgets the folded weights."""

    def train(self, mode: bool = True) -> Self:
        _remembered.pop(self, None)
        return super().train(mode)


class _Sources(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    variance: Tensor


class _Remembered(NamedTuple):
    sources: _Sources
    stamps: list[tuple[int, int] | None]
    folded: Folded


_remembered: WeakKeyDictionary[nn.Module, _Remembered] = WeakKeyDictionary()


def folded(layer: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> Folded:
    """Weight and bias of the layer with the normalization folded in.

    Where gradients are recorded they flow to all five tensors. Where not, the result is kept until
    one of the five changes: another tensor, or a write that its version counter saw. A write
    through `.data` is not seen.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    sources = _Sources(layer.weight, layer.bias, norm.weight, norm.bias, mean, variance)
    if not is_last_order():
        return _fold(layer, norm, sources)
    try:
        stamps = [None if t is None else (t._version, t.data_ptr()) for t in sources]
    except RuntimeError:  # made under inference_mode: such tensors count no versions
        return _fold(layer, norm, sources)
    known = _remembered.get(layer)
    if (
        known is None
        or known.stamps != stamps
        or any(a is not b for a, b in zip(known.sources, sources, strict=True))
    ):
        with torch.inference_mode(False), torch.no_grad():
            known = _Remembered(sources, stamps, _fold(layer, norm, sources))
        _remembered[layer] = known
    return known.folded


def _fold(layer: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d, sources: _Sources) -> Folded:
    weight, bias, gamma, beta, mean, variance = sources
    scale = (variance + norm.eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = (-mean if bias is None else bias - mean) * scale
    if beta is not None:
        shift = shift + beta

    # Output channel g K/G + k is dimension 0 of a convolution's weight; of a transposed one's it is
    # dimension 1, in each of the G groups that dimension 0 is cut into.
    if isinstance(layer, nn.ConvTranspose2d):
        per_group = scale.view(layer.groups, 1, -1).expand(-1, len(weight) // layer.groups, -1)
        factor = per_group.reshape(*weight.shape[:2], 1, 1)
    else:
        factor = scale.view(-1, 1, 1, 1)
    return Folded((weight * factor).to(weight.dtype), shift.to(weight.dtype))
