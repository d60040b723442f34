"""The kernels of backend "torch": plain PyTorch operators, on every device, without autograd.

On a CPU the forward convolution goes through oneDNN's convolution with a leaky-ReLU
post-operation, which has no autograd of its own and so stands inside our Functions; where it does
not support the case, the convolution is followed by an epilogue in place.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend, phases, routing
from .convolution import Activation
from .geometry import Geometry, is_channels_last
from .gradients import channel_sum
from .philox import normal

# `torch.ops.aten` takes longer over a call than PyTorch's own bindings, which stand here where they
# exist.
aten = torch.ops.aten


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
        not torch.compiler.is_compiling()
        and input.device.type == "cpu"
        and input.dtype in _onednn_dtypes()
        and input.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
    )


def activate_(output: Tensor, activation: Activation) -> Tensor:
    """The activation in place; a slope of 1 is linear and costs nothing.

    Not in place while a graph is traced: there it gains nothing, and torch 2.11 gets the gradients
    of a Function wrong (all zero) whose forward changes a tensor in place.
    """
    if activation == 1:
        return output
    if activation == "tanh":
        return torch.tanh(output) if torch.compiler.is_compiling() else output.tanh_()
    if torch.compiler.is_compiling():
        traced: Tensor = aten.leaky_relu(output, activation)
        return traced
    return F.leaky_relu_(output, activation)


def _per_channel(vector: Tensor, tensor: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (tensor.dim() - 2))


def mask(grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float) -> Tensor:
    """`(grad + shift) * (1 if output > 0 else negative_slope)` in the layout of `output`."""
    if shift is not None:
        grad = grad + _per_channel(shift, grad)
    if grad.stride() == output.stride() or torch.compiler.is_compiling():
        result: Tensor = aten.leaky_relu_backward.default(grad, output, negative_slope, True)
        return result
    # A gradient that arrives in another layout (behind a flatten, say) takes ours in this very
    # pass.
    result = torch.empty_like(output)
    aten.leaky_relu_backward.grad_input(grad, output, negative_slope, True, grad_input=result)
    return result


def mask_(fresh: Tensor, output: Tensor, negative_slope: float) -> Tensor:
    """The mask in place, on a tensor that nobody else holds; out of place as in `activate_`."""
    if torch.compiler.is_compiling() or fresh.stride() != output.stride():
        return mask(fresh, None, output, negative_slope)
    aten.leaky_relu_backward.grad_input(fresh, output, negative_slope, True, grad_input=fresh)
    return fresh


class TorchMask:
    """The mask, alone and with the gradient of a bias."""

    mask = staticmethod(mask)

    @staticmethod
    def mask_sum(grad: Tensor, output: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
        through = mask(grad, None, output, negative_slope)
        return through, channel_sum(through)


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
        return product.view(-1, *kernel, channels).permute(0, 3, 1, 2)
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(places, -1)
    product = grad.transpose(0, 1).reshape(-1, places) @ rows
    return product.view(-1, channels, *kernel)


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
    picture of one column, where the stride leaves columns out, and of a map of one pixel, where
    the stride exceeds the kernel (torch 2.13; NaN where there is NaN).
    """
    low, high = (input, grad) if geometry.transposed else (grad, input)
    one_column = high.shape[3] == 1 and geometry.stride[1] > 1
    one_pixel = low.shape[2] * low.shape[3] == 1
    return (
        input.dtype == torch.bfloat16
        and input.device.type == "cpu"
        and (
            one_column
            or (
                one_pixel
                and any(s > k for s, k in zip(geometry.stride, weight.shape[2:], strict=True))
            )
        )
    )


class TorchConvolution(TorchMask):
    """Convolution and transposed convolution by `aten::convolution` and
    `aten::convolution_backward`.
    """

    known: ClassVar[dict[Hashable, type[TorchConvolution]]] = {}

    @classmethod
    def narrowed(cls) -> type[TorchConvolution]:
        """The same: nothing here depends on what came before."""
        return cls

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> Tensor:
        stride, padding, dilation, groups, transposed, output_padding = geometry
        # oneDNN has no transposed convolution with an output padding of a stride or more.
        within_stride = output_padding[0] < stride[0] and output_padding[1] < stride[1]
        if not _onednn_takes(input) or not within_stride:
            output = torch.convolution(
                input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
            )
            return activate_(output, activation)

        # oneDNN takes a bias for dense without looking at its stride.
        bias = None if bias is None else bias.contiguous()
        # Its leaky ReLU of slope 0 turns NaN into 0, so ReLU is a pass of its own (2 % of a 3x3
        # layer of 64 channels).
        none: tuple[str, list[float], str] = ("none", [], "")
        post = {1: none, 0: none, "tanh": ("tanh", [], "")}.get(
            activation, ("leaky_relu", [activation], "")
        )
        if not transposed:
            fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
                input, weight, bias, padding, stride, dilation, groups, *post
            )
            return activate_(fused, activation) if activation == 0 else fused
        size = geometry.transposed_size(input, weight)
        if phases.fits(weight, size, _size(input), stride, padding, dilation, groups):
            return activate_(_by_phases(input, weight, bias, geometry), activation)
        fused = torch.ops.mkldnn._convolution_transpose_pointwise(
            input, weight, bias, padding, output_padding, stride, dilation, groups, *post
        )
        return activate_(fused, activation) if activation == 0 else fused

    @classmethod
    def masked_forward(
        cls,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        negative_slope: float,
        geometry: Geometry,
    ) -> Tensor:
        return mask_(cls.forward(input, weight, bias, 1.0, geometry), output, negative_slope)

    @staticmethod
    def input_gradient(
        grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
    ) -> Tensor:
        # By the convolution in the other direction: aten::convolution_backward would want an input
        # of the right shape and layout for nothing but its metadata.
        stride, padding, dilation, groups, transposed, _ = geometry
        if transposed:
            result: Tensor = torch.convolution(
                grad, weight, None, stride, padding, dilation, False, [0, 0], groups
            )
            # An output padding of a stride or more (allowed below the dilation) adds rows that no
            # input has.
            return result[:, :, : size[0], : size[1]] if _size(result) != size else result

        if _onednn_takes(grad) and phases.fits(
            weight, size, _size(grad), stride, padding, dilation, groups
        ):
            return _by_phases(grad, weight, None, geometry)
        smallest = geometry.transposed_size(grad, weight)
        missing = [size[0] - smallest[0], size[1] - smallest[1]]
        result = torch.convolution(
            grad, weight, None, stride, padding, dilation, True, missing, groups
        )
        return result

    @staticmethod
    def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        if _product_gains(input, grad, weight, geometry):
            return weight_gradient_by_product(input, grad, weight, geometry)
        if _reads_beyond(input, grad, weight, geometry):
            wide = TorchConvolution.weight_gradient(
                input.float(), grad.float(), weight.float(), geometry
            )
            return wide.to(weight.dtype)
        stride, padding, dilation, groups, transposed, output_padding = geometry
        result: Tensor = aten.convolution_backward.default(
            grad,
            input,
            weight,
            None,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            groups,
            [False, True, False],
        )[1]
        return result


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[2], tensor.shape[3]


