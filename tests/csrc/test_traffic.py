"""What the kernels of csrc/cuda, but Hopper's, ask of memory, counted on the emulated device.

The counts are those that a profiler of a GPU gives: sectors of 32 bytes of tensors, and wavefronts
of shared memory. Shapes are layers of docs/results.md, on as large a part of an H200 as the batch
is of theirs; see tests/emulation/traffic.cpp.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from watched import CALLS, EMULATION, KERNELS, kernel_names, said, watched

SECTOR = 32


@dataclass
class Traffic:
    """Of the launches of one kernel."""

    sizes: dict[str, int] = field(default_factory=dict)
    sectors: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    cost: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    least: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def times(self, tensor: str, action: str) -> float:
        """How often all of a tensor went through, in whole sectors."""
        return self.sectors[tensor, action] * SECTOR / self.sizes[tensor]

    @property
    def wavefronts(self) -> int:
        return self.cost["shared", "read"] + self.cost["shared", "write"]

    @property
    def excess(self) -> float:
        """Wavefronts over those without a bank asked twice at once."""
        least = self.least["shared", "read"] + self.least["shared", "write"]
        return self.wavefronts / least if least else 1.0


def traffic(text: str) -> dict[str, Traffic]:
    """What traffic.cpp wrote, by the kernels' addresses."""
    found: dict[str, Traffic] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        if kind == "launch":
            kernel = found.setdefault(words[0].removeprefix("0x"), Traffic())
        elif kind == "site":
            kernel.cost[words[1], words[2]] += int(words[4])
            kernel.least[words[1], words[2]] += int(words[5])
        elif kind == "tensor":
            kernel.sizes[words[0]] = int(words[2])
            kernel.sectors[words[0], words[1]] += int(words[3])
    return found


@pytest.fixture(scope="module")
def program() -> Path:
    return watched("traffic", KERNELS, CALLS, EMULATION / "traffic.cpp")


@pytest.fixture(scope="module")
def planted() -> Path:
    source = EMULATION / "planted_traffic.cu"
    return watched("planted_traffic", [source], EMULATION / "traffic.cpp")


@pytest.mark.parametrize("copies", [0, 1])
@pytest.mark.parametrize(
    ("words", "apart", "sectors", "wavefronts"),
    [
        (1, 1, 4, 1),  # neighbours
        (1, 0, 1, 1),  # all the same
        (1, 2, 8, 2),
        (1, 32, 32, 32),  # one bank
        (1, 33, 32, 1),  # one row of every bank
        (2, 2, 8, 2),
        (4, 4, 16, 4),
        (4, 8, 32, 8),
    ],
)
def test_planted_requests_are_counted(planted, copies, words, apart, sectors, wavefronts) -> None:
    for rounds in (1, 3):
        arguments = map(str, (words, copies, apart, rounds))
        done = subprocess.run([planted, *arguments], capture_output=True, text=True, check=True)
        (kernel,) = traffic(done.stdout).values()
        assert kernel.cost["global", "read"] == kernel.sectors["input", "read"] == rounds * sectors
        assert kernel.times("result", "write") == 1.0
        assert kernel.cost["shared", "write"] == rounds * wavefronts


# Operation, dtype and numbers, as calls_host.cpp takes them.
MAPS = {  # outer, channels, inner
    "channels_last": "4096 64 1",
    "contiguous": "4 64 1024",
}
LATENTS = {"short rows": "64 512 1 0", "long rows": "4 4 4096 0"}
# Pictures of 64x64 with 3 channels and maps of 64, of a kernel, stride and padding: two for two of
# the multiprocessors, of which an H200 has 132 for a batch of 128.
DOWN = "2 3 64 64 64 4 2 1"
SAME = "2 3 64 64 64 3 1 1"
MULTIPROCESSORS = 2


