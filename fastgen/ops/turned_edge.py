"""Convolutions with stride 1 that write a picture, a generator's last layer, by image-edge kernels.

Stride 1 makes a convolution a transposed one, of the weight with its taps turned round and its
channels exchanged, and with what its padding leaves of the kernel's reach:

    conv(x, w, padding p) = conv_transpose(x, w', padding k - 1 - p)
    w'[c, f, r, s] = w[f, c, k - 1 - r, k - 1 - s]

So one that reads many channels and writes 1 to 4 is the transposed image-edge convolution, and its
gradients are that one's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import image_edge
from .convolution import Activation
from .geometry import Geometry, is_channels_last


class TurnedEdge:
    """The passes, by the transposed image-edge convolution of `edge`.

    Args:
        edge: `image_edge` on a GPU, `cpu_image_edge` on a CPU.
    """

    def __init__(self, edge: Any) -> None:
        self._edge = edge

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> Tensor:
        """activation(fprop(input, weight) + bias)."""
        output: Tensor = self._edge.forward(
            input, _exchanged(weight).flip(2, 3), bias, activation, _turned(weight, geometry)
        )
        return output

    def input_gradient(
        self, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
    ) -> Tensor:
        """dgrad(grad, weight) for an input of height and width `size`."""
        result: Tensor = self._edge.input_gradient(
            grad, _exchanged(weight).flip(2, 3), size, _turned(weight, geometry)
        )
        return result

    def weight_gradient(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> Tensor:
        """wgrad(input, grad) in the layout of `weight`."""
        turned: Tensor = self._edge.weight_gradient(
            input, grad, _exchanged(weight), _turned(weight, geometry)
        )
        return torch.empty_like(weight).copy_(_exchanged(turned.flip(2, 3)))

    # --- which calls these are ---

    def takes_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> bool:
        return _takes(input, weight, geometry) and bool(
            self._edge.takes_forward(
                input, _exchanged(weight), bias, activation, _turned(weight, geometry)
            )
        )

    def takes_input_gradient(
        self, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
    ) -> bool:
        return _takes(grad, weight, geometry) and bool(
            self._edge.takes_input_gradient(
                grad, _exchanged(weight), size, _turned(weight, geometry)
            )
        )

    def takes_weight_gradient(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> bool:
        return _takes(input, weight, geometry) and bool(
            self._edge.takes_weight_gradient(
                input, grad, _exchanged(weight), _turned(weight, geometry)
            )
        )


def _exchanged(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1)


def _turned(weight: Tensor, geometry: Geometry) -> Geometry:
    (top, left), (height, width) = geometry.padding, weight.shape[2:]
    padding = (height - 1 - top, width - 1 - left)
    return geometry._replace(padding=padding, transposed=True)


def _takes(tensor: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether it is a convolution of many channels into a picture whose padding leaves something.

    `tensor` alone decides the layout: the exchanged weight's strides say nothing.
    """
    return (
        not geometry.transposed
        and geometry.stride == (1, 1)
        and weight.shape[0] <= image_edge.CHANNELS < weight.shape[1]
        and all(p < k for p, k in zip(geometry.padding, weight.shape[2:], strict=True))
        and is_channels_last(tensor, weight) == is_channels_last(tensor, _exchanged(weight))
    )
