"""Image sources and batches: where the training data comes from.

========================  ======================================================================
``load``                  a source by its specification: ``digits``, ``mnist:DIR``,
                          ``cifar10:DIR``, a folder of images, ``FILE.npy``, ``FILE.npz``
``SOURCES``               the named ones among them
``ImageDataset``          uint8 images (N, C, H, W), labels and class names
``Splits``                the two sets that ``load`` returns: train and held_out
``hold_out``              makes them, the same way every time
``Batches``, ``Batch``    shuffled batches, batch k a pure function of (seed, k)
``AffineJitter``          small random rotations, scalings and shifts, for training
``to_float``, ``to_uint8``  bytes to [-1, 1] and back
``fingerprint``           a short digest, to notice that the data changed
``DataError``             what every failure raises, in one line
========================  ======================================================================

Pillow (any source that resizes, any folder of images) and scikit-learn (``digits``) are imported
when used.
"""

from .augmentation import AffineJitter
from .batches import Batch, Batches
from .dataset import ImageDataset, Splits, hold_out
from .errors import DataError
from .fingerprint import fingerprint
from .pixels import to_float, to_uint8
from .sources import SOURCES, Source, load

__all__ = [
    "SOURCES",
    "AffineJitter",
    "Batch",
    "Batches",
    "DataError",
    "ImageDataset",
    "Source",
    "Splits",
    "fingerprint",
    "hold_out",
    "load",
    "to_float",
    "to_uint8",
]
