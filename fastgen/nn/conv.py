"""Convolution layers with their leaky ReLU fused in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops import conv2d_bias_leaky_relu, conv_transpose2d_bias_leaky_relu

from .conversion import check_computes_as, share, slope_of, with_activation
from .sloped import Sloped

TRANSPOSED_TAKES = "nn.LeakyReLU, nn.ReLU, nn.Tanh or None"


class ConvLeakyReLU2d(Sloped, nn.Conv2d):
    r"""leaky_relu(conv2d(x)): :class:`torch.nn.Conv2d` with the activation inside.

    .. math:: y = \mathrm{leakyReLU}(w * x + b)

    Takes the arguments of :class:`torch.nn.Conv2d`, every `padding_mode` too, and has its
    state_dict keys, so checkpoints go both ways. Shapes, dtypes, layouts, what is saved for
    backward and the order of gradients (any) are those of
    :func:`fastgen.ops.conv2d_bias_leaky_relu`.

    Args:
        negative_slope: in [0, 1]; 0 is ReLU, 1 is no activation (a convolution with a cheap second
            gradient).

    Example::

        critic = nn.Sequential(
            ConvLeakyReLU2d(3, 64, 4, stride=2, padding=1),
            ConvLeakyReLU2d(64, 128, 4, stride=2, padding=1),
            ConvLeakyReLU2d(128, 1, 4, negative_slope=1),
        )
    """

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d_bias_leaky_relu(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.negative_slope,
        )

    @classmethod
    def from_torch(cls, conv: nn.Conv2d, activation: nn.Module | None = None) -> ConvLeakyReLU2d:
        """The layer for `conv` followed by `activation` (LeakyReLU, ReLU or None); it shares
        conv's parameters.

        Raises:
            TypeError: another activation; a subclass with a forward of its own; a parametrized
                weight.
        """
        check_computes_as(conv, nn.Conv2d)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
            negative_slope=slope_of(activation),
        )
        share(conv, layer)
        return layer

    def to_torch(self) -> nn.Module:
        """The same function in torch.nn layers, sharing the parameters: Sequential(Conv2d,
        activation), or Conv2d alone at slope 1.
        """
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        share(self, conv)
        return with_activation(conv, self.negative_slope)


class ConvTransposeLeakyReLU2d(Sloped, nn.ConvTranspose2d):
    r"""leaky_relu(conv_transpose2d(x)): :class:`torch.nn.ConvTranspose2d`, activation inside.

    Takes the arguments of :class:`torch.nn.ConvTranspose2d` (`output_size` at the call too) and
    has its state_dict keys, so checkpoints go both ways. Shapes, dtypes, layouts, what is saved
    for backward and the order of gradients (any) are those of
    :func:`fastgen.ops.conv_transpose2d_bias_leaky_relu`.

    Args:
        negative_slope: in [0, 1]; 0 is ReLU, 1 is no activation.
        tanh: the hyperbolic tangent in place of leaky ReLU, for a generator's last layer.
    """

    def __init__(
        self,
        *args: Any,
        tanh: bool = False,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, device=device, **kwargs)
        self.tanh = tanh

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return conv_transpose2d_bias_leaky_relu(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
            self.negative_slope,
            tanh=self.tanh,
        )

    def extra_repr(self) -> str:
        if not self.tanh:
            return super().extra_repr()
        inherited = nn.ConvTranspose2d.extra_repr(self)  # type: ignore[no-untyped-call]
        return f"{inherited}, tanh=True"

    @classmethod
    def from_torch(
        cls, conv: nn.ConvTranspose2d, activation: nn.Module | None = None
    ) -> ConvTransposeLeakyReLU2d:
        """The layer for `conv` followed by `activation` (LeakyReLU, ReLU, Tanh or None); it shares
        conv's parameters.

        Raises:
            TypeError: another activation; a subclass with a forward of its own; a parametrized
                weight.
        """
        check_computes_as(conv, nn.ConvTranspose2d)
        tanh = isinstance(activation, nn.Tanh)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.output_padding,
            conv.groups,
            conv.bias is not None,
            conv.dilation,
            device="meta",
            negative_slope=1.0 if tanh else slope_of(activation, TRANSPOSED_TAKES),
            tanh=tanh,
        )
        share(conv, layer)
        return layer

    def to_torch(self) -> nn.Module:
        """The same function in torch.nn layers, sharing the parameters:
        Sequential(ConvTranspose2d, activation), or the former alone at slope 1.
        """
        conv = nn.ConvTranspose2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.output_padding,  # type: ignore[arg-type]
            self.groups,
            self.bias is not None,
            self.dilation,  # type: ignore[arg-type]
            device="meta",
        )
        share(self, conv)
        if self.tanh:
            return nn.Sequential(conv, nn.Tanh())
        return with_activation(conv, self.negative_slope)
