"""What fastgen is measured against: PyTorch as a careful user writes it.

channels_last tensors, LeakyReLU in place, `cudnn.benchmark` on, fused Adam; eagerly, through
torch.compile in its modes, and (where it is installed) JAX, see jax_peer.py. Every function
computes what fastgen's counterpart computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen.nn
from fastgen import ops

from .layers import Layer

aten = torch.ops.aten
LayerFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
COMPILE_MODES = {
    "compile": None,
    "compile max-autotune": "max-autotune-no-cudagraphs",
    "compile reduce-overhead": "reduce-overhead",
}
"""torch.compile's modes by the names in results. The clock replays layers from a CUDA graph, so
max-autotune leaves its own graphs out there; steps take reduce-overhead, which has them."""


@contextmanager
def settings() -> Iterator[None]:
    """PyTorch's switches as every candidate is measured with: cuDNN tries its algorithms, float32
    convolutions may use TF32 (both are what training scripts set; fastgen's kernels obey them too).
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    cudnn.benchmark = True
    cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]


# --- layers ---


def layer_tensors(
    layer: Layer,
    dtype: torch.dtype,
    device: torch.device,
    *,
    gradients: bool = True,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random input, weight, bias and gradient of the output."""
    shapes = layer.input_shape, layer.weight_shape, (layer.outputs,), layer.output_shape
    drawn = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    drawn[1] /= max(1, layer.weight_shape[1] * layer.kernel**2) ** 0.5
    # Into fresh memory: what has one channel would keep the strides of the other layout.
    x, w, b, g = (
        torch.empty_like(t, memory_format=layout).copy_(t) if t.dim() == 4 else t for t in drawn
    )
    for leaf in (x, w, b):
        leaf.requires_grad_(gradients)
    return x, w, b, g


def eager_layer(layer: Layer) -> LayerFunction:
    """Convolution, which adds its bias in a kernel of its own, then the activation in place."""

    def eager(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if layer.transposed:
            y = F.conv_transpose2d(x, w, b, layer.stride, layer.padding, 0, layer.groups)
        else:
            y = F.conv2d(x, w, b, layer.stride, layer.padding, 1, layer.groups)
        if layer.tanh:
            return y.tanh_()
        return y if layer.negative_slope == 1 else F.leaky_relu_(y, layer.negative_slope)

    return eager


def fastgen_layer(layer: Layer, backend: str = "auto") -> LayerFunction:
    """The layer as one operation of fastgen."""

    def transposed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.conv_transpose2d_bias_leaky_relu(
            x, w, b, layer.stride, layer.padding, 0, layer.groups, 1, layer.negative_slope,
            tanh=layer.tanh, backend=backend,
        )  # fmt: skip

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.conv2d_bias_leaky_relu(
            x, w, b, layer.stride, layer.padding, 1, layer.groups, layer.negative_slope,
            backend=backend,
        )  # fmt: skip

    return transposed if layer.transposed else plain


def compiled(function: Callable[..., Any], name: str = "compile") -> Callable[..., Any]:
    """The function through torch.compile, in the mode of this name, without a graph break.

    Call `torch.compiler.reset()` between things that are measured: closures of one source share a
    budget of recompilations, beyond which torch.compile silently stays eager.
    """
    return torch.compile(function, fullgraph=True, dynamic=False, mode=COMPILE_MODES[name])


def training_step(function: LayerFunction) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward with all three gradients; takes (x, w, b, grad_output)."""

    def step(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, w, b), (x, w, b), g)

    return step


