"""What a model is made of: its layers, their output shapes and parameter counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgen.data import Batches, Splits
from fastgen.models import Model

from .run_folder import Settings
from .text import columns


class Layer(NamedTuple):
    """One layer as the first batch passes through it; the shape is that of one image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int


def layers(model: Model, images: Tensor, labels: Tensor | None) -> list[Layer]:
    """Run every phase's loss once and list the layers in the order in which they first returned.

    Only what really runs is listed, whatever the model; its weights stay as they are.
    """
    found: dict[str, Layer] = {}
    leaves = {
        name: module
        for name, module in model.named_modules()
        if not any(module.children()) or hasattr(module, "parametrizations")
    }
    handles = [
        module.register_forward_hook(_note(name, found))
        for name, module in leaves.items()
        if "parametrizations" not in name
    ]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        for phase in model.phases():
            phase.loss(images, labels)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return list(found.values())


def describe(model: Model, settings: Settings, splits: Splits) -> str:
    """All that can be known before a training, as text."""
    batch = Batches(splits.train, 2, seed=0).batch(0)
    rows = [
        (layer.name, layer.kind, "x".join(map(str, layer.output)) or "1", layer.parameters)
        for layer in layers(model, batch.images, batch.labels)
    ]
    counts = networks(model)
    tables: dict[str, list[tuple[object, ...]]] = {
        "configuration": list(settings.items()),
        "data": [("train", splits.train), ("held out", splits.held_out)],
        "layers": [("layer", "kind", "output", "parameters"), *rows],
        "parameters": [*counts, ("total", sum(count for _, count in counts))],
    }
    return "\n".join(f"{title}\n{columns(table)}" for title, table in tables.items())


def parameter_count(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def networks(model: nn.Module) -> list[tuple[str, int]]:
    """The model's networks and how many parameters each has."""
    counts = [(name, parameter_count(child)) for name, child in model.named_children()]
    return [(name, count) for name, count in counts if count]


def _note(
    name: str, found: dict[str, Layer]
) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if name not in found and isinstance(output, Tensor):
            shape = tuple(output.shape[1:])
            kind = type(module).__name__.removeprefix("Parametrized")
            found[name] = Layer(name, kind, shape, parameter_count(module))

    return hook