def counted(program: Path, call: str) -> dict[str, Traffic]:
    """By kernel."""
    names = kernel_names(program)
    found = traffic(said(program, [call], MULTIPROCESSORS))
    return {names[address]: of_kernel for address, of_kernel in found.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", MAPS)
def test_bias_and_mask_move_each_tensor_once(program, dtype, layout) -> None:
    (forward,) = counted(program, f"bias {dtype} {MAPS[layout]} 1 0 0 0").values()
    assert forward.times("input", "read") == forward.times("result", "write") == 1.0
    backward = counted(program, f"bias {dtype} {MAPS[layout]} 0 1 1 0")
    sums = backward.pop("sum_partials_kernel")
    (mask,) = backward.values()
    for tensor, action in (("input", "read"), ("output", "read"), ("result", "write")):
        assert mask.times(tensor, action) == 1.0
    assert sums.times("sums", "write") == 1.0
    # The partial sums are the smaller part by far.
    assert mask.sectors["partials", "write"] < 0.01 * mask.sectors["result", "write"]
    assert sums.times("partials", "read") == 1.0
    assert mask.excess < 1.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("latents", LATENTS)
def test_reparameterization_moves_each_tensor_once(program, dtype, latents) -> None:
    forward = counted(program, f"noise {dtype} 2 {LATENTS[latents]}")["reparameterize_kernel"]
    backward = counted(program, f"noise {dtype} 3 {LATENTS[latents]}")["reparameterize_kernel"]
    for kernel, tensors in (
        (forward, {"mean": "read", "logvar": "read", "result": "write"}),
        (
            backward,
            {
                "mean": "read",
                "logvar": "read",
                "grad": "read",
                "result": "write",
                "grad_logvar": "write",
            },
        ),
    ):
        assert {tensor: kernel.times(tensor, tensors[tensor]) for tensor in tensors} == (
            dict.fromkeys(tensors, 1.0)
        )


@pytest.mark.parametrize(
    ("call", "kernel", "read", "excess"),
    [
        # Tensor cores in channels_last: a picture once, and the rows that tiles share; in 16 bits
        # an odd start costs a look at the number before each 16 bytes.
        (f"forward bfloat16 {DOWN} 1 1 0 0", "conv2d_rows", {"input": 2.3}, 1.2),
        (f"forward bfloat16 {DOWN} 1 0 1 0", "conv2d_rows", {"input": 2.3, "output": 1.0}, 1.2),
        (f"forward float32 {DOWN} 1 1 0 1", "conv2d_rows", {"input": 1.35}, 1.1),
        (f"forward bfloat16 {SAME} 1 1 0 0", "conv2d_rows", {"input": 4.4}, 1.25),
        (f"forward float32 {SAME} 1 1 0 1", "conv2d_rows", {"input": 1.65}, 1.4),
        (f"transposed bfloat16 {DOWN} 1 1 1 0", "march", {"input": 1.35}, 1.2),
        (f"transposed float32 {DOWN} 1 1 1 1", "march", {"input": 1.2}, 1.1),
        (f"transposed bfloat16 {SAME} 1 1 0 0", "march", {"input": 1.2}, 1.05),
        (f"weight bfloat16 {DOWN} 1", "weight", {"map": 1.15, "picture": 1.4}, 1.15),
        (f"weight float32 {DOWN} 1", "weight", {"map": 1.05, "picture": 1.6}, 1.15),
        # And in contiguous memory, from multiply-adds too.
        (f"forward bfloat16 {DOWN} 0 1 0 0", "conv2d", {"input": 2.2}, 1.35),
        (f"forward float32 {DOWN} 0 1 0 1", "conv2d", {"input": 1.95}, 1.05),
        (f"forward float32 {DOWN} 0 1 0 0", "conv2d", {"input": 2.2}, 2.6),
        (f"transposed bfloat16 {DOWN} 0 1 1 0", "conv_transpose2d", {"input": 1.1}, 1.4),
        (f"transposed float32 {DOWN} 0 1 1 1", "conv_transpose2d", {"input": 1.1}, 1.35),
        (f"transposed float32 {DOWN} 0 1 1 0", "conv_transpose2d", {"input": 1.1}, 1.2),
    ],
)
def test_image_edges_read_their_inputs_once_and_little_twice(
    program, call, kernel, read, excess
) -> None:
    edge = counted(program, call)[f"image_edge_{kernel}_kernel"]
    result = "partials" if kernel == "weight" else "result"
    assert edge.times(result, "write") == 1.0
    for tensor, most in read.items():
        assert 1.0 <= edge.times(tensor, "read") <= most, tensor
    assert edge.excess <= excess
