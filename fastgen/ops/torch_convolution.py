"""Convolution and transposed convolution by plain PyTorch operators, on every device, without
autograd.

A pass has several ways: PyTorch's own convolution, and on a CPU others where they were measured to
be faster. Which one depends on nothing but shapes, layouts, dtypes and settings, so `WAYS` names it
once for all calls alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import phases
from .convolution import Activation, Gradients
from .geometry import Geometry, cropped, is_channels_last, size_of
from .gradients import is_followed
from .layouts import of_its_own
from .torch_bias_leaky_relu import activate_, aten, mask_, per_channel

Way = Callable[..., Tensor]


@functools.cache
def _onednn_dtypes() -> frozenset[torch.dtype]:
    """The dtypes for which oneDNN's fused convolution exists and is fast on this CPU."""
    namespace = torch.ops.mkldnn
    if not torch._C._has_mkldnn or not hasattr(namespace, "_convolution_pointwise"):
        return frozenset()
    bfloat16 = getattr(namespace, "_is_mkldnn_bf16_supported", lambda: False)()
    return frozenset({torch.float32, torch.bfloat16} if bfloat16 else {torch.float32})


def _onednn_takes(input: Tensor) -> bool:
    return (
        not is_followed()
        and input.device.type == "cpu"
        and input.dtype in _onednn_dtypes()
        and input.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
    )


PHASES = 20480
"""Numbers of an input from which a transposed convolution is split into phases."""

FUSES = 1 << 17
"""Numbers of a result from which its activation gains inside of oneDNN's convolution: as a pass of
its own it costs no less up to there, and oneDNN's fused operators cost 10 us more a call. Over 150
random shapes of 8 to 256 channels PyTorch's own way takes 0.76 to 1.0 times as long below (0.96 in
the mean), 0.97 to 1.06 times to 2^20, and 1.0 to 1.7 times beyond. A bias gains nothing inside.
"""

APART = 1024
"""Numbers of an input up to which a bias stays inside; see `stands_apart`."""


# --- forward ---


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    """activation(fprop(input, weight) + bias)."""
    way = _forward_way(input, weight, bias, activation, geometry)
    return way(input, weight, bias, activation, geometry)


