"""The reparameterization of backend "torch": plain PyTorch operators, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from .gradients import is_followed
from .philox import normal


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """The values in the dtype and layout of `tensor`."""
    if is_followed():  # not in place, see `activate_`; a compiler sets the layout
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
