"""The VAE's reparameterization, with and without the Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import backend as backends
from . import checks
from .gradients import applier, is_last_order, is_mapped, sheltered, wanted
from .torch_reparameterize import TorchReparameterize


class ScaledNoise(Function):
    """noise(a, logvar) = a * exp(logvar / 2) * eps(seed), with eps made anew and never saved.

    Everything differentiable about the reparameterization is this one function: d noise / d a [v]
    = noise(v, logvar) and d noise / d logvar [v] = noise(a v, logvar) / 2.
    """

    @staticmethod
    def forward(scale: Tensor, logvar: Tensor, seed: Tensor, kernels: Any) -> Tensor:
        result: Tensor = kernels.scaled_noise(scale, logvar, seed)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        scale, logvar, seed, ctx.kernels = inputs
        ctx.save_for_backward(scale if ctx.needs_input_grad[1] else None, logvar, seed)

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        scale, logvar, seed = ctx.saved_tensors
        grad_scale = scaled_noise(grad, logvar, seed, ctx.kernels) if wanted(ctx, 0) else None
        grad_logvar = (
            scaled_noise(grad * scale, logvar, seed, ctx.kernels) / 2 if wanted(ctx, 1) else None
        )
        return grad_scale, grad_logvar, None, None


class Reparameterize(Function):
    """z = mu + exp(logvar / 2) * eps(seed)."""

    @staticmethod
    def forward(mu: Tensor, logvar: Tensor, seed: Tensor, kernels: Any) -> Tensor:
        z: Tensor = kernels.forward(mu, logvar, seed)
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, logvar, seed, ctx.kernels = inputs
        ctx.save_for_backward(logvar if ctx.needs_input_grad[1] else None, seed)

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        logvar, seed = ctx.saved_tensors
        grad_logvar = scaled_noise(grad, logvar, seed, ctx.kernels) / 2 if wanted(ctx, 1) else None
        return grad, grad_logvar, None, None


class ReparameterizeKL(Function):
    """z as above and kl = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar) per sample."""

    @staticmethod
    def forward(mu: Tensor, logvar: Tensor, seed: Tensor, kernels: Any) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = kernels.forward_kl(mu, logvar, seed)
        return pair

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        mu, logvar, seed, ctx.kernels = inputs
        ctx.save_for_backward(mu, logvar, seed)

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        if grad_z is None and grad_kl is None:
            return None, None, None, None
        mu, logvar, seed = ctx.saved_tensors
        if is_last_order() and wanted(ctx, 0) and wanted(ctx, 1):
            return *ctx.kernels.backward(grad_z, grad_kl, mu, logvar, seed), None, None
        # With create_graph: the same in pieces that are differentiable themselves.
        grad_mu = grad_z
        grad_logvar = None
        if grad_z is not None and wanted(ctx, 1):
            grad_logvar = scaled_noise(grad_z, logvar, seed, ctx.kernels) / 2
        if grad_kl is not None:
            per_sample = grad_kl.view(-1, *[1] * (mu.dim() - 1))
            if wanted(ctx, 0):
                grad_mu = _plus(grad_mu, (per_sample * mu).to(mu.dtype))
            if wanted(ctx, 1):
                growth = torch.expm1(logvar.to(grad_kl.dtype)) / 2
                grad_logvar = _plus(grad_logvar, (per_sample * growth).to(mu.dtype))
        return grad_mu, grad_logvar, None, None


def _plus(left: Tensor | None, right: Tensor) -> Tensor:
    return right if left is None else left + right


_apply_scaled_noise = applier(ScaledNoise)
_apply, _apply_kl = applier(Reparameterize), applier(ReparameterizeKL)


def scaled_noise(scale: Tensor, logvar: Tensor, seed: Tensor, kernels: Any) -> Tensor:
    """scale * exp(logvar / 2) * eps(seed), differentiable to every order."""
    result: Tensor
    if is_last_order():
        result = kernels.scaled_noise(scale, logvar, seed)
        return result
    result = _apply_scaled_noise(scale, logvar, seed, kernels)
    return result


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Draw z from N(mu, exp(logvar)), differentiably in both [Kingma & Welling 2014, section 2.4].

    .. math:: z = \mu + e^{\mathrm{logvar} / 2}\, \epsilon, \qquad \epsilon \sim N(0, I)

    eps is a function of `seed` and each element's row-major index (see `fastgen.ops.philox`): the
    same numbers for the same seed on every backend, device and layout, computed in float32 (those
    of 16-bit tensors within 4e-6 by the CUDA kernels, far below their rounding). It is never
    stored; the backward makes it again.

    Args:
        mu, logvar: one shape (N, ...), dtype and device; float32, bfloat16, float16 or float64.
        seed: a 0-dim int64 tensor on the device of `mu`, or an integer in [-2^63, 2^63). When
            absent it is drawn on that device from `generator`, else from the default one that
            `torch.manual_seed` governs.
        generator: on the device of `mu`; excludes `seed`.
        backend: ``"auto"`` or the name of a backend (see :func:`fastgen.backend`).

    Returns:
        z, with the shape, dtype and layout of `mu`.

    **Gradients** of any order in mu and logvar. Saved for backward: logvar and the seed.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and what is allowed.
        BackendUnavailable: the backend named cannot run here.
    """
    _check(mu, logvar)
    kernels = backends.select("reparameterize", backend, mu.device)
    if backends.is_composed(backend, mu, logvar):
        return TorchReparameterize.forward(mu, logvar, _seed(seed, generator, mu.device))
    z: Tensor = _apply(mu, logvar, _seed(seed, generator, mu.device), kernels)
    return z


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Draw z as :func:`reparameterize` does, and give the divergence from the standard normal.

    .. math:: \mathrm{kl}_n = D_{KL}\big(N(\mu_n, e^{\mathrm{logvar}_n}) \,\|\, N(0, I)\big)
              = \tfrac{1}{2} \sum_i \big(\mu_{ni}^2 + e^{\mathrm{logvar}_{ni}} - 1 -
              \mathrm{logvar}_{ni}\big)

    Args:
        mu, logvar, seed, generator, backend: as in :func:`reparameterize`.

    Returns:
        ``(z, kl)``: z like `mu`; kl in nats, shape (N,), float32 (float64 for float64 inputs),
        accumulated in that dtype.

    **Gradients** of any order in mu and logvar through both results. Saved for backward: mu,
    logvar, the seed.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and what is allowed.
        BackendUnavailable: the backend named cannot run here.
    """
    _check(mu, logvar)
    if mu.dim() == 0:
        raise ValueError(
            "mu must have shape (N, ...) for one divergence per sample (got a 0-dim tensor)"
        )
    kernels = backends.select("reparameterize", backend, mu.device)
    if backends.is_composed(backend, mu, logvar):
        return TorchReparameterize.forward_kl(mu, logvar, _seed(seed, generator, mu.device))
    pair: tuple[Tensor, Tensor] = _apply_kl(mu, logvar, _seed(seed, generator, mu.device), kernels)
    return pair


def _check(mu: Tensor, logvar: Tensor) -> None:
    checks.floating_tensor("mu", mu)
    checks.floating_tensor("logvar", logvar)
    checks.same_kind("logvar", logvar, mu, "mu")
    if mu.shape != logvar.shape:
        raise ValueError(
            f"logvar must have the shape of mu, {tuple(mu.shape)} (got {tuple(logvar.shape)})"
        )


def _seed(
    seed: Tensor | int | None, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """The seed as a 0-dim int64 tensor on the device, without waiting for the device."""
    if seed is None:
        if is_mapped():  # for each of the batch its own, if `randomness` says so
            return torch.randint(2**63 - 1, (), generator=generator, device=device)
        return torch.empty((), dtype=torch.int64, device=device).random_(generator=generator)
    if generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(seed, int) and not isinstance(seed, bool):
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed must lie in [-2^63, 2^63) (got {seed})")
        return torch.full((), seed, dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        raise TypeError(
            f"seed must be an integer or a 0-dim int64 tensor (got {type(seed).__name__})"
        )
    if seed.dtype != torch.int64 or seed.dim() != 0:
        raise ValueError(
            f"seed must be a 0-dim int64 tensor (got {seed.dtype} of shape {tuple(seed.shape)})"
        )
    if seed.device != device:
        raise ValueError(f"seed must be on the device of mu, {device} (got {seed.device})")
    return seed
