"""A bias per channel and leaky ReLU, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.ops import bias_leaky_relu, checks


class BiasLeakyReLU(nn.Module):
    r"""leaky_relu(x + b), one learned bias per channel, which starts at 0.

    For what stands between two layers and has no fused form: behind a normalization without bias,
    say. Shapes, dtypes, what is saved for backward and the order of gradients (any) are those of
    :func:`fastgen.ops.bias_leaky_relu`.

    Args:
        channels: C of an input of shape (N, C, ...).
        negative_slope: in [0, 1]; 0 is ReLU, 1 adds the bias and nothing else.
    """

    def __init__(
        self,
        channels: int,
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.negative_slope = checks.slope(negative_slope)
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        return bias_leaky_relu(input, self.bias.to(input.dtype), self.negative_slope)

    def extra_repr(self) -> str:
        return f"{len(self.bias)}, negative_slope={self.negative_slope:g}"
