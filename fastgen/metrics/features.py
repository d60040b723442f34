"""What every metric takes: sets of features, one row per sample."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features: TypeAlias = Tensor | NDArray[Any]


def as_features(features: Features, name: str = "features") -> Tensor:
    """Return features as a float64 tensor, checked once for all metrics.

    Distances between sets are small differences of large sums, so every metric computes in
    float64 whatever the network that made the features computed in.

    Args:
        features: real tensor or array of shape (N, d), any dtype and layout, on any device.
            It is neither modified nor kept in an autograd graph.
        name: how the caller calls it, for the error message.

    Returns:
        float64 tensor of shape (N, d) on the device of ``features``.

    Raises:
        ValueError: for another shape, complex numbers, an empty set, NaN or infinity.
    """
    if not isinstance(features, Tensor):
        array = np.asarray(features)
        # A copy in the machine's byte order, with strides that are not negative.
        features = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"{name} must have shape (N, d) with N, d >= 1 (got {tuple(features.shape)}): "
            "one row per sample; x[:, None] makes a column of N numbers, x.flatten(1) rows of "
            "N images"
        )
    if features.is_complex():
        raise ValueError(f"{name} must be real numbers (got {features.dtype})")
    features = features.detach().to(torch.float64)
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name} must be finite: it contains NaN or infinity")
    return features


def as_feature_pair(
    a: Features, b: Features, names: tuple[str, str] = ("features_a", "features_b")
) -> tuple[Tensor, Tensor]:
    """Return two sets of features as float64 tensors of one dimension on one device.

    Args:
        a: features of shape (N, d), see :func:`as_features`.
        b: features of shape (M, d); copied to the device of ``a`` where it lies elsewhere.
        names: how the caller calls them, for the error message.

    Raises:
        ValueError: when one is no set of features, or when their dimensions d differ.
    """
    a, b = as_features(a, names[0]), as_features(b, names[1])
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of features "
            f"(got {a.shape[1]} and {b.shape[1]}): take both from the same layer"
        )
    return a, b.to(a.device)
