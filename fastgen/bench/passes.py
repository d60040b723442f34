"""The passes of each operation as benchmarks time them: arguments, PyTorch's way, fastgen's, work.

A forward or a backward alone is timed beneath autograd, "forward + backward" through it. Work is
the least: every input read once, every output written once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen import ops
from fastgen.ops.backend import select
from fastgen.ops.geometry import Geometry

from . import peers
from .layers import Layer
from .work import Work

BOTH = "forward + backward"
SLOPE = 0.2

Function = Callable[..., Any]


class Pass(NamedTuple):
    """One pass of an operation on tensors of one shape.

    Attributes:
        name: "forward", "backward", "input gradient", "weight gradient" or "forward + backward".
        work: operations and numbers moved.
        make: from (dtype, device, layout) to fresh random arguments.
        eager: PyTorch's way, on those arguments.
        fastgen: from (backend, device) to fastgen's way; raises `BackendUnavailable`.
        compares: whether both sides return the same (noise is drawn by different generators).
    """

    name: str
    work: Work
    make: Callable[[torch.dtype, torch.device, torch.memory_format], tuple[Tensor, ...]]
    eager: Function
    fastgen: Callable[[str, torch.device], Function]
    compares: bool = True


def without_autograd(function: Function) -> Function:
    """The function under `torch.no_grad`."""

    def call(*arguments: Any) -> Any:
        with torch.no_grad():
            return function(*arguments)

    return call


# --- convolutions ---


def layer_pass(layer: Layer, name: str) -> Pass:
    """A pass of a convolution with bias and activation; gradients alone are the linear part's."""
    operation = f"{'conv_transpose2d' if layer.transposed else 'conv2d'}_bias_leaky_relu"
    geometry = Geometry(
        (layer.stride,) * 2, (layer.padding,) * 2, (1, 1), layer.groups, layer.transposed, (0, 0)
    )  # fmt: skip
    size = (layer.size, layer.size)

    def make(
        dtype: torch.dtype, device: torch.device, layout: torch.memory_format
    ) -> tuple[Tensor, ...]:
        tensors = peers.layer_tensors(layer, dtype, device, gradients=name == BOTH, layout=layout)
        return tensors[:3] if name == "forward" else tensors

    def forward(backend: str, device: torch.device) -> Function:
        select(operation, backend, device)
        return without_autograd(peers.fastgen_layer(layer, backend))

    def input_gradient(backend: str, device: torch.device) -> Function:
        kernels = select(operation, backend, device)
        return lambda x, w, b, g: kernels.input_gradient(g, w, size, geometry)

    def weight_gradient(backend: str, device: torch.device) -> Function:
        kernels = select(operation, backend, device)
        return lambda x, w, b, g: kernels.weight_gradient(x, g, w, geometry)

    def both(backend: str, device: torch.device) -> Function:
        select(operation, backend, device)
        return peers.training_step(peers.fastgen_layer(layer, backend))

    eager = peers.eager_layer(layer)
    once = Work(layer.operations, layer.forward_numbers)
    thrice = Work(3 * layer.operations, layer.training_numbers)
    return {
        "forward": Pass(name, once, make, without_autograd(eager), forward),
        "input gradient": Pass(name, once, make, peers.eager_gradient(layer, 0), input_gradient),
        "weight gradient": Pass(name, once, make, peers.eager_gradient(layer, 1), weight_gradient),
        BOTH: Pass(name, thrice, make, peers.training_step(eager), both),
    }[name]


# --- bias + leaky ReLU ---


