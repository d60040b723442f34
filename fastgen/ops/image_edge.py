"""Convolutions with a picture, 1 to 4 channels, on one side: the compiled operators as passes.

A critic's first layer reads the picture and a generator's last one writes it; the gradients of
either are again one of the two. The gradient of the weight is one sum for both, in which the
picture is the input of the one and the gradient of the other. So three operators compute:

    =================================  ==========================  ============================
    operator                           of a convolution            of a transposed convolution
    =================================  ==========================  ============================
    image_edge_conv2d                  forward, masked_forward     input_gradient
    image_edge_conv_transpose2d        input_gradient              forward (tanh, too)
    image_edge_conv2d_weight_gradient  weight_gradient             weight_gradient
    =================================  ==========================  ============================

The last one's pass here is that of GPUs; CPUs take more layouts of it (`cpu_image_edge`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .compiled import operators
from .convolution import Activation
from .geometry import Geometry, belongs, cropped, is_channels_last, size_of
from .layouts import is_channels_last_like, is_dense
from .routing import allow_tf32

CHANNELS = 4  # of a picture, at most
KERNEL = 7  # rows or columns, at most
STRIDE = 4

_INDICES = 2**31  # within one image, with room for its borders


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    """activation(fprop(input, weight) + bias)."""
    bias = None if bias is None else bias.contiguous()
    if not geometry.transposed:
        assert activation != "tanh"
        return _convolved(input, weight, bias, None, activation, geometry)
    size = geometry.transposed_size(input, weight)
    return _transposed(input, weight, bias, activation, size, geometry)


def masked_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    """mask(fprop(input, weight) + bias; output), of a convolution."""
    bias = None if bias is None else bias.contiguous()
    return _convolved(input, weight, bias, output, negative_slope, geometry)


def input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`."""
    if not geometry.transposed:
        return _transposed(grad, weight, None, 1.0, size, geometry)
    return cropped(_convolved(grad, weight, None, None, 1.0, geometry), size)


def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """wgrad(input, grad) in the layout of `weight`."""
    picture, map = (grad, input) if geometry.transposed else (input, grad)
    last = is_channels_last_like(weight) and not weight.is_contiguous()
    result: Tensor = operators().image_edge_conv2d_weight_gradient(
        picture, map, *weight.shape[2:], *geometry.stride, *geometry.padding, last, allow_tf32()
    )
    return result


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    result: Tensor = operators().image_edge_conv2d(
        input, weight, bias, output, negative_slope, *geometry.stride, *geometry.padding,
        is_channels_last(input, weight), allow_tf32(),
    )  # fmt: skip
    return result


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    size: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    tanh = activation == "tanh"
    result: Tensor = operators().image_edge_conv_transpose2d(
        input, weight, bias, 1.0 if tanh else activation, tanh, *geometry.stride,
        *geometry.padding, *size, is_channels_last(input, weight), allow_tf32(),
    )  # fmt: skip
    return result


# --- which calls the operators take ---


def takes_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> bool:
    """Whether `forward` computes this call, on every device that has the operators."""
    if geometry.transposed:
        # A larger output padding adds rows that belong to no input row.
        within = all(a < s for a, s in zip(geometry.output_padding, geometry.stride, strict=True))
        size = geometry.transposed_size(input, weight)
        return within and takes_transposed(input, weight, size, geometry)
    return activation != "tanh" and takes_convolution(input, weight, geometry)


def takes_masked_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> bool:
    return (
        not geometry.transposed
        and takes_convolution(input, weight, geometry)
        and is_twin_of_result(output, input, weight)
    )


def is_twin_of_result(output: Tensor, input: Tensor, weight: Tensor) -> bool:
    """Whether memory of `output` runs as that of the convolution's result will."""
    last = is_channels_last(input, weight)
    return is_channels_last_like(output) if last else output.is_contiguous()


def takes_input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    if geometry.transposed:
        return takes_convolution(grad, weight, geometry)
    return takes_transposed(grad, weight, size, geometry)


def takes_convolution(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether image_edge_conv2d takes it: weight (filters, channels of the picture, kernel)."""
    padded = [
        extent + 2 * padding
        for extent, padding in zip(input.shape[2:], geometry.padding, strict=True)
    ]
    return (
        _common(input, weight, geometry)
        # Every index within an image and its result, whatever the strides: 32 bits.
        and (padded[0] + 512) * (padded[1] + 512) * weight.shape[0] < _INDICES
        and _reach(input) < _INDICES
    )


def takes_transposed(
    input: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    """Whether image_edge_conv_transpose2d takes it: weight (channels, those of the picture,
    kernel); it keeps the whole weight in shared memory.
    """
    taps = weight.shape[2] * weight.shape[3]
    tiles = 3 if taps * weight.shape[1] <= 48 else 5
    weight_bytes = -(-input.shape[1] // 32) * 32 * 16 * tiles * input.element_size()
    return (
        _common(input, weight, geometry)
        and is_dense(input)
        and weight_bytes <= SHARED_WEIGHT
        and (input.shape[1] + 32) * (input.shape[2] + 32) * (input.shape[3] + 32) < _INDICES
        and (size[0] + 64) * (size[1] + 64) * 4 < _INDICES
    )


def takes_weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether `weight_gradient` computes this call on a GPU: there the map is read in channels_last
    and float32 has no kernel without tensor cores.
    """
    picture, map = (grad, input) if geometry.transposed else (input, grad)
    size = size_of(picture)
    padded = [extent + 2 * p for extent, p in zip(size, geometry.padding, strict=True)]
    return (
        _common(picture, weight, geometry)
        and map.numel() > 0
        and is_channels_last_like(map)
        and (picture.dtype != torch.float32 or allow_tf32())
        # An output padding of a stride or more adds rows that no input has.
        and belongs(size, map, weight, geometry)
        and (padded[0] + 512) * (padded[1] + 512) * max(weight.shape[0], CHANNELS) < _INDICES
        and _reach(picture) < _INDICES
    )


SHARED_WEIGHT = 32 * 1024
"""Bytes; what is left of 99 KiB, which every GPU since Ampere has, always suffices for the rest.
A host test holds it over all kernels and strides that are let in here.
"""


def _common(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    picture = weight.shape[1]
    return (
        1 <= picture <= CHANNELS
        and geometry.groups == 1
        and geometry.dilation == (1, 1)
        and max(weight.shape[2:]) <= KERNEL
        and max(geometry.stride) <= STRIDE
        # More only adds borders that see nothing but the bias.
        and all(p < k for p, k in zip(geometry.padding, weight.shape[2:], strict=True))
        and input.numel() > 0
    )


def _reach(input: Tensor) -> int:
    """Elements of memory from the first to the last of one image."""
    return 1 + sum(
        (extent - 1) * stride
        for extent, stride in zip(input.shape[1:], input.stride()[1:], strict=True)
    )
