"""Transposed convolution to few channels by stride phases: one dense convolution and a shuffle.

Output pixel s q + r of a transposed convolution with stride s sees only the kernel's taps t with t
= r + padding (mod s). So each of the s x s phases r is a dense stride-1 convolution with a smaller
kernel, and all of them together are one convolution with s x s times as many output channels, laid
out side by side afterwards.

oneDNN pads the few channels of a picture to a vector's 16 and skips no inserted zero there, which
makes the image-edge layers 5 to 10 times slower than their arithmetic; with C s s <= 16 the phases
fill that padding instead. Measured on one core (AMD EPYC, batch 32, stride 2):

* 32 channels to 3, 64x64, 4x4: 7.6 to 4.8 ms contiguous float32, 6.3 to 3.9 ms channels_last
  float32, 3.6 to 1.9 ms channels_last bfloat16;
* 128 channels to 3, 32x32, 5x5: 8.6 to 3.3 ms channels_last float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layouts import of_its_own

VECTOR = 16  # channels to which oneDNN pads


def fits(
    weight: Tensor,
    size: tuple[int, int],
    input_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> bool:
    """Whether a transposed convolution from `input_size` to `size` can go by phases and gains.

    The weight has shape (input channels, output channels, kernel, kernel). The phases of one side
    must all be as long as the phase convolution's result, which holds for the usual kernels of
    even padding.
    """
    step = stride[0]
    if (
        groups != 1
        or dilation != (1, 1)
        or step < 2
        or stride[1] != step
        or weight.shape[1] * step * step > VECTOR
    ):
        return False
    for axis in (0, 1):
        if weight.shape[2 + axis] < step or size[axis] % step:
            return False
        crop, taps = _reach(weight.shape[2 + axis], step, padding[axis])
        if input_size[axis] - 1 + taps - 2 * crop != size[axis] // step:
            return False
    return True


def _reach(kernel: int, step: int, padding: int) -> tuple[int, int]:
    """The phase convolution's padding and its number of taps along one side."""
    furthest = (step - 1 + padding) // step
    nearest = -((kernel - 1 - padding) // step)
    return furthest, furthest - nearest + 1


def phase_weight(
    weight: Tensor, step: int, padding: tuple[int, int], *, channels_last: bool
) -> Tensor:
    """The phase convolution's weight: (input channels, output channels x step x step, taps, taps).

    Output channels come in the order (phase row, phase column, channel) for channels_last, so that
    the shuffle moves runs of memory, and (channel, phase row, phase column) otherwise.
    """
    reach = [_reach(weight.shape[2 + axis], step, padding[axis]) for axis in (0, 1)]
    before = [step * crop - padding[axis] for axis, (crop, _) in enumerate(reach)]
    behind = [
        step * taps - weight.shape[2 + axis] - before[axis] for axis, (_, taps) in enumerate(reach)
    ]
    padded = F.pad(weight, [before[1], behind[1], before[0], behind[0]])
    (_, rows), (_, columns) = reach
    split = padded.reshape(*weight.shape[:2], rows, step, columns, step)
    order = (0, 3, 5, 1, 2, 4) if channels_last else (0, 1, 3, 5, 2, 4)
    joined = split.permute(order).reshape(weight.shape[0], -1, rows, columns)
    return joined.contiguous(memory_format=torch.channels_last) if channels_last else joined


def phase_padding(weight: Tensor, step: int, padding: tuple[int, int]) -> list[int]:
    """The padding of the phase convolution, itself a transposed one with stride 1."""
    return [_reach(weight.shape[2 + axis], step, padding[axis])[0] for axis in (0, 1)]


def shuffle(phases: Tensor, step: int, *, channels_last: bool) -> Tensor:
    """Put the phases side by side: (N, C step step, H, W) to (N, C, H step, W step), in the same
    layout.
    """
    if not channels_last:
        return F.pixel_shuffle(phases, step)
    n, channels, height, width = phases.shape
    cells = phases.permute(0, 2, 3, 1).view(n, height, width, step, step, channels // step**2)
    rows = cells.permute(0, 1, 3, 2, 4, 5).reshape(n, height * step, width * step, -1)
    return of_its_own(rows.permute(0, 3, 1, 2))
