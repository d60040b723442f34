"""Transposed convolution + bias + leaky ReLU as one differentiable operation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import backend as backends
from . import checks, reference
from .convolution import Activation
from .geometry import Geometry, autocast
from .layer_calls import layer, recalled


def conv_transpose2d_bias_leaky_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    negative_slope: float = 0.2,
    *,
    tanh: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Two-dimensional transposed convolution, bias and leaky ReLU in one operation.

    .. math:: y_{n k u v} = \mathrm{leakyReLU}\Big(
        \sum_{c, p, q, i, j:\ s p + d i - P = u,\ s q + d j - P = v}
        w_{c k i j}\, x_{n c p q} + b_k\Big)

    The arguments are those of :func:`torch.nn.functional.conv_transpose2d`, in its order (groups
    before dilation); the result is that of ``leaky_relu(conv_transpose2d(...), negative_slope)``.

    Args:
        input: shape (N, C, H, W) or (C, H, W); float32, bfloat16, float16 or float64. N may be 0.
        weight: shape (C, K / groups, kernel height, kernel width), dtype and device of `input`.
        bias: shape (K,) or None.
        stride, dilation: at least 1; an integer or a pair (vertical, horizontal).
        padding: at least 0; how much of each border of the full result is cut off.
        output_padding: at least 0 and below the stride or the dilation; rows and columns added at
            the end.
        groups: divides C and K.
        negative_slope: in [0, 1]; 0 is ReLU, 1 is a transposed convolution without activation.
        tanh: the hyperbolic tangent in place of leaky ReLU, for the end of a generator; then
            `negative_slope` plays no part. Its derivative 1 - y^2 is taken at every order.
        backend: ``"auto"`` or the name of a backend (see :func:`fastgen.backend`).

    Returns:
        shape (N, K, H', W') with
        H' = (H - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1,
        in channels_last if the input or the weight is, else contiguous.

    Under autocast the tensors are cast to autocast's dtype, as in PyTorch; float64 is left alone.

    **Gradients** of any order with respect to input, weight and bias; what is saved for backward
    and which gradients stay undefined is as in :func:`conv2d_bias_leaky_relu`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and what is allowed.
        BackendUnavailable: the backend named cannot run here.

    Example::

        x = fastgen.ops.conv_transpose2d_bias_leaky_relu(h, weight, bias, stride=2, padding=1)
    """
    checks.floating_tensor("input", input)
    input, weight, bias = autocast(input, weight, bias)
    kernels = backends.select("conv_transpose2d_bias_leaky_relu", backend, input.device)
    arguments = stride, padding, output_padding, groups, dilation, negative_slope, tanh
    call = recalled(kernels, arguments, input, weight, bias)
    if call is not None:
        return call(input, weight, bias)

    slope = checks.slope(negative_slope)
    rest = stride, padding, output_padding, groups, dilation, slope
    if backends.is_composed(backend, input, weight, bias):
        return reference.conv_transpose2d_bias_leaky_relu(input, weight, bias, *rest, tanh=tanh)
    if input.dim() == 3:
        batched = conv_transpose2d_bias_leaky_relu(
            input.unsqueeze(0), weight, bias, *rest, tanh=tanh, backend=backend
        )
        return batched.squeeze(0)

    groups = checks.at_least("groups", groups, 1)
    strides = checks.pair("stride", stride, least=1)
    dilations = checks.pair("dilation", dilation, least=1)
    output_paddings = checks.pair("output_padding", output_padding, least=0)
    if output_paddings != (0, 0):
        for added, step, spread in zip(output_paddings, strides, dilations, strict=True):
            if added >= max(step, spread):
                raise ValueError(
                    f"output_padding must be below the stride or the dilation (got output_padding "
                    f"{output_paddings}, stride {strides}, dilation {dilations})"
                )
    paddings = checks.pair("padding", padding, least=0)
    geometry = Geometry(strides, paddings, dilations, groups, True, output_paddings)
    activation: Activation = "tanh" if tanh else slope
    return layer(input, weight, bias, activation, geometry, kernels, arguments)
