"""Time random convolutions that the rule of Winograd's kernels lets in, against PyTorch's own.

    python benchmarks/winograd_calls.py [--calls 10] [--seed 0] [--kinds 3,1 4,2] [--all]

For each kind, layout, dtype and pass so many calls of 16 to 256 channels, maps of 2x2 to 28x28 and
1 to 64 pictures; --all takes what the rule leaves out, too. Medians of process time over rounds in
turns, one thread. With AVX2 alone, as CPUs without AVX-512 compute it:

    FASTGEN_CPU=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/...
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen.ops import backend, compiled, cpu_winograd
from fastgen.ops.geometry import Geometry

CHANNELS, FILTERS = (16, 32, 48, 64, 96, 128, 256), (16, 32, 64, 80, 128, 256)
MAPS, PICTURES = (2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 28), (1, 2, 3, 8, 16, 32, 64)
PASSES = ("forward", "input_gradient", "weight_gradient")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MOST_PRODUCTS, FEW_PRODUCTS = 2e9, 3e8


def arguments(
    kind: tuple[int, int], pass_: str, sizes: tuple[int, ...], dtype: torch.dtype, layout: Any
) -> tuple[Any, ...]:
    """What a pass of such a call is given, of random numbers."""
    (kernel, stride), (channels, filters, map, pictures) = kind, sizes
    padding = kernel // 2 if kernel % 2 else 1
    geometry = Geometry((stride,) * 2, (padding,) * 2, (1, 1), 1, False, (0, 0))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).contiguous(memory_format=layout)

    size = map * stride
    input, grad = drawn(pictures, channels, size, size), drawn(pictures, filters, map, map)
    weight = drawn(filters, channels, kernel, kernel) / 20
    if pass_ == "forward":
        return input, weight, torch.randn(filters).to(dtype), 0.2, geometry
    if pass_ == "input_gradient":
        return grad, weight, (size, size), geometry
    return input, grad, weight, geometry


def ratio(ours: Callable[..., Any], theirs: Callable[..., Any], given: Any, rounds: int) -> float:
    """Their median time over ours."""
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for run, found in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            run(*given)
            if turn:  # the first one finds what computes it
                found.append(time.process_time() - start)
    return statistics.median(times[1]) / statistics.median(times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["3,1", "4,2", "5,2", "3,2"])
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    if (reason := compiled.missing("cpu")) is not None:
        parser.error(reason)
    torch.set_num_threads(1)
    random.seed(options.seed)
    kinds = [(int(kernel), int(stride)) for kernel, stride in (k.split(",") for k in options.kinds)]
    pytorch = backend.KERNELS["conv2d_bias_leaky_relu", "torch"]
    every: list[float] = []
    print(f"version {compiled.cpu_version()}; PyTorch's time over ours: least, mean, most")
    for layout, kind, dtype, pass_ in itertools.product(
        LAYOUTS, kinds, (torch.float32, torch.bfloat16), PASSES
    ):
        found: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(4 * options.calls):
            sizes = tuple(map(random.choice, (CHANNELS, FILTERS, MAPS, PICTURES)))
            channels, filters, side, pictures = sizes
            products = channels * filters * side**2 * pictures * kind[0] ** 2
            if products > MOST_PRODUCTS:
                continue
            given = arguments(kind, pass_, sizes, dtype, LAYOUTS[layout])
            if not (options.all or getattr(cpu_winograd, pass_ + "_wins")(*given)):
                continue
            rounds = 15 if products < FEW_PRODUCTS else 5
            ours, theirs = getattr(cpu_winograd, pass_), getattr(pytorch, pass_)
            found.append((ratio(ours, theirs, given, rounds), sizes))
            if len(found) == options.calls:
                break
        ratios = [each for each, _ in found]
        every += ratios
        line = f"{kind[0]}x{kind[0]}, {kind[1]}  {str(dtype)[6:]:8}  {layout:13}  {pass_:15}"
        if found:
            line += f"  {min(ratios):.2f}  {statistics.mean(ratios):.2f}  {max(ratios):.2f}"
            line += "".join(f"  [{each:.2f} {sizes}]" for each, sizes in sorted(found) if each < 1)
        print(line, flush=True)
    print(f"{len(every)} calls, {sum(each < 1 for each in every)} below 1")


if __name__ == "__main__":
    main()
