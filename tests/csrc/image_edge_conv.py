"""One call of a program that plays the image-edge convolution, against float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from host import bits, result, round_to_tf32, run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Plan:
    way: int  # of storing, or of reading
    tile_width: int
    tile_height: int
    tiles: int
    blocks: int
    chunks: int
    shared_bytes: int


def check(
    program: Path,
    folder: Path,
    geometry: tuple,
    kind: str = "float32",
    layout: str = "channels_last",
    input_layout: str | None = None,
    weight_layout: str = "contiguous",
    slope: float = 0.2,
    bias: bool = True,
    mask: bool = False,
    offset: int = 0,
    multiprocessors: int = 1,
    shared_limit: int = 99 * 1024,
    infinite: bool = False,
) -> Plan:
    """One call against float64, from inputs rounded as the kernel rounds them; if asked, with an
    infinite pixel, which nothing but the windows that it lies in may see.
    """
    n, c, height, width, k, kernel, stride, padding = geometry
    dtype = DTYPES["float32" if kind == "tf32" else kind]
    x = torch.randn(n, c, height, width).to(dtype)
    if infinite:
        x[-1, :, height // 2, width // 2] = float("inf")
    w = (torch.randn(k, c, *kernel) / (c * kernel[0] * kernel[1]) ** 0.5).to(dtype)
    x = x.contiguous(memory_format=LAYOUTS[input_layout or layout])
    w = w.contiguous(memory_format=LAYOUTS[weight_layout])
    b = torch.randn(k).to(dtype)

    factors = [round_to_tf32(t).double() if kind == "tf32" else t.double() for t in (x, w)]
    exact = F.conv2d(*factors, b.double() if bias else None, stride, padding)
    absolute = F.conv2d(*(t.abs() for t in factors), None, stride, padding) + b.abs().max()
    y = torch.randn(exact.shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    exact = torch.where((y if mask else exact) > 0, exact, exact * float(np.float32(slope)))

    inputs = {"input": bits(x), "weight": bits(w)}
    inputs |= {"bias": bits(b)} if bias else {}
    inputs |= {"output": bits(y)} if mask else {}
    arguments = ["float32" if kind == "tf32" else kind, int(kind != "float32")]
    arguments += [int(layout == "channels_last"), slope, int(bias), int(mask), offset]
    arguments += [multiprocessors, shared_limit, n, c, height, width, k, *kernel, *exact.shape[2:]]
    arguments += [*stride, *padding, *x.stride(), *w.stride()]
    run(program, arguments, inputs, folder)

    integer = np.int32 if dtype == torch.float32 else np.int16
    ours = torch.from_numpy(result(folder, "result", integer)).view(dtype)
    ours = ours.as_strided(y.shape, y.stride()).double()
    # One rounding of the result, and float32 roundings of the sum's terms.
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6 * absolute
    assert torch.equal(ours.isfinite(), exact.isfinite())
    wrong = ((ours - exact).abs() / allowed)[exact.isfinite()]
    assert (wrong <= 1).all(), wrong.max()
    facts = result(folder, "plan", np.int64).tolist()
    return Plan(*facts)
