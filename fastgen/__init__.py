"""fastgen: fast, trustworthy convolutional generative models in PyTorch.

    fastgen.ops       fused operations with gradients of any order
    fastgen.nn        layers over them, drop-in for those of torch.nn
    fastgen.models    classifier, GAN, Wasserstein GAN, autoencoder, VAE
    fastgen.data, fastgen.metrics, fastgen.training
                      image sources, distances, the trainer; imported when used

`import fastgen` imports torch and nothing else that is heavy.
"""

from . import models, nn, ops
from .ops.backend import BackendUnavailable, backend
from .version import __version__

__all__ = ["BackendUnavailable", "__version__", "backend", "models", "nn", "ops"]
