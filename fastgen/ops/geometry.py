"""What describes a convolution beside its tensors, and the checks that both convolutions share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import checks
from .casts import cast
from .layouts import of_its_own

_is_any_autocast_enabled = torch._C._is_any_autocast_enabled


class Geometry(NamedTuple):
    """Everything about a convolution that is not a tensor."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    transposed: bool
    output_padding: tuple[int, int]

    def convolved_size(self, input: Tensor, weight: Tensor) -> tuple[int, int]:
        """Height and width of the convolution of `input`."""
        height, width = (
            (
                input.shape[2 + axis]
                + 2 * self.padding[axis]
                - self.dilation[axis] * (weight.shape[2 + axis] - 1)
                - 1
            )
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return height, width

    def transposed_size(self, input: Tensor, weight: Tensor) -> tuple[int, int]:
        """Height and width of the transposed convolution of `input`."""
        height, width = (
            (input.shape[2 + axis] - 1) * self.stride[axis]
            - 2 * self.padding[axis]
            + self.dilation[axis] * (weight.shape[2 + axis] - 1)
            + 1
            + self.output_padding[axis]
            for axis in (0, 1)
        )
        return height, width

    def numbers(self) -> tuple[int, ...]:
        """Stride, padding and dilation one after the other, as operators take them."""
        return (*self.stride, *self.padding, *self.dilation)


def size_of(tensor: Tensor) -> tuple[int, int]:
    """Height and width of pictures, maps or kernels."""
    return tensor.shape[2], tensor.shape[3]


def cropped(result: Tensor, size: tuple[int, int]) -> Tensor:
    """The input gradient of a transposed convolution by a convolution, without the rows and columns
    that no input has: an output padding of a stride or more (allowed below the dilation) adds them.
    """
    if size_of(result) == size:
        return result
    return of_its_own(result[:, :, : size[0], : size[1]])


def belongs(size: tuple[int, int], map: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether an input of this height and width has a convolution, undilated, of the map's."""
    return all(
        0
        <= size[axis]
        + 2 * geometry.padding[axis]
        - weight.shape[2 + axis]
        - (map.shape[2 + axis] - 1) * geometry.stride[axis]
        < geometry.stride[axis]
        for axis in (0, 1)
    )


def input_gradient_belongs(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    """Whether the input gradient's size is that of a convolution's input, if it is one's."""
    return geometry.transposed or belongs(size, grad, weight, geometry)


def weight_gradient_belongs(
    input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
) -> bool:
    """The same of a weight gradient: an output padding of a stride or more adds rows to a
    transposed convolution's output that no convolution of them reads.
    """
    return not geometry.transposed or belongs(size_of(grad), input, weight, geometry)


def check(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    """Refuse tensors that do not fit each other or the geometry, naming the argument."""
    checks.floating_tensor("input", input)
    checks.floating_tensor("weight", weight)
    checks.same_kind("weight", weight, input)
    if input.dim() != 4:
        raise ValueError(
            f"input must have shape (N, C, H, W) or (C, H, W) (got {tuple(input.shape)})"
        )
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(
            f"weight must have four dimensions, none of them 0 (got {tuple(weight.shape)})"
        )

    groups, transposed = geometry.groups, geometry.transposed
    inner, outer = (
        (weight.shape[0], weight.shape[1] * groups)
        if transposed
        else (weight.shape[1] * groups, weight.shape[0])
    )
    if input.shape[1] != inner:
        raise ValueError(
            f"input must have {inner} channels for a weight of shape {tuple(weight.shape)} "
            f"and groups={groups} (got {input.shape[1]} in {tuple(input.shape)})"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide weight.shape[0] = {weight.shape[0]} (got {groups})")
    if bias is not None:
        checks.floating_tensor("bias", bias)
        checks.same_kind("bias", bias, input)
        checks.vector("bias", bias, outer, "one number per output channel")

    for axis, name in enumerate(("height", "width")):
        size, kernel = input.shape[2 + axis], weight.shape[2 + axis]
        reach = geometry.dilation[axis] * (kernel - 1) + 1
        if transposed:
            result = geometry.transposed_size(input, weight)[axis]
            if result < 1:
                raise ValueError(
                    f"input of {name} {size} gives an output of {name} {result}: "
                    "use less padding or a larger input"
                )
        elif size + 2 * geometry.padding[axis] < reach:
            raise ValueError(
                f"input of {name} {size} with padding {geometry.padding[axis]} is smaller than "
                f"the kernel, which spans {reach} "
                f"(kernel {kernel}, dilation {geometry.dilation[axis]})"
            )


def autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in autocast's dtype where it is on, as PyTorch's own convolutions do; float64
    stays.
    """
    if not (is_compiling() or _is_any_autocast_enabled()):
        return input, weight, bias
    # Tensors without memory know no autocast: the question alone is an error.
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return (
        input.to(dtype) if _is_cast(input, dtype) else input,
        cast(weight, dtype) if _is_cast(weight, dtype) else weight,
        cast(bias, dtype) if bias is not None and _is_cast(bias, dtype) else bias,
    )


def _is_cast(tensor: Tensor, dtype: torch.dtype) -> bool:
    given = tensor.dtype
    return given != dtype and given != torch.float64 and given.is_floating_point


def is_channels_last(input: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of the two answers in channels_last; either suffices."""
    return _runs_channels_last(input) or _runs_channels_last(weight)


def _runs_channels_last(tensor: Tensor) -> bool:
    """Whether memory runs N, H, W, C by the strides alone, which is PyTorch's own rule.

    A picture of one channel is contiguous in both layouts; its strides still tell which one it was
    given, and layers go on in that.
    """
    if tensor.dim() != 4 or 0 in tensor.shape:
        return False
    _, channels, height, width = tensor.shape
    far, step, line, pixel = tensor.stride()
    return (
        step != 0
        and pixel >= step * channels
        and line >= pixel * width
        and far >= line * height
        and line * height != step  # all strides before are 1: one channel, one pixel
    )
