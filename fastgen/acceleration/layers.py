"""The layers that an accelerated model computes with.

Each is the layer it replaces: a convolution without activation, an activation. Whoever knows what
stands behind a layer asks it for an `Epilogue`, for one call.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d, LinearLeakyReLU
from fastgen.nn.linear import linear_bias_leaky_relu
from fastgen.ops import conv2d_bias_leaky_relu, conv_transpose2d_bias_leaky_relu

from .activations import MODULES, Call, leaky_relu
from .classes import Accelerated, makes_classes
from .epilogues import NOTHING, Epilogue
from .folding import Folds, folded
from .pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from .rerouting import announce, asked, met, undisturbed, wrote


class Conv2d(Accelerated, Folds, ConvLeakyReLU2d):
    negative_slope = 1.0

    def forward(self, input: Tensor, *, epilogue: Epilogue | None = None) -> Tensor:
        by_frame = asked(self) if epilogue is None else None
        norm, activation = epilogue or by_frame or NOTHING
        weight, bias = folded(self, norm) if norm is not None else (self.weight, self.bias)
        with undisturbed(input):
            output = conv2d_bias_leaky_relu(
                input,
                weight,
                bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                cast(float, activation),
            )
        if by_frame is not None:
            announce(output, by_frame)
        return output


class ConvTranspose2d(Accelerated, Folds, ConvTransposeLeakyReLU2d):
    negative_slope = 1.0
    tanh = False

    def forward(
        self,
        input: Tensor,
        output_size: list[int] | None = None,
        *,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        by_frame = asked(self) if epilogue is None else None
        norm, activation = epilogue or by_frame or NOTHING
        weight, bias = folded(self, norm) if norm is not None else (self.weight, self.bias)
        with undisturbed(input):
            output_padding = self._output_padding(
                input,
                output_size,
                self.stride,  # type: ignore[arg-type]
                self.padding,  # type: ignore[arg-type]
                self.kernel_size,  # type: ignore[arg-type]
                2,
                self.dilation,  # type: ignore[arg-type]
            )
            output = conv_transpose2d_bias_leaky_relu(
                input,
                weight,
                bias,
                self.stride,
                self.padding,  # type: ignore[arg-type]
                output_padding,
                self.groups,
                self.dilation,
                1.0 if activation == "tanh" else activation,
                tanh=activation == "tanh",
            )
        if by_frame is not None:
            announce(output, by_frame)
        return output


class Linear(Accelerated, LinearLeakyReLU):
    negative_slope = 1.0

    def forward(self, input: Tensor, *, epilogue: Epilogue | None = None) -> Tensor:
        by_frame = asked(self) if epilogue is None else None
        _, activation = epilogue or by_frame or NOTHING
        if activation == 1:
            output = nn.Linear.forward(self, input)
        else:
            with undisturbed(input):
                slope = cast(float, activation)
                output = linear_bias_leaky_relu(input, self.weight, self.bias, slope)
        if by_frame is not None:
            announce(output, by_frame)
        return output


class LeakyReLU(Accelerated, nn.LeakyReLU):
    def forward(self, input: Tensor) -> Tensor:
        return _activated(input, MODULES[nn.LeakyReLU](self))


class ReLU(Accelerated, nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return _activated(input, MODULES[nn.ReLU](self))


def _activated(input: Tensor, call: Call) -> Tensor:
    if met(input, call.activation):
        return input
    with undisturbed(input):
        output = leaky_relu(input, call)
    if call.inplace:
        wrote(input)
    return output


class AvgPool2d(Accelerated, nn.AvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        with undisturbed(input):
            return avg_pool2d(
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                self.ceil_mode,
                self.count_include_pad,
                self.divisor_override,
            )


class AdaptiveAvgPool2d(Accelerated, nn.AdaptiveAvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        with undisturbed(input):
            return adaptive_avg_pool2d(input, self.output_size)


class MaxPool2d(Accelerated, nn.MaxPool2d):
    def forward(self, input: Tensor) -> Any:
        with undisturbed(input):
            return max_pool2d(
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.ceil_mode,
                self.return_indices,
            )


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.Linear: Linear,
    nn.LeakyReLU: LeakyReLU,
    nn.ReLU: ReLU,
    nn.AvgPool2d: AvgPool2d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
    nn.MaxPool2d: MaxPool2d,
}
"""What computes in place of each layer of torch.nn."""


def layer_of(original: type[nn.Module]) -> type[nn.Module] | None:
    """Which layer of torch.nn a class is, itself or as a subclass that computes the same."""
    for layer in LAYERS:
        if issubclass(original, layer):
            same = all(
                getattr(original, name, None) is getattr(layer, name, None)
                for name in ("forward", "_conv_forward", "_output_padding", "__call__")
            )
            return layer if same else None
    return None


@makes_classes
def _layers(original: type[nn.Module]) -> tuple[tuple[type, ...], dict[str, Any]] | None:
    layer = layer_of(original)
    return None if layer is None else ((LAYERS[layer],), {})
