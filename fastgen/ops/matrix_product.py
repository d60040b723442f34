"""Convolutions that are one matrix product, by PyTorch's product (cuBLAS on a GPU, oneMKL or oneDNN
on a CPU).

Where the kernel covers the whole picture (a DCGAN discriminator's last layer and, turned round, its
generator's first), or one pixel without a stride, the operands of a convolution lie in memory as
matrices already:

    fprop    map = picture weight^T
    dgrad    picture = map weight
    wgrad    weight = map^T picture

A convolution reads the picture and writes the map, a transposed one the other way round. Kernels
for windows are lost here: 128 pictures of 4x4 and 512 channels into one number each, 2 MB, take
cuDNN 40 us on an H200; 64 of 256 channels take oneDNN 390 us on one core, and 43 as a product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Geometry, is_channels_last, size_of
from .gradients import is_followed
from .layouts import is_channels_last_like, of_its_own


def fprop(input: Tensor, weight: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    """The forward but for its activation."""
    if geometry.transposed:
        return _to_picture(input, weight, geometry.transposed_size(input, weight), bias)
    return _to_map(input, weight, bias)


def input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    return _to_map(grad, weight) if geometry.transposed else _to_picture(grad, weight, size)


def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    picture, map = (grad, input) if geometry.transposed else (input, grad)
    last = is_channels_last(picture, weight)
    product = _matrix(map, 1, last).t() @ _matrix(picture, weight.shape[2:].numel(), last)
    return _tensor(product, (len(weight), *weight.shape[1:]), last)


def _to_map(picture: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    last, taps = is_channels_last(picture, weight), weight.shape[2:].numel()
    product = _plus(bias, _matrix(picture, taps, last), _matrix(weight, taps, last).t())
    height, width = picture.shape[2:] if taps == 1 else (1, 1)
    return _tensor(product, (len(picture), len(weight), height, width), last)


def _to_picture(
    map: Tensor, weight: Tensor, size: tuple[int, int], bias: Tensor | None = None
) -> Tensor:
    last, taps = is_channels_last(map, weight), weight.shape[2:].numel()
    if bias is not None:  # one number for each column
        bias = bias.repeat(taps) if last else bias.repeat_interleave(taps)
    product = _plus(bias, _matrix(map, 1, last), _matrix(weight, taps, last))
    return _tensor(product, (len(map), weight.shape[1], *size), last)


def _plus(bias: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    return rows @ columns if bias is None else torch.addmm(bias, rows, columns)


def _matrix(tensor: Tensor, taps: int, last: bool) -> Tensor:
    """Its memory as a matrix whose rows hold all channels of `taps` pixels."""
    in_order = tensor.permute(0, 2, 3, 1) if last else tensor
    return in_order.reshape(-1, taps * tensor.shape[1])


def _tensor(product: Tensor, shape: tuple[int, ...], last: bool) -> Tensor:
    """The memory of a product as a tensor (N, C, H, W)."""
    if not last:
        return of_its_own(product.view(shape))
    samples, channels, height, width = shape
    return of_its_own(product.view(samples, height, width, channels).permute(0, 3, 1, 2))


# --- which calls are such products, of operands that need not be copied ---


def takes_fprop(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    size = size_of(input)
    if geometry.transposed:
        picture = geometry.transposed_size(input, weight)
        return _takes(weight, picture, size, (input, weight), geometry)
    return _takes(weight, size, _map_size(weight, size), (input, weight), geometry)


def takes_input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    picture, map = (size_of(grad), size) if geometry.transposed else (size, size_of(grad))
    return _takes(weight, picture, map, (grad, weight), geometry)


def takes_weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    picture, map = (grad, input) if geometry.transposed else (input, grad)
    return _takes(weight, size_of(picture), size_of(map), (picture, weight, map), geometry)


def _map_size(weight: Tensor, picture: tuple[int, int]) -> tuple[int, int]:
    return (1, 1) if size_of(weight) == picture else picture


def _takes(
    weight: Tensor,
    picture: tuple[int, int],
    map: tuple[int, int],
    tensors: tuple[Tensor, ...],
    geometry: Geometry,
) -> bool:
    kernel = size_of(weight)
    if (
        geometry.groups != 1
        or geometry.padding != (0, 0)
        or geometry.output_padding != (0, 0)
        or is_followed()
        # cuBLAS wants a setting of its own then.
        or (weight.is_cuda and torch.are_deterministic_algorithms_enabled())
        or any(tensor.numel() == 0 for tensor in tensors)
    ):
        return False
    last = is_channels_last(*tensors[:2])
    if kernel == picture and map == (1, 1):
        if geometry.dilation != (1, 1):
            return False
    elif kernel != (1, 1) or map != picture or geometry.stride != (1, 1) or not last:
        return False
    return all(is_channels_last_like(t) if last else t.is_contiguous() for t in tensors)