def _by_phases(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The transposed convolution of a shape that `phases.fits`."""
    step, padding = geometry.stride[0], geometry.padding
    channels_last = is_channels_last(input, weight)
    dense = phases.phase_weight(weight, step, padding, channels_last=channels_last)
    if bias is not None:
        bias = bias.repeat(step * step) if channels_last else bias.repeat_interleave(step * step)
    crop = phases.phase_padding(weight, step, padding)
    result = torch.convolution(input, dense, bias, [1, 1], crop, [1, 1], True, [0, 0], 1)
    return phases.shuffle(result, step, channels_last=channels_last)


class TorchBiasLeakyReLU(TorchMask):
    """Bias and leaky ReLU: one addition and one pass in place."""

    @staticmethod
    def forward(input: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
        if bias is None:
            output: Tensor = (
                aten.leaky_relu(input, negative_slope) if negative_slope != 1 else input.clone()
            )
            return output
        return activate_(input + _per_channel(bias, input), negative_slope)


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """The values in the dtype and layout of `tensor`."""
    if torch.compiler.is_compiling():  # not in place, as above; the compiler sets the layout
        # A conversion that changes nothing returns its input, which torch 2.11 gets wrong as well.
        return values if values.dtype == tensor.dtype else values.to(tensor.dtype)
    return torch.empty_like(tensor).copy_(values)


class TorchReparameterize:
    """Philox by PyTorch's integer operators; the arithmetic in float32 (float64 for float64),
    rounded once.
    """

    @staticmethod
    def scaled_noise(scale: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        wide = torch.promote_types(logvar.dtype, torch.float32)
        noise = torch.exp(logvar.to(wide) / 2) * normal(logvar.shape, seed)
        return _like(logvar, noise * scale)

    @staticmethod
    def forward(mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        wide = torch.promote_types(mu.dtype, torch.float32)
        z = torch.exp(logvar.to(wide) / 2) * normal(mu.shape, seed)
        return _like(mu, z + mu)

    @classmethod
    def forward_kl(cls, mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(mu.dtype, torch.float32)
        wide_mu, wide_logvar = mu.to(wide), logvar.to(wide)
        # expm1(l) - l keeps its digits where l is small; exp(l) - 1 - l loses them all.
        terms = wide_mu.square() + (torch.expm1(wide_logvar) - wide_logvar)
        return cls.forward(mu, logvar, seed), terms.flatten(1).sum(
            1
        ) / 2 if mu.dim() > 1 else terms / 2

    @staticmethod
    def backward(
        grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(mu.dtype, torch.float32)
        grad_mu = None if grad_z is None else grad_z.to(wide)
        grad_logvar = None
        if grad_z is not None:
            noise = torch.exp(logvar.to(wide) / 2) * normal(logvar.shape, seed)
            grad_logvar = noise.mul_(grad_z).div_(2)
        if grad_kl is not None:
            per_sample = grad_kl.view(-1, *[1] * (mu.dim() - 1))
            through_mu = per_sample * mu
            growth = torch.expm1(logvar.to(wide)).mul_(per_sample).div_(2)
            grad_mu = through_mu if grad_mu is None else through_mu.add_(grad_mu)
            grad_logvar = growth if grad_logvar is None else growth.add_(grad_logvar)
        assert grad_mu is not None
        assert grad_logvar is not None
        return _like(mu, grad_mu), _like(logvar, grad_logvar)


KERNELS = {
    "bias_leaky_relu": TorchBiasLeakyReLU,
    "conv2d_bias_leaky_relu": TorchConvolution,
    "conv_transpose2d_bias_leaky_relu": TorchConvolution,
    "reparameterize": TorchReparameterize,
}
for _operation, _kernels in KERNELS.items():
    backend.register(_operation, "torch", _kernels)
    for _pass in routing.PASSES[_operation]:
        routing.offer("plain PyTorch", ["torch"], [_operation], [_pass], getattr(_kernels, _pass))
