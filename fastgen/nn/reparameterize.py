"""The VAE's reparameterization, as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.ops import reparameterize


class Reparameterize(nn.Module):
    r"""z = mu + exp(logvar / 2) eps in training mode, z = mu in evaluation mode.

    eps ~ N(0, I) comes from PyTorch's default generator through
    :func:`fastgen.ops.reparameterize`, which never stores it and has gradients of any order.
    Input: mu and logvar of one shape (N, ...).
    """

    def forward(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return reparameterize(mu, logvar) if self.training else mu
