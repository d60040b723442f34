"""Timing on a device: interleaved comparisons, and the machine's own ceilings measured beside them.

    sets = rotating(lambda: (torch.randn(64, 128, 32, 32, device="cuda"),), "cuda")
    times = measure({"eager": eager, "fastgen": ours}, sets, device="cuda")
    times["eager"].median_s / times["fastgen"].median_s

What spoils a number on a GPU, and what is done about it:

* **Launching.** What lasts under 100 us, or less than launching it takes, is timed by replaying a
  CUDA graph of many calls, so that the processor's time to launch does not count; the rest by CUDA
  events around calls that are already queued.
* **The L2 cache.** Inputs are drawn from `rotating` sets that do not fit into it together, and as
  many outputs are alive at a time, so every call finds its input in memory.
* **Calls that do nothing.** Inputs are random, never constant. Outputs of a graph are filled with
  NaN before a last replay, which must overwrite them.
* **Drift.** Candidates take turns in every round, in alternating order, and medians are compared.

On a CPU the same code runs on process time, which other processes do not disturb: the seconds that
all threads computed, divided by the number of threads that torch may use (`Timing.wall_s` is the
clock on the wall, for what that hides: threads that wait for each other).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hardware import cache_bytes, clocks, machine
from .runners import (
    Candidate,
    Graph,
    Method,
    Process,
    Runner,
    cuda_runners,
    storages,
    tensors_in,
)

__all__ = [
    "Timing", "cache_bytes", "clocks", "convolution_rate", "copy_bandwidth", "fill_bandwidth",
    "machine", "matrix_rate", "measure", "rotating", "tf32_matrices",
]  # fmt: skip

MOST_SETS = 64


@dataclass(frozen=True)
class Timing:
    """One candidate's time per call.

    Attributes:
        median_s: the median over the rounds, in seconds per call.
        spread: (75th - 25th percentile) / median.
        samples: how many rounds.
        method: "graph" (CUDA-graph replays), "events" (CUDA events around calls) or "process"
            (process time on a CPU, per thread).
        wall_s: the median by the wall clock, on a CPU only.
    """

    median_s: float
    spread: float
    samples: int
    method: str
    wall_s: float | None = None


# ------------------------------------------------------------------------------------ comparisons


def measure(
    candidates: Mapping[str, Candidate],
    arguments: Sequence[tuple[Any, ...]] = ((),),
    *,
    device: torch.device | str,
    rounds: int = 25,
    method: Method = "auto",
    warmup_s: float = 0.1,
) -> dict[str, Timing]:
    """Time candidates that compute the same, all by one method, taking turns.

    Args:
        candidates: name to function; it is called as ``function(*arguments[i])``.
        arguments: sets to go through, call by call; `rotating` makes them.
        rounds: samples per candidate. Each lasts 2 ms at least, over as many calls as that takes.
        method: "auto" replays CUDA graphs if every candidate can be captured and the fastest then
            lasts less than 100 us, or launching slows one of them down; it takes events otherwise.
            On a CPU there is only process time.
        warmup_s: how long each candidate runs before anything counts, for clocks and autotuning.

    Raises:
        ValueError: `method` is "graph" on a CPU, or there is no argument set.
        RuntimeError: `method` is "graph" and a candidate cannot be captured, or a replay leaves its
            outputs unwritten.
    """
    device = torch.device(device)
    if not arguments:
        raise ValueError("arguments holds no set; give [()] for functions without arguments")
    if device.type != "cuda" and method == "graph":
        raise ValueError(f"method 'graph' needs a CUDA device (got {device})")
    if not candidates:
        return {}

    if device.type == "cuda":
        with torch.cuda.device(device):
            runners = cuda_runners(candidates, arguments, method, warmup_s)
            samples = _take_turns(runners, rounds)
            for name, runner in runners.items():
                if isinstance(runner, Graph):
                    runner.check(name)
    else:
        runners = {
            name: Process(function, arguments, warmup_s) for name, function in candidates.items()
        }
        samples = _take_turns(runners, rounds)
    return {
        name: _summary(
            samples[name],
            runners[name].method,
            getattr(runners[name], "wall_samples", [])[-rounds:],
        )
        for name in candidates
    }


def _take_turns(runners: Mapping[str, Runner], rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    for _ in range(rounds):
        for name in order:
            samples[name].append(runners[name].sample())
        order.reverse()  # so that nobody always runs behind the same neighbour
    return samples


def _summary(samples: Sequence[float], method: str, walls: Sequence[float] = ()) -> Timing:
    median = statistics.median(samples)
    spread = 0.0
    if len(samples) > 1:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        spread = (high - low) / median
    wall = statistics.median(walls) if walls else None
    return Timing(median, spread, len(samples), method, wall)


# -------------------------------------------------------------------------------------- arguments


def rotating(
    make: Callable[[], tuple[Any, ...]],
    device: torch.device | str,
    *,
    least_bytes: int | None = None,
) -> list[tuple[Any, ...]]:
    """Argument sets, each from a call of `make`, that hold `least_bytes` together.

    Args:
        least_bytes: four times the cache of the device unless given. At least two sets are made,
            and at most 64.

    Raises:
        ValueError: more than half of a set is memory of an earlier one (a bias or a seed may be),
            so that little rotates; or a floating tensor is constant (compressible data and
            multiplications by zero cost less power and time).
    """
    device = torch.device(device)
    wanted = 4 * cache_bytes(device) if least_bytes is None else least_bytes
    sets: list[tuple[Any, ...]] = []
    held = 0
    seen: set[int] = set()
    while len(sets) < 2 or (held < wanted and len(sets) < MOST_SETS):
        arguments = make()
        tensors = [tensor for tensor in tensors_in(arguments) if tensor.numel() > 0]
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.numel() > 1 and _is_constant(tensor):
                raise ValueError(
                    f"a tensor of shape {tuple(tensor.shape)} is constant; draw it at random"
                )
        fresh = sum(tensor.nbytes for tensor in tensors if not storages(tensor) & seen)
        if 2 * fresh < sum(tensor.nbytes for tensor in tensors):
            raise ValueError(
                "make() returned memory that an earlier call returned; draw what is large anew"
            )
        seen |= storages(tensors)
        sets.append(arguments)
        held += fresh
        if not tensors:
            break  # nothing to rotate
    return sets


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


# --------------------------------------------------------------------------------------- ceilings


def _moved_bytes(device: torch.device) -> int:
    return (1 << 30) if device.type == "cuda" else (64 << 20)


def copy_bandwidth(device: torch.device | str, *, size: int | None = None) -> float:
    """Bytes per second, read and written, of the best a copy within the device's memory does.

    Args:
        size: bytes to copy; 1 GiB on a CUDA device and 64 MiB on a CPU unless given.
    """
    device = torch.device(device)
    size = size or _moved_bytes(device)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = measure({"copy": lambda: target.copy_(source)}, device=device, method="events")
    return 2 * size / copied["copy"].median_s


def fill_bandwidth(device: torch.device | str, *, size: int | None = None) -> float:
    """Bytes per second of the best that filling a tensor does: what mostly writes has this ceiling,
    not the copy's.

    Args:
        size: bytes to fill; 1 GiB on a CUDA device and 64 MiB on a CPU unless given.
    """
    device = torch.device(device)
    size = size or _moved_bytes(device)
    target = torch.empty(size // 4, device=device)
    filled = measure({"fill": lambda: target.fill_(1.5)}, device=device, method="events")
    return size / filled["fill"].median_s


def matrix_rate(
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    tf32: bool = False,
    size: int | None = None,
) -> float:
    """Operations per second (2 size^3 a product) of PyTorch's product of two square matrices.

    Args:
        tf32: whether float32 is multiplied in TF32 on a CUDA device.
        size: rows; 8192 on a CUDA device and 512 on a CPU unless given.
    """
    device = torch.device(device)
    size = size or (8192 if device.type == "cuda" else 512)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    with tf32_matrices(tf32):
        times = measure(
            {"product": lambda: torch.matmul(a, b, out=product)}, device=device, method="events"
        )
    return 2 * size**3 / times["product"].median_s


def convolution_rate(
    device: torch.device | str, dtype: torch.dtype, *, channels: int = 128
) -> float:
    """Operations per second of a wide 3x3 convolution, channels_last: on a CPU often more than a
    matrix product reaches.
    """
    batch, side = 8, 16
    x = torch.randn(batch, channels, side, side, device=device).to(dtype)
    w = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    x, w = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, w))
    times = measure(
        {"convolution": lambda: torch.nn.functional.conv2d(x, w, padding=1)},
        device=device, method="events",
    )  # fmt: skip
    return 2 * batch * side**2 * w.numel() / times["convolution"].median_s


@contextlib.contextmanager
def tf32_matrices(allowed: bool) -> Iterator[None]:
    """float32 matrix products in TF32, or in float32, while it lasts.

    A setting of the whole process, for CUDA devices; the old one comes back.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
