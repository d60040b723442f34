"""Precision (are the samples real?) and recall (are all real ones sampled?) of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .features import Features, as_feature_pair

# Distances held at a time, in numbers of 8 bytes: 32 MiB. Larger gains nothing.
_BLOCK = 1 << 22


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1]; see :func:`precision_recall`.

    ``precision`` falls when fake samples look unlike every real one, ``recall`` falls when real
    samples look unlike every fake one (missing modes).
    """

    precision: float
    recall: float


def precision_recall(real: Features, fake: Features, k: int = 3) -> PrecisionRecall:
    """Return the improved precision and recall of fake features against real ones.

    A set stands for the union of balls around its points, each ball reaching to the k-th
    nearest neighbor of its center within the set (the center itself does not count). Precision
    is the share of fake points inside the union of the real balls, recall the share of real
    points inside the union of the fake balls. A point on the surface of a ball is inside.

    All N M d distances are computed, in blocks of 32 MiB. They come from inner products, in
    float64 around the mean of ``real``; what lies within their rounding error of a surface
    (1e-13 or so of the squares of radius and center) counts as on it, so that exact copies are
    inside balls of radius 0.

    Args:
        real: (N, d) with N > k, tensor or array.
        fake: (M, d) with M > k. The shares depend on both sizes: compare at equal ones.
        k: the neighbor that sets the radius; the source uses 3.

    Raises:
        ValueError: when a set has no k-th neighbor, the dimensions d differ, k < 1, NaN or
            infinity.

    Source: Kynkaanniemi et al., Improved precision and recall metric for assessing generative
    models, 2019, equation 1.
    """
    real, fake = as_feature_pair(real, fake, ("real", "fake"))
    if k < 1 or k >= min(len(real), len(fake)):
        raise ValueError(
            f"k must lie in 1..{min(len(real), len(fake)) - 1} (got {k}) for {len(real)} real and "
            f"{len(fake)} fake samples: a ball reaches to the k-th neighbor of its center"
        )
    center = real.mean(dim=0)
    real, fake = real - center, fake - center
    return PrecisionRecall(
        precision=_share_inside(fake, real, _squared_reach(real, k)),
        recall=_share_inside(real, fake, _squared_reach(fake, k)),
    )


def _squared_reach(points: Tensor, k: int) -> Tensor:
    # |a|^2 + |b|^2 - 2 a.b sums d products of at most the larger squared norm, thrice; a radius and
    # a distance are each off by as much. What is near a ball's surface has a squared norm of at
    # most 2 (|center|^2 + radius^2). A bound for all balls would let one far point swell them.
    radii = _squared_radii(points, k)
    eps = torch.finfo(torch.float64).eps
    return radii + 16 * (points.shape[1] + 2) * eps * (points.square().sum(dim=1) + radii)


def _squared_radii(points: Tensor, k: int) -> Tensor:
    # Each point is its own nearest neighbor, hence k + 1.
    blocks = _squared_distances(points, points)
    return torch.cat([block.kthvalue(k + 1, dim=1).values for block in blocks])


def _share_inside(points: Tensor, centers: Tensor, squared_reach: Tensor) -> float:
    blocks = _squared_distances(points, centers)
    inside = torch.cat([(block <= squared_reach).any(dim=1) for block in blocks])
    return float(inside.double().mean())


def _squared_distances(points: Tensor, centers: Tensor) -> Iterator[Tensor]:
    center_norms = centers.square().sum(dim=1)
    for rows in torch.split(points, max(1, _BLOCK // len(centers))):
        row_norms = rows.square().sum(dim=1, keepdim=True)
        yield torch.addmm(row_norms + center_norms, rows, centers.T, alpha=-2)
