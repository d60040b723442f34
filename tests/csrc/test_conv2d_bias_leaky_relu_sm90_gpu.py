"""The Hopper convolution on a Hopper GPU: accuracy, NaN, graphs, large tensors, refusals."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch
import torch.nn.functional as F
from hopper import DCGAN, GEOMETRIES, TILES, Geometry
from torch import Tensor


def is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU"),
]


def ours(
    geometry: Geometry,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: float,
    tile: int,
) -> Tensor:
    return torch.ops.fastgen.hopper_conv2d(
        input, weight, bias, slope, *astuple(geometry)[-6:], tile
    )


def drawn(geometry: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = geometry
    generator = torch.Generator("cuda").manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator).to(dtype)

    return (
        normal(g.batch, g.height, g.width, g.channels).permute(0, 3, 1, 2),
        normal(g.filters, g.kernel_height, g.kernel_width, g.channels).permute(0, 3, 1, 2),
        normal(g.filters),
    )


@pytest.fixture(autouse=True)
def operators() -> None:
    compiled = pytest.importorskip("fastgen.ops.compiled")
    if not compiled.has_cutlass():
        pytest.skip("built without CUTLASS")


WIDE = [
    Geometry(8, 128, 33, 31, 192, padding_height=1, padding_width=1),
    Geometry(5, 64, 17, 19, 72, kernel_height=1, kernel_width=1),
    replace(DCGAN, batch=16, channels=256, filters=512),
]


@pytest.mark.parametrize("tile", range(len(TILES)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_as_accurate_as_pytorch(dtype: torch.dtype, tile: int) -> None:
    for geometry in (*WIDE, *GEOMETRIES):
        input, weight, bias = drawn(geometry, dtype)
        for b in (bias, None):
            exact = geometry.convolved(
                input.double(), weight.double(), None if b is None else b.double()
            )
            for slope in (0.0, 0.2, 1.0):
                truth = F.leaky_relu(exact, slope)
                theirs = F.leaky_relu(geometry.convolved(input, weight, b), slope)
                # The allocator gives this memory to the output: what is not written shows.
                poison = torch.full_like(theirs, float("nan"))
                del poison
                found = ours(geometry, input, weight, b, slope, tile)
                assert found.shape == truth.shape
                assert found.is_contiguous(memory_format=torch.channels_last)
                rounding = float(truth.abs().max()) * torch.finfo(dtype).eps
                allowed = 2 * float((theirs - truth).abs().max()) + rounding
                worst = float((found - truth).abs().max())
                assert worst <= allowed, (geometry, slope, b is None)


def test_nan_goes_through_and_an_empty_batch_works() -> None:
    geometry = WIDE[0]
    input, weight, bias = drawn(geometry, torch.bfloat16)
    input[0, 0, 0, 0] = float("nan")
    found = ours(geometry, input, weight, bias, 0.0, 0)
    assert found[0, :, :2, :2].isnan().all()
    assert not found[1:].isnan().any()
    assert ours(geometry, input[:0], weight, bias, 0.2, 0).shape == (0, 192, 33, 31)


def test_captured_in_a_graph_it_computes_the_same() -> None:
    geometry = WIDE[0]
    input, weight, bias = drawn(geometry, torch.bfloat16)
    for tile in range(len(TILES)):
        direct = ours(geometry, input, weight, bias, 0.2, tile)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ours(geometry, input, weight, bias, 0.2, tile)
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, direct)


def test_more_than_two_to_the_31_elements() -> None:
    geometry = Geometry(8200, 64, 64, 64, 8, padding_height=1, padding_width=1)
    input, weight, bias = drawn(replace(geometry, batch=1), torch.bfloat16)
    last = input
    many = torch.zeros(8200, 64, 64, 64, dtype=torch.bfloat16, device="cuda").to(
        memory_format=torch.channels_last
    )
    many[-1] = last[0]
    assert many.numel() > 1 << 31
    found = ours(geometry, many, weight, bias, 0.2, 0)
    assert torch.equal(found[-1:], ours(geometry, last, weight, bias, 0.2, 0))
    assert torch.equal(found[0], F.leaky_relu(bias, 0.2)[:, None, None].expand(8, 64, 64))


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    geometry = WIDE[0]
    input, weight, bias = drawn(geometry, torch.bfloat16)
    with pytest.raises(RuntimeError, match="channels_last"):
        ours(geometry, input.contiguous(), weight, bias, 0.2, 0)
    with pytest.raises(RuntimeError, match="float32"):
        ours(geometry, input.float(), weight.float(), None, 0.2, 0)
    with pytest.raises(RuntimeError, match=r"tile must lie in \[0, 3\)"):
        ours(geometry, input, weight, bias, 0.2, 3)
    odd, few, _ = drawn(replace(geometry, channels=12), torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"multiples of 8.*input channels 12"):
        ours(geometry, odd, few, bias, 0.2, 0)
    shifted = torch.empty(input.numel() + 1, dtype=torch.bfloat16, device="cuda")[1:]
    shifted = shifted.view(8, 33, 31, 128).permute(0, 3, 1, 2)
    with pytest.raises(RuntimeError, match="16-byte"):
        ours(geometry, shifted, weight, bias, 0.2, 0)
