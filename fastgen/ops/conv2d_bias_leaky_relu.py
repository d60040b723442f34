"""Convolution + bias + leaky ReLU as one differentiable operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from . import backend as backends
from . import checks, reference
from .geometry import Geometry, autocast
from .layer_calls import layer, recalled


def conv2d_bias_leaky_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    negative_slope: float = 0.2,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""Two-dimensional convolution, bias and leaky ReLU in one operation.

    .. math:: y_{n k p q} = \mathrm{leakyReLU}\Big(
        \sum_{c, i, j} w_{k c i j}\, x_{n, c, s p + d i - P, s q + d j - P} + b_k\Big)

    The arguments are those of :func:`torch.nn.functional.conv2d`; the result is that of
    ``leaky_relu(conv2d(...), negative_slope)``.

    Args:
        input: shape (N, C, H, W) or (C, H, W); float32, bfloat16, float16 or float64. N may be 0.
        weight: shape (K, C / groups, kernel height, kernel width), dtype and device of `input`.
        bias: shape (K,) or None.
        stride, dilation: at least 1; an integer or a pair (vertical, horizontal).
        padding: at least 0; an integer, a pair, ``"valid"`` or (at stride 1) ``"same"``.
        groups: divides C and K.
        negative_slope: in [0, 1]; 0 is ReLU, 1 is a convolution without activation.
        backend: ``"auto"`` or the name of a backend (see :func:`fastgen.backend`).

    Returns:
        shape (N, K, H', W'), in channels_last if the input or the weight is, else contiguous.

    Under autocast the tensors are cast to autocast's dtype, as in PyTorch; float64 is left alone.

    **Gradients** of any order with respect to input, weight and bias. Saved for backward: input
    (only where the weight needs a gradient), weight and output (not at slope 1); the input is the
    output of the layer before, so a chain of layers keeps each activation once. No derivative of
    the activation's mask is taken: it is 0 almost everywhere, so what depends on a tensor through
    the mask alone (a bias in a gradient penalty) gets no gradient (``None``) where PyTorch makes a
    tensor of zeros. `torch.autograd.grad` wants ``allow_unused=True`` for such a tensor.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and what is allowed.
        BackendUnavailable: the backend named cannot run here.

    Example::

        h = fastgen.ops.conv2d_bias_leaky_relu(images, weight, bias, stride=2, padding=1)
    """
    checks.floating_tensor("input", input)
    input, weight, bias = autocast(input, weight, bias)
    kernels = backends.select("conv2d_bias_leaky_relu", backend, input.device)
    arguments = stride, padding, dilation, groups, negative_slope
    call = recalled(kernels, arguments, input, weight, bias)
    if call is not None:
        return call(input, weight, bias)

    slope = checks.slope(negative_slope)
    rest = stride, padding, dilation, groups, slope
    if backends.is_composed(backend, input, weight, bias):
        return reference.conv2d_bias_leaky_relu(input, weight, bias, *rest)
    if input.dim() == 3:
        batched = conv2d_bias_leaky_relu(input.unsqueeze(0), weight, bias, *rest, backend=backend)
        return batched.squeeze(0)

    groups = checks.at_least("groups", groups, 1)
    strides = checks.pair("stride", stride, least=1)
    dilations = checks.pair("dilation", dilation, least=1)
    padded = input
    if isinstance(padding, str):
        padded, paddings = _named_padding(input, weight, padding, strides, dilations)
    else:
        paddings = checks.pair("padding", padding, least=0)
    geometry = Geometry(strides, paddings, dilations, groups, False, (0, 0))
    said = arguments if padded is input else None
    return layer(padded, weight, bias, slope, geometry, kernels, said)


def _named_padding(
    input: Tensor, weight: Tensor, padding: str, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The input and the padding per side that ``"valid"`` and ``"same"`` stand for.

    An even kernel needs one row or column more behind than before: that one is padded here.
    """
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f"padding must be an integer, a pair, 'valid' or 'same' (got {padding!r})")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1 (got {stride})")
    total = [dilation[axis] * (weight.shape[2 + axis] - 1) for axis in (0, 1)]
    if total[0] % 2 or total[1] % 2:
        input = F.pad(input, [0, total[1] % 2, 0, total[0] % 2])
    return input, (total[0] // 2, total[1] // 2)
