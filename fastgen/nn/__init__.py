"""Layers over `fastgen.ops`: subclasses of the torch.nn layers that they replace, with the same
state_dict keys.
"""

from .activation import BiasLeakyReLU
from .conv import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d
from .linear import LinearLeakyReLU
from .reparameterize import Reparameterize

__all__ = [
    "BiasLeakyReLU",
    "ConvLeakyReLU2d",
    "ConvTransposeLeakyReLU2d",
    "LinearLeakyReLU",
    "Reparameterize",
]