def eager_gradient(layer: Layer, which: int) -> Callable[..., Tensor]:
    """The gradient of the linear part in its input (0) or weight (1): takes (x, w, b, g)."""
    mask = [which == 0, which == 1, False]

    def gradient(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Tensor:
        result: Tensor = aten.convolution_backward(
            g, x, w, None, [layer.stride] * 2, [layer.padding] * 2, [1, 1], layer.transposed,
            [0, 0], layer.groups, mask,
        )[which]  # fmt: skip
        return result

    return gradient


# --- elementwise operations, forward and backward apart ---


def bias_leaky_relu(x: Tensor, b: Tensor, slope: float) -> Tensor:
    return F.leaky_relu_(x + b.view(-1, *[1] * (x.dim() - 2)), slope)


def bias_leaky_relu_backward(g: Tensor, y: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The gradients of input and bias from the output y."""
    through = aten.leaky_relu_backward(g, y, slope, True)
    return through, through.sum([d for d in range(g.dim()) if d != 1])


def reparameterize_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    wide_mu, wide = mu.float(), logvar.float()
    return z, (wide_mu.square() + wide.exp() - 1 - wide).flatten(1).sum(1) / 2


def reparameterize_kl_backward(
    gz: Tensor, gkl: Tensor, mu: Tensor, logvar: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of mu and logvar; eps was stored by the forward."""
    per_sample = gkl.view(-1, *[1] * (mu.dim() - 1))
    grad_mu = gz + per_sample * mu
    grad_logvar = gz * eps * torch.exp(logvar / 2) / 2 + per_sample * (logvar.exp() - 1) / 2
    return grad_mu.to(mu.dtype), grad_logvar.to(mu.dtype)


# --- networks and the losses of whole steps ---

FUSED = (
    fastgen.nn.ConvLeakyReLU2d,
    fastgen.nn.ConvTransposeLeakyReLU2d,
    fastgen.nn.LinearLeakyReLU,
)


def plain(network: nn.Module) -> nn.Module:
    """A copy of a network, with its weights, from torch.nn layers and LeakyReLU in place."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FUSED):
                setattr(module, name, child.to_torch())
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = True
    return network


def discriminator_loss(D: nn.Module, G: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    with torch.no_grad():
        fake = G(z)
    return F.softplus(-D(x).float()).mean() + F.softplus(D(fake).float()).mean()


def generator_loss(D: nn.Module, G: nn.Module, z: Tensor) -> Tensor:
    return F.softplus(-D(G(z)).float()).mean()


def critic_loss(f: nn.Module, G: nn.Module, x: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """WGAN-GP's critic: minus the gap, plus 10 times the penalty between x and G(z)."""
    return critic_loss_at(f, x, *critic_images(G, x, z, u))


def critic_images(G: nn.Module, x: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """G(z), and the images between it and x at which the penalty is taken."""
    with torch.no_grad():
        fake = G(z).to(x.dtype)
    return fake, torch.lerp(fake, x, u).requires_grad_()


def critic_loss_at(f: nn.Module, x: Tensor, fake: Tensor, between: Tensor) -> Tensor:
    """The critic's loss once the images are drawn: the part that differentiates twice."""
    (slope,) = torch.autograd.grad(f(between).float().sum(), between, create_graph=True)
    penalty = (slope.flatten(1).float().norm(dim=1) - 1).square().mean()
    loss: Tensor = f(fake).float().mean() - f(x).float().mean() + 10 * penalty
    return loss


def vae_loss(
    encoder: nn.Module, decoder: nn.Module, log_sigma: Tensor, x: Tensor, eps: Tensor
) -> Tensor:
    """Minus the evidence lower bound in nats per image, sigma learned, constants kept."""
    mu, logvar = encoder(x)
    mu, logvar = mu.float(), logvar.float()
    errors = (x - decoder(mu + torch.exp(logvar / 2) * eps).float()).square().flatten(1).sum(1)
    kl = (mu.square() + logvar.exp() - 1 - logvar).sum(1) / 2
    variance, dimensions = (2 * log_sigma).exp(), x[0].numel()
    constant = dimensions * (variance.log() + 1.8378770664093453)  # log(2 pi)
    loss: Tensor = ((errors / variance + constant) / 2 + kl).mean()
    return loss
