"""Whether two candidates computed the same, and what stands for a failure in a result."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

WRONG = {"bfloat16": 6e-2, "float32": 3e-3}
"""Above this relative distance from eager PyTorch a candidate computes something else. Both sides
round (float32 convolutions in TF32 on a GPU), so single numbers differ; the whole tensors may not.
In bfloat16 rounding leaves outputs near 0 on either side of it, and where the signs differ so do
the factors of a gradient, 1 and the slope: a share f of the numbers makes 1.1 sqrt(f) of a
gradient. With Winograd's method that was 3e-2 in layers of 128 channels, 0.85 numbers in 1000.
"""


def difference(ours: Any, theirs: Any) -> float:
    """The largest relative distance |a - b| / |b| over results that belong together.

    NaN in either, or a missing result, counts as infinitely far (JSON knows no infinity: 1e9).
    """
    worst = 0.0
    for a, b in zip(_flat(ours), _flat(theirs), strict=True):
        distance = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        worst = max(worst, distance) if math.isfinite(distance) else 1e9
    return worst


def _flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
