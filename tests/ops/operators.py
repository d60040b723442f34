"""What the operators of namespace `fastgen` (and `fastgen_triton`) promise, in plain PyTorch.

Stands in for a compiled namespace where there is no device for it, and is as strict about memory
orders as the compiled one. Only the adapters above are under test with it, never a kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastgen.ops.layouts import is_dense, same_order
from fastgen.ops.philox import normal


def _channels(vector, tensor):
    if vector is None:
        return 0.0
    assert vector.is_contiguous()
    assert vector.dtype == tensor.dtype
    return vector.view(-1, *[1] * (tensor.dim() - 2))


def _rows(tensor):
    """Whether each sample is contiguous."""
    return tensor[0].is_contiguous() if len(tensor) else True


def bias_leaky_relu(input, bias, negative_slope):
    assert is_dense(input)
    return F.leaky_relu(input + _channels(bias, input), negative_slope)


def bias_leaky_relu_(input, bias, negative_slope):
    input.copy_(bias_leaky_relu(input, bias, negative_slope))


def leaky_relu_mask(grad, shift, output, negative_slope):
    assert is_dense(output)
    assert same_order(grad, output)
    shifted = grad + _channels(shift, grad)
    return torch.where(output > 0, shifted, shifted * negative_slope)


def leaky_relu_mask_(grad, shift, output, negative_slope):
    grad.copy_(leaky_relu_mask(grad, shift, output, negative_slope))


def leaky_relu_mask_sum(grad, shift, output, negative_slope):
    masked = leaky_relu_mask(grad, shift, output, negative_slope)
    return masked, masked.sum([d for d in range(grad.dim()) if d != 1])


def _noise(logvar, seed):
    return torch.exp(logvar / 2) * normal(logvar.shape, seed).to(logvar.dtype)


def _check(mu, logvar):
    orders = (_rows(mu) and _rows(logvar), same_order(mu, logvar) and is_dense(mu))
    assert any(orders), (mu.stride(), logvar.stride())


def reparameterize(mu, logvar, seed):
    _check(mu, logvar)
    return mu + _noise(logvar, seed)


def reparameterize_kl(mu, logvar, seed):
    terms = mu.square() + (torch.expm1(logvar) - logvar)
    return reparameterize(mu, logvar, seed), terms.flatten(1).sum(1) / 2


def scaled_noise(scale, logvar, seed):
    _check(logvar, scale)
    return scale * _noise(logvar, seed)


def reparameterize_backward(grad_z, grad_kl, mu, logvar, seed):
    _check(mu, logvar)
    grad_mu, grad_logvar = torch.zeros_like(mu), torch.zeros_like(mu)
    if grad_z is not None:
        _check(mu, grad_z)
        grad_mu = grad_mu + grad_z
        grad_logvar = grad_logvar + grad_z * _noise(logvar, seed) / 2
    if grad_kl is not None:
        per_sample = grad_kl.view(-1, *[1] * (mu.dim() - 1))
        grad_mu = grad_mu + per_sample * mu
        grad_logvar = grad_logvar + per_sample * torch.expm1(logvar) / 2
    return grad_mu, grad_logvar


def _picture(tensor, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return tensor.contiguous(memory_format=layout)


def image_edge_conv2d(
    input, weight, bias, output, negative_slope, *geometry_layout_and_tf32
):  # fmt: skip
    *geometry, channels_last, _ = geometry_layout_and_tf32
    assert 1 <= input.shape[1] == weight.shape[1] <= 4
    assert bias is None or bias.is_contiguous()
    y = F.conv2d(input, weight, bias, geometry[:2], geometry[2:])
    if output is not None:
        assert (
            output.is_contiguous(memory_format=torch.channels_last)
            if channels_last
            else (output.is_contiguous())
        )
        y = torch.where(output > 0, y, y * negative_slope)
    else:
        y = F.leaky_relu(y, negative_slope)
    return _picture(y, channels_last)


def image_edge_conv2d_weight_gradient(
    input, grad, kernel_h, kernel_w, *geometry_layout_and_tf32
):  # fmt: skip
    *geometry, channels_last, _ = geometry_layout_and_tf32
    assert 1 <= input.shape[1] <= 4
    assert grad.is_contiguous(memory_format=torch.channels_last)
    stride, padding, kernel = geometry[:2], geometry[2:], (kernel_h, kernel_w)
    low = [
        (size + 2 * p - k) // s + 1
        for size, p, k, s in zip(input.shape[2:], padding, kernel, stride, strict=True)
    ]
    assert tuple(grad.shape) == (len(input), grad.shape[1], *low)
    shape = (grad.shape[1], input.shape[1], *kernel)
    gradient = torch.nn.grad.conv2d_weight(input, shape, grad, stride, padding)
    return _picture(gradient, channels_last)


def image_edge_conv_transpose2d(
    input, weight, bias, negative_slope, tanh, *geometry_size_layout_and_tf32
):
    *geometry, height, width, channels_last, _ = geometry_size_layout_and_tf32
    assert is_dense(input)
    assert 1 <= weight.shape[1] <= 4
    strides, paddings = geometry[:2], geometry[2:]
    smallest = F.conv_transpose2d(input, weight, bias, strides, paddings).shape[2:]
    added = [height - smallest[0], width - smallest[1]]
    assert all(0 <= a < s for a, s in zip(added, strides, strict=True))
    y = F.conv_transpose2d(input, weight, bias, strides, paddings, added)
    return _picture(y.tanh() if tanh else F.leaky_relu(y, negative_slope), channels_last)
