"""What the layers of torch.nn with a leaky ReLU inside have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastgen.ops import checks


class Sloped(nn.Module):
    """Before a layer of torch.nn among the bases: takes that one's arguments and a slope."""

    def __init__(
        self,
        *args: Any,
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        # `torch.nn.utils.skip_init` looks for it by its name; it may also be given by its place.
        if device is not None:
            kwargs["device"] = device
        super().__init__(*args, **kwargs)
        self.negative_slope = checks.slope(negative_slope)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, negative_slope={self.negative_slope:g}"
