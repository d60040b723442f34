"""The modules that call layers: `nn.Sequential`, and those with a forward of the user's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .classes import Accelerated, makes_classes
from .epilogues import behind
from .layers import Conv2d, ConvTranspose2d, Linear
from .rerouting import rerouted_methods

FUSED = (Conv2d, ConvTranspose2d, Linear)


class Sequential(Accelerated, nn.Sequential):
    """Asks each layer to take in the activation behind it, which is then passed over."""

    _accelerated_fold = False

    def forward(self, input: Any) -> Any:
        layers = list(self._modules.values())
        position = 0
        while position < len(layers):
            layer = layers[position]
            taken = 0
            if isinstance(layer, FUSED) and isinstance(input, Tensor):
                epilogue, taken, _ = behind(layers, position, fold=self._accelerated_fold)
            input = layer(input, epilogue=epilogue) if taken else layer(input)
            position += 1 + taken
        return input


def is_sequence(original: type[nn.Module]) -> bool:
    """Whether a class runs its children one after the other, and nothing else."""
    return issubclass(original, nn.Sequential) and original.forward is nn.Sequential.forward


@makes_classes
def _sequences(original: type[nn.Module]) -> tuple[tuple[type, ...], dict[str, Any]] | None:
    return ((Sequential,), {}) if is_sequence(original) else None


@makes_classes
def _forwards(original: type[nn.Module]) -> tuple[tuple[type, ...], dict[str, Any]] | None:
    return (Accelerated,), dict(rerouted_methods(original))
