"""Thin model classes: networks, losses and the phases that train them.

    Classifier     cross-entropy of the class
    GAN            a generator against a discriminator
    WGAN           a generator against a critic, the Wasserstein-1 distance
    Autoencoder    a bottleneck
    VAE            a probabilistic one, with a likelihood

Images are float tensors (N, C, H, W) in [-1, 1]. Each model has ``for_images(...)``, which builds
the library's own networks, and a constructor that takes any `nn.Module` of the right shapes.
"""

from .autoencoder import Autoencoder
from .base import GenerativeModel, LatentModel, Model, evaluation
from .classifier import Classifier
from .gan import GAN
from .networks import BottomUp, Critic, Decoder, Discriminator, Encoder, Generator, TopDown
from .phase import Losses, Phase
from .regularizers import (
    R1,
    R2,
    REGULARIZERS,
    GradientPenalty,
    Regularizer,
    SpectralNorm,
    WeightClipping,
)
from .vae import VAE
from .wgan import WGAN

__all__ = [
    "GAN",
    "R1",
    "R2",
    "REGULARIZERS",
    "VAE",
    "WGAN",
    "Autoencoder",
    "BottomUp",
    "Classifier",
    "Critic",
    "Decoder",
    "Discriminator",
    "Encoder",
    "GenerativeModel",
    "Generator",
    "GradientPenalty",
    "LatentModel",
    "Losses",
    "Model",
    "Phase",
    "Regularizer",
    "SpectralNorm",
    "TopDown",
    "WeightClipping",
    "evaluation",
]
