"""scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from .conversion import to_images
from .dataset import ImageDataset, Splits, hold_out
from .errors import requires


def load_digits(_: str, image_size: int | None, channels: int | None) -> Splits:
    """1797 real scans of handwritten digits, 8x8 pixels of 17 grays, that come with scikit-learn.

    Values 0..16 become bytes 0..255 (rounded). The default size is 16, by bicubic interpolation; 8
    keeps the pixels as they are. 10 classes. Source: E. Alpaydin, C. Kaynak, "Optical Recognition
    of Handwritten Digits", UCI Machine Learning Repository, 1998 (its test set).
    """
    with requires("scikit-learn"):
        from sklearn.datasets import load_digits as scans

    digits = scans()
    native = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return hold_out(
        ImageDataset(
            to_images(
                native, image_size=image_size or 16, channels=channels, key="digits", name="digits"
            ),
            labels=digits.target.astype(np.int64),
            class_names=tuple(str(name) for name in digits.target_names),
            description="scikit-learn's digits",
        )
    )
