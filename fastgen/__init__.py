"""fastgen: fast, trustworthy convolutional generative models in PyTorch.

    fastgen.ops       fused operations with gradients of any order
    fastgen.nn        layers over them, drop-in for those of torch.nn
    fastgen.models    classifier, GAN, Wasserstein GAN, autoencoder, VAE
    fastgen.data, fastgen.metrics, fastgen.training
                      image sources, distances, the trainer
    fastgen.capture   a training step of your own loop as one CUDA graph
    fastgen.accelerate, fastgen.restore
                      a model that you have already, by these operations

Each room is imported when its name is first used, so `import fastgen` costs nothing and the command
line can set up its process before torch starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from . import acceleration, data, metrics, models, nn, ops, training
    from .acceleration import accelerate, restore
    from .ops.backend import BackendUnavailable, backend
    from .training.capture import capture

ROOMS = ("acceleration", "data", "metrics", "models", "nn", "ops", "training")
NAMES = {
    "BackendUnavailable": ".ops.backend",
    "accelerate": ".acceleration",
    "backend": ".ops.backend",
    "capture": ".training.capture",
    "restore": ".acceleration",
}

__all__ = [
    "BackendUnavailable",
    "__version__",
    "accelerate",
    "acceleration",
    "backend",
    "capture",
    "data",
    "metrics",
    "models",
    "nn",
    "ops",
    "restore",
    "training",
]


def __getattr__(name: str) -> object:
    if name in ROOMS:
        return import_module(f".{name}", __name__)
    if name in NAMES:
        return getattr(import_module(NAMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
