"""Time every pass of the image-edge layers on this CPU and write the table in docs/cpu.md.

    python benchmarks/image_edges.py [--rounds 15] [--table]

Eager PyTorch, the plain `torch` backend and `cpp`, interleaved, one thread, medians of process
time; results go to benchmarks/results/image_edges.json. With `--table` nothing is measured and the
table is written from that file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Threads that spin while they wait would count as computing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from results import FOLDER, between, machine_line, opened, save, table
from torch import Tensor

from fastgen.bench import timing
from fastgen.bench.ladder import ceilings
from fastgen.bench.rungs import DTYPES
from fastgen.ops import backend
from fastgen.ops.geometry import Geometry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cpu.md"
RESULTS = FOLDER / "image_edges.json"
MARKERS = ("<!-- image edges -->", "<!-- end of image edges -->")
CPU = torch.device("cpu")
BATCH, SLOPE = 32, 0.2

Call = Callable[[], Any]


class Edge(NamedTuple):
    """A convolution of a picture with `channels` channels, or the transposed one to it."""

    channels: int
    filters: int
    size: int  # of the picture
    kernel: int
    stride: int
    padding: int
    output_padding: int = 0  # of the transposed convolution

    def __str__(self) -> str:
        step = f"{self.kernel}x{self.kernel} stride {self.stride}"
        return f"{self.channels}->{self.filters}, {self.size}x{self.size}, {step}"

    def geometry(self, *, transposed: bool) -> Geometry:
        return Geometry(
            (self.stride,) * 2, (self.padding,) * 2, (1, 1), 1, transposed,
            (self.output_padding,) * 2 if transposed else (0, 0),
        )  # fmt: skip


PASSES = ("forward", "tangent", "input gradient", "weight gradient", "transposed, tanh")
ROWS = [
    *((Edge(3, 32, 64, 4, 2, 1), pass_) for pass_ in PASSES),
    *((Edge(3, 64, 64, 3, 1, 1), pass_) for pass_ in PASSES[:4]),
    (Edge(3, 64, 64, 4, 2, 1), "transposed, tanh"),
    (Edge(3, 128, 32, 5, 2, 2, 1), "transposed, tanh"),
    *((Edge(1, 64, 28, 4, 2, 1), pass_) for pass_ in PASSES[:4]),
]
COLUMNS = [
    ("float32", "contiguous"),
    ("float32", "channels_last"),
    ("bfloat16", "channels_last"),
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Operands(NamedTuple):
    picture: Tensor
    map: Tensor  # what a layer put out, or the gradient of that
    weight: Tensor
    bias: Tensor  # of the map
    end: Tensor  # the bias of the picture


def operands(edge: Edge, dtype: torch.dtype, layout: torch.memory_format) -> Operands:
    """Random ones; channels first or last throughout."""
    picture = torch.randn(BATCH, edge.channels, edge.size, edge.size)
    weight = torch.randn(edge.filters, edge.channels, edge.kernel, edge.kernel) / edge.kernel**2
    map = torch.randn_like(F.conv2d(picture, weight, None, edge.stride, edge.padding))
    return Operands(
        *(t.to(dtype).contiguous(memory_format=layout) for t in (picture, map, weight)),
        torch.randn(edge.filters, dtype=dtype),
        torch.randn(edge.channels, dtype=dtype),
    )


def eager(edge: Edge, pass_: str, o: Operands) -> Call:
    """The pass as PyTorch computes it."""
    step = edge.stride, edge.padding
    if pass_ == "forward":
        return lambda: F.leaky_relu_(F.conv2d(o.picture, o.weight, o.bias, *step), SLOPE)
    if pass_ == "tangent":
        return lambda: torch.ops.aten.leaky_relu_backward(
            F.conv2d(o.picture, o.weight, None, *step), o.map, SLOPE, True
        )
    if pass_ == "transposed, tanh":
        return lambda: F.conv_transpose2d(
            o.map, o.weight, o.end, *step, edge.output_padding
        ).tanh_()
    place = 1 if pass_ == "weight gradient" else 0
    wanted = [place == 0, place == 1, False]
    return lambda: torch.ops.aten.convolution_backward(
        o.map, o.picture, o.weight, None, [edge.stride] * 2, [edge.padding] * 2, [1, 1], False,
        [0, 0], 1, wanted,
    )[place]  # fmt: skip


def ours(edge: Edge, pass_: str, o: Operands, name: str) -> Call:
    """The pass as a backend computes it."""
    if pass_ == "transposed, tanh":
        up = backend.select("conv_transpose2d_bias_leaky_relu", name, CPU)
        geometry = edge.geometry(transposed=True)
        return lambda: up.forward(o.map, o.weight, o.end, "tanh", geometry)
    kernels = backend.select("conv2d_bias_leaky_relu", name, CPU)
    geometry = edge.geometry(transposed=False)
    calls: dict[str, Call] = {
        "forward": lambda: kernels.forward(o.picture, o.weight, o.bias, SLOPE, geometry),
        "tangent": lambda: kernels.masked_forward(
            o.picture, o.weight, None, o.map, SLOPE, geometry
        ),
        "input gradient": lambda: kernels.input_gradient(
            o.map, o.weight, (edge.size, edge.size), geometry
        ),
        "weight gradient": lambda: kernels.weight_gradient(o.picture, o.map, o.weight, geometry),
    }
    return calls[pass_]


def measured(rounds: int) -> Iterator[dict[str, Any]]:
    """One row after the other."""
    for edge, pass_ in ROWS:
        row: dict[str, Any] = {"layer": str(edge), "pass": pass_}
        for dtype, layout in COLUMNS:
            torch.manual_seed(0)
            o = operands(edge, DTYPES[dtype], LAYOUTS[layout])
            calls = {
                "eager": eager(edge, pass_, o),
                "torch": ours(edge, pass_, o, "torch"),
                "cpp": ours(edge, pass_, o, "cpp"),
            }
            theirs, found = calls["eager"]().float(), calls["cpp"]().float()
            error = (found - theirs).norm() / theirs.norm()
            assert error < (2e-2 if dtype == "bfloat16" else 1e-4), (edge, pass_, dtype, error)
            times = timing.measure(calls, device=CPU, rounds=rounds)
            row[f"{dtype} {layout}"] = {
                "operations": 2 * o.weight.numel() * o.map.numel() // edge.filters,
                "ms": {name: 1e3 * time.median_s for name, time in times.items()},
            }
        yield row


def edges_table(results: dict[str, Any]) -> str:
    """The table and the line that says on what it was measured."""
    rates = results["ceilings"]["1"]["operations_per_second"]
    rows, layer = [], ""
    for row in results["rows"]:
        cells = []
        for dtype, layout in COLUMNS:
            cell = row[f"{dtype} {layout}"]
            times = " / ".join(f"{cell['ms'][name]:.2g}" for name in ("eager", "torch", "cpp"))
            share = cell["operations"] / (1e-3 * cell["ms"]["cpp"]) / rates[dtype]
            cells.append(f"{times}, {100 * share:.0f} %")
        rows.append(("" if row["layer"] == layer else row["layer"], row["pass"], *cells))
        layer = row["layer"]
    return (
        f"{table(['layer', 'pass', *(f'{d} {la}' for d, la in COLUMNS)], rows)}\n\n"
        f"{machine_line(results)} One thread. The peak: "
        f"{rates['float32'] / 1e9:.0f} GFLOP/s in float32, {rates['bfloat16'] / 1e9:.0f} in "
        "bfloat16, the best product and convolution of the same run."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        results = opened(RESULTS)
        results["ceilings"], results["rows"] = {"1": ceilings(CPU)}, []
        for row in measured(options.rounds):
            print(json.dumps(row), flush=True)
            results["rows"].append(row)
        save(RESULTS, results)
    text = edges_table(json.loads(RESULTS.read_text()))
    PAGE.write_text(between(MARKERS, text, PAGE.read_text()))


if __name__ == "__main__":
    main()