def _forward_way(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Way:
    # oneDNN has no transposed convolution with an output padding of a stride or more.
    if not _onednn_takes(input) or not _pads_within_stride(geometry):
        return _convolved
    if stands_apart(input, weight, geometry):
        return _bias_apart
    if (
        geometry.transposed
        and input.numel() > PHASES
        and _goes_by_phases(input, weight, geometry.transposed_size(input, weight), geometry)
    ):
        return _by_phases
    # With one thread PyTorch has a kernel of its own for one tap and few pictures, too.
    one_tap = weight.shape[2] * weight.shape[3] == 1
    # oneDNN's leaky ReLU of slope 0 turns NaN into 0.
    inside = activation not in (0, 1) and not (one_tap and len(input) < 16)
    inside = inside and (geometry.transposed or not _loses_a_column(input, weight, geometry))
    return _fused if inside and _results(input, weight, geometry) >= FUSES else _convolved


def _results(input: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """How many numbers a layer's output has."""
    if geometry.transposed:
        height, width = geometry.transposed_size(input, weight)
        return len(input) * weight.shape[1] * geometry.groups * height * width
    height, width = geometry.convolved_size(input, weight)
    return len(input) * len(weight) * height * width


def _pads_within_stride(geometry: Geometry) -> bool:
    return all(p < s for p, s in zip(geometry.output_padding, geometry.stride, strict=True))


def stands_apart(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a bias or an activation inside makes a transposed convolution slow on a CPU.

    oneDNN then has none of its fast kernels: where the output's size is no multiple of the stride,
    for contiguous pictures with stride 1, and for most groups and dilations. 16 pictures of 16x16,
    64 channels to 64, one core, with a bias and without: 1x1 with stride 2 in channels_last 7.0 and
    0.9 ms in float32, 22 and 0.6 ms in bfloat16; with leaky ReLU inside 33 and 46 ms. A bias behind
    it is another rounding in 16 bits; up to a thousand numbers it saves nothing that is worth that.
    """
    if not geometry.transposed or input.numel() <= APART:
        return False
    if geometry.groups != 1 or geometry.dilation != (1, 1):
        return True
    if geometry.stride == (1, 1):
        return not is_channels_last(input, weight)
    size = geometry.transposed_size(input, weight)
    return any(extent % step for extent, step in zip(size, geometry.stride, strict=True))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """PyTorch's own convolution."""
    stride, padding, dilation, groups, transposed, output_padding = geometry
    if not transposed and stride[0] < stride[1] and _loses_a_column(input, weight, geometry):
        apart = geometry._replace(stride=(stride[0], 1))
        layout = torch.channels_last if is_channels_last(input, weight) else torch.contiguous_format
        column = linear(input, weight, bias, apart)[..., :1]
        return of_its_own(column.contiguous(memory_format=layout))
    # PyTorch's own binding: `torch.ops.aten` takes a third longer over nine arguments.
    return torch.convolution(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )


def _loses_a_column(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution gives a map of one column, which oneDNN computes wrongly in
    channels_last where the stride along rows is the longer one: of pictures of one channel, and of
    16 to 8 in bfloat16 (torch 2.13). The first column is that of a stride of 1, too.
    """
    return (
        geometry.stride[0] < geometry.stride[1]
        and geometry.convolved_size(input, weight)[1] == 1
        and _onednn_takes(input)
    )


def _convolved(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, geometry: Geometry
) -> Tensor:
    return activate_(linear(input, weight, bias, geometry), activation)


def _bias_apart(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, geometry: Geometry
) -> Tensor:
    output = linear(input, weight, None, geometry)
    if bias is not None:
        output.add_(per_channel(bias, output))
    return activate_(output, activation)


def _fused(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, geometry: Geometry
) -> Tensor:
    """oneDNN's convolution with bias and activation inside; no slope of 0 or 1."""
    stride, padding, dilation, groups, transposed, output_padding = geometry
    bias = None if bias is None else bias.contiguous()  # taken for dense, whatever its stride
    tanh = activation == "tanh"
    post = ("tanh", [], "") if tanh else ("leaky_relu", [activation], "")
    if transposed:
        output: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            input, weight, bias, padding, output_padding, stride, dilation, groups, *post
        )
    else:
        output = torch.ops.mkldnn._convolution_pointwise(
            input, weight, bias, padding, stride, dilation, groups, *post
        )
    return output


def _goes_by_phases(
    input: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    stride, padding, dilation, groups, *_ = geometry
    return phases.fits(weight, size, size_of(input), stride, padding, dilation, groups)


def _by_phases(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, geometry: Geometry
) -> Tensor:
    """The transposed convolution of a shape that `phases.fits`."""
    step, padding = geometry.stride[0], geometry.padding
    channels_last = is_channels_last(input, weight)
    dense = phases.phase_weight(weight, step, padding, channels_last=channels_last)
    if bias is not None:
        bias = bias.repeat(step * step) if channels_last else bias.repeat_interleave(step * step)
    crop = phases.phase_padding(weight, step, padding)
    result = torch.convolution(input, dense, bias, [1, 1], crop, [1, 1], True, [0, 0], 1)
    return activate_(phases.shuffle(result, step, channels_last=channels_last), activation)


def masked_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    """mask(fprop(input, weight) + bias; output)."""
    way = _forward_way(input, weight, bias, 1.0, geometry)
    return _masked(way, input, weight, bias, output, negative_slope, geometry)


def _masked_forward_way(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Way:
    return partial(_masked, _forward_way(input, weight, bias, 1.0, geometry))


def _masked(
    way: Way,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    return mask_(way(input, weight, bias, 1.0, geometry), output, negative_slope)


# --- input gradient: by the convolution in the other direction, as aten::convolution_backward would
# want an input of the right shape and layout for nothing but its metadata ---


def input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`."""
    return _input_gradient_way(grad, weight, size, geometry)(grad, weight, size, geometry)


def _input_gradient_way(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Way:
    if geometry.transposed:
        return _convolved_back
    if _onednn_takes(grad) and _goes_by_phases(grad, weight, size, geometry):
        return _back_by_phases
    smallest = geometry.transposed_size(grad, weight)
    return partial(_transposed_back, (size[0] - smallest[0], size[1] - smallest[1]))


def _convolved_back(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    stride, padding, dilation, groups, *_ = geometry
    back = Geometry(stride, padding, dilation, groups, False, (0, 0))
    return cropped(linear(grad, weight, None, back), size)


def _back_by_phases(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    return _by_phases(grad, weight, None, 1.0, geometry)


def _transposed_back(
    missing: tuple[int, int],
    grad: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    stride, padding, dilation, groups, *_ = geometry
    return torch.convolution(grad, weight, None, stride, padding, dilation, True, missing, groups)


# --- weight gradient ---


def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """wgrad(input, grad) for a weight like `weight`."""
    return _weight_gradient_way(input, grad, weight, geometry)(input, grad, weight, geometry)


def _weight_gradient_way(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Way:
    if _product_gains(input, grad, weight, geometry):
        return weight_gradient_by_product
    if _reads_beyond(input, grad, weight, geometry):
        return _wide_weight_gradient
    return _weight_gradient


def _weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    result = gradients((False, True, False), input, grad, weight, geometry)[1]
    assert result is not None
    return result


def gradients(
    asked: tuple[bool, ...], input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
) -> Gradients:
    """(dgrad(grad, weight), wgrad(input, grad), sum of grad per channel), those asked for, by one
    call, which costs the host less than two.
    """
    stride, padding, dilation, groups, transposed, output_padding = geometry
    results: Gradients = aten.convolution_backward.default(
        grad,
        input,
        weight,
        [grad.shape[1]],
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        asked,
    )
    return results


def are_plain(
    input_gradient: Way | None,
    weight_gradient: Way,
    input: Tensor,
    grad: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> bool:
    """Whether `gradients` is what these ways compute, converts no layout, and is no slower (with
    groups it is, by up to 12 %; else it takes 0.94 times as long over 330 random shapes).
    """
    if isinstance(input_gradient, partial):
        input_gradient = input_gradient.func
    layouts = {is_channels_last(tensor, tensor) for tensor in (input, grad, weight)}
    return (
        weight_gradient is _weight_gradient
        and input_gradient in (None, _transposed_back, _convolved_back)
        and len(layouts) == 1
        and geometry.groups == 1
        # Of rows that no input has, see `geometry.cropped`.
        and _pads_within_stride(geometry)
        and not (geometry.transposed and _loses_a_column(grad, weight, geometry))
    )


def _wide_weight_gradient(
    input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    wide = weight_gradient(input.float(), grad.float(), weight.float(), geometry)
    return wide.to(weight.dtype)


def weight_gradient_by_product(
    input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """The weight gradient as one matrix product over patches of the input, in the input's layout.

    For small maps, where oneDNN's weight gradient stays far below the product. Batch 32, one core:

    * 5x5, 256 to 512 channels, 8x8 to 4x4: channels_last 53.7 to 37.3 ms in float32, 29.4 to
      17.7 ms in bfloat16; contiguous 70 to 49 ms and 29 to 22 ms;
    * 4x4, 128 to 256 channels: 4.8 to 3.0 ms in channels_last bfloat16.

    On maps of 8x8 and more the patches cost what the product gains. Contiguous patches cost more:
    they pay only for weights that no cache holds (with 2 million numbers it still loses).
    """
    (vertical, horizontal), (top, left) = geometry.stride, geometry.padding
    channels, kernel = input.shape[1], weight.shape[2:]
    padded = F.pad(input, [left, left, top, top])
    patches = padded.unfold(2, kernel[0], vertical).unfold(3, kernel[1], horizontal)
    places = grad.shape[0] * grad.shape[2] * grad.shape[3]
    if is_channels_last(input, weight):
        rows = patches.permute(0, 2, 3, 4, 5, 1).reshape(places, -1)
        product = grad.permute(0, 2, 3, 1).reshape(places, -1).t() @ rows
        return of_its_own(product.view(-1, *kernel, channels).permute(0, 3, 1, 2))
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(places, -1)
    product = grad.transpose(0, 1).reshape(-1, places) @ rows
    return of_its_own(product.view(-1, channels, *kernel))


def _product_gains(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    small_map = 1 < grad.shape[2] * grad.shape[3] <= 16
    if not (
        _onednn_takes(input)
        and small_map
        and not geometry.transposed
        and geometry.groups == 1
        and geometry.dilation == (1, 1)
        and min(input.shape[1], grad.shape[1]) >= 64
    ):
        return False
    if is_channels_last(input, weight):
        return all(t.is_contiguous(memory_format=torch.channels_last) for t in (input, grad))
    return weight.numel() >= 3_000_000


def _reads_beyond(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether oneDNN's bfloat16 weight gradient takes memory into account that is not its own: of a
    picture of fewer columns than a stride, and of a map of one pixel, where the stride exceeds the
    kernel (torch 2.13; NaN where there is NaN).
    """
    low, high = (input, grad) if geometry.transposed else (grad, input)
    within_a_stride = high.shape[3] < geometry.stride[1]
    one_pixel = low.shape[2] * low.shape[3] == 1
    return (
        input.dtype == torch.bfloat16
        and input.device.type == "cpu"
        and (
            within_a_stride
            or (
                one_pixel
                and any(s > k for s, k in zip(geometry.stride, weight.shape[2:], strict=True))
            )
        )
    )


WAYS: dict[str, Callable[..., Way]] = {
    "forward": _forward_way,
    "masked_forward": _masked_forward_way,
    "input_gradient": _input_gradient_way,
    "weight_gradient": _weight_gradient_way,
}
"""By pass, from its arguments: what computes it for all calls alike."""
PASSES: dict[str, Way] = {
    "forward": forward,
    "masked_forward": masked_forward,
    "input_gradient": input_gradient,
    "weight_gradient": weight_gradient,
}
