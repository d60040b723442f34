"""A linear layer with its leaky ReLU fused in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops import bias_leaky_relu
from fastgen.ops.geometry import autocast

from .conversion import check_computes_as, share, slope_of, with_activation
from .sloped import Sloped


def linear_bias_leaky_relu(
    input: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    """leaky_relu(x W^T + b), under autocast in its precision."""
    input, weight, bias = autocast(input, weight, bias)
    if input.device.type == "cpu":  # a product there adds a bias for nothing
        return bias_leaky_relu(F.linear(input, weight, bias), None, negative_slope)
    product = F.linear(input, weight)
    rows = product.reshape(-1, weight.shape[0])
    return bias_leaky_relu(rows, bias, negative_slope).view(product.shape)


class LinearLeakyReLU(Sloped, nn.Linear):
    r"""leaky_relu(x W^T + b): :class:`torch.nn.Linear` with the activation inside.

    The product is PyTorch's, on a CPU with the bias; the rest is
    :func:`fastgen.ops.bias_leaky_relu`, which saves the output alone. Takes the arguments of
    :class:`torch.nn.Linear` and has its state_dict keys. Input of shape (*, in_features), output
    (*, out_features); gradients of any order.

    Args:
        negative_slope: in [0, 1]; 0 is ReLU, 1 is no activation (then it is exactly
            :class:`torch.nn.Linear`).
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.negative_slope == 1:
            return super().forward(input)
        return linear_bias_leaky_relu(input, self.weight, self.bias, self.negative_slope)

    @classmethod
    def from_torch(cls, linear: nn.Linear, activation: nn.Module | None = None) -> LinearLeakyReLU:
        """The layer for `linear` followed by `activation` (LeakyReLU, ReLU or None); it shares
        linear's parameters.

        Raises:
            TypeError: another activation; a subclass with a forward of its own; a parametrized
                weight.
        """
        check_computes_as(linear, nn.Linear)
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            negative_slope=slope_of(activation),
        )
        share(linear, layer)
        return layer

    def to_torch(self) -> nn.Module:
        """The same function in torch.nn layers, sharing the parameters: Sequential(Linear,
        activation), or Linear alone at slope 1.
        """
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta"
        )
        share(self, linear)
        return with_activation(linear, self.negative_slope)