def bias_leaky_relu_pass(shape: tuple[int, ...], name: str) -> Pass:
    """A pass over a map (N, C, H, W); "backward" gives the gradients of input and bias."""

    def drawn(
        dtype: torch.dtype, device: torch.device, layout: torch.memory_format, count: int
    ) -> list[Tensor]:
        maps = (torch.randn(shape, device=device, dtype=dtype) for _ in range(count))
        return [each.contiguous(memory_format=layout) for each in maps]

    def make(
        dtype: torch.dtype, device: torch.device, layout: torch.memory_format
    ) -> tuple[Tensor, ...]:
        if name == "backward":
            return tuple(drawn(dtype, device, layout, 2))
        x, g = drawn(dtype, device, layout, 2)
        bias = torch.randn(shape[1], device=device, dtype=dtype)
        if name == "forward":
            return x, bias
        return x.requires_grad_(), bias.requires_grad_(), g

    def kernels(method: str) -> Callable[[str, torch.device], Function]:
        def of(backend: str, device: torch.device) -> Function:
            run = getattr(select("bias_leaky_relu", backend, device), method)
            return lambda first, second: run(first, second, SLOPE)

        return of

    def both(backend: str, device: torch.device) -> Function:
        select("bias_leaky_relu", backend, device)

        def step(x: Tensor, b: Tensor, g: Tensor) -> Any:
            y = ops.bias_leaky_relu(x, b, SLOPE, backend=backend)
            return torch.autograd.grad(y, (x, b), g)

        return step

    def eager_both(x: Tensor, b: Tensor, g: Tensor) -> Any:
        return torch.autograd.grad(peers.bias_leaky_relu(x, b, SLOPE), (x, b), g)

    numbers = prod(shape)
    return {
        "forward": Pass(
            name, Work(0, 2 * numbers), make, lambda x, b: peers.bias_leaky_relu(x, b, SLOPE),
            kernels("forward"),
        ),
        "backward": Pass(
            name, Work(0, 3 * numbers), make,
            lambda g, y: peers.bias_leaky_relu_backward(g, y, SLOPE), kernels("mask_sum"),
        ),
        BOTH: Pass(name, Work(0, 5 * numbers), make, eager_both, both),
    }[name]  # fmt: skip


# --- reparameterization with the divergence ---


def reparameterize_pass(shape: tuple[int, ...], name: str) -> Pass:
    """A pass of `reparameterize_kl` over latents of this shape; eager draws by `randn_like`, and
    its backward alone is given the noise.
    """

    def make(
        dtype: torch.dtype, device: torch.device, layout: torch.memory_format
    ) -> tuple[Tensor, ...]:
        mu, logvar, gz, eps = (torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
        gkl = torch.randn(shape[0], device=device)
        seed = torch.tensor(7, device=device)
        if name == "forward":
            return mu, logvar, seed
        if name == "backward":
            return gz, gkl, mu, logvar, seed, eps
        return mu.requires_grad_(), logvar.requires_grad_(), gz, gkl

    def forward(backend: str, device: torch.device) -> Function:
        run: Function = select("reparameterize", backend, device).forward_kl
        return run

    def backward(backend: str, device: torch.device) -> Function:
        run = select("reparameterize", backend, device).backward
        return lambda gz, gkl, mu, logvar, seed, eps: run(gz, gkl, mu, logvar, seed)

    def both(backend: str, device: torch.device) -> Function:
        select("reparameterize", backend, device)

        def step(mu: Tensor, logvar: Tensor, gz: Tensor, gkl: Tensor) -> Any:
            pair = ops.reparameterize_kl(mu, logvar, backend=backend)
            return torch.autograd.grad(pair, (mu, logvar), (gz, gkl))

        return step

    def eager_both(mu: Tensor, logvar: Tensor, gz: Tensor, gkl: Tensor) -> Any:
        return torch.autograd.grad(peers.reparameterize_kl(mu, logvar), (mu, logvar), (gz, gkl))

    def eager_backward(
        gz: Tensor, gkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, eps: Tensor
    ) -> Any:
        return peers.reparameterize_kl_backward(gz, gkl, mu, logvar, eps)

    numbers = prod(shape)
    return {
        "forward": Pass(
            name, Work(0, 3 * numbers), make,
            lambda mu, logvar, seed: peers.reparameterize_kl(mu, logvar), forward, False,
        ),
        "backward": Pass(name, Work(0, 5 * numbers), make, eager_backward, backward, False),
        BOTH: Pass(name, Work(0, 8 * numbers), make, eager_both, both, False),
    }[name]  # fmt: skip
