"""Large results of the CPU kernels take the memory of those that went."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import torch
import torch.utils.checkpoint

import fastgen
from fastgen.ops import compiled

pytestmark = pytest.mark.skipif(
    compiled.missing("cpu") is not None, reason="built without C++ kernels"
)
LARGE = (8, 16, 128, 128)  # 8 MiB in float32


def activated(x: torch.Tensor) -> torch.Tensor:
    return fastgen.ops.bias_leaky_relu(x, torch.ones(x.shape[1]), backend="cpp")


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    compiled.forget_kept_memory()
    yield
    compiled.forget_kept_memory()


def test_a_result_takes_the_memory_of_one_that_went():
    x = torch.randn(LARGE)
    first = activated(x)
    place = first.data_ptr()
    assert compiled.kept_bytes() == 0
    del first
    assert compiled.kept_bytes() >= 8 << 20
    second = activated(-x)
    assert second.data_ptr() == place
    assert compiled.kept_bytes() == 0
    torch.testing.assert_close(second, torch.nn.functional.leaky_relu(1 - x, 0.2))


def test_no_two_living_results_share_memory():
    x = torch.randn(LARGE)
    for _ in range(3):
        alive = [activated(x * k) for k in range(1, 6)]
        assert len({y.data_ptr() for y in alive}) == 5
        for k, y in enumerate(alive, start=1):
            torch.testing.assert_close(y, torch.nn.functional.leaky_relu(k * x + 1, 0.2))


def test_a_view_keeps_the_memory_of_its_result():
    x = torch.randn(LARGE)
    view = activated(x)[3, 5]
    others = [activated(x.clone()) for _ in range(4)]
    assert others
    torch.testing.assert_close(view, torch.nn.functional.leaky_relu(x[3, 5] + 1, 0.2))


def test_layouts_and_sizes_are_those_of_any_result():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(LARGE).contiguous(memory_format=layout)
        for _ in range(2):
            y = activated(x)
            assert y.is_contiguous(memory_format=layout)
            assert y.shape == x.shape
            assert y.data_ptr() % 64 == 0
    # A block a quarter too large serves, a larger one does not.
    del y
    compiled.forget_kept_memory()
    place = activated(torch.randn(10, 16, 128, 128)).data_ptr()
    assert activated(torch.randn(9, 16, 128, 128)).data_ptr() == place
    assert activated(torch.randn(5, 16, 128, 128)).data_ptr() != place


def test_small_results_are_left_to_the_c_library():
    activated(torch.randn(2, 3, 5, 5))
    assert compiled.kept_bytes() == 0


@pytest.mark.parametrize(("limit", "kept"), [("0", 0), ("20", 2), ("1000", 5)])
def test_the_limit_is_kept(limit, kept):
    code = f"""
import torch, fastgen
from fastgen.ops import compiled
x = torch.randn({LARGE})
alive = [fastgen.ops.bias_leaky_relu(x, torch.ones(16), backend="cpp") for _ in range(5)]
del alive
print(compiled.kept_bytes() >> 20)
compiled.forget_kept_memory()
print(compiled.kept_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "FASTGEN_KEEP_MB": limit},
    )  # fmt: skip
    assert done.stdout.split() == [str(8 * kept), "0"]


def test_many_threads_take_and_give():
    from concurrent.futures import ThreadPoolExecutor

    x = torch.randn(LARGE)
    expected = torch.nn.functional.leaky_relu(x + 1, 0.2)

    def work(_: int) -> bool:
        return all(torch.allclose(activated(x), expected) for _ in range(6))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(12)))


def test_autograd_and_checkpoints_take_such_results():
    x = torch.randn(LARGE, requires_grad=True)
    y = activated(x)
    y.square().sum().backward()
    torch.testing.assert_close(
        x.grad, torch.where(x + 1 > 0, 2 * (x + 1), 2 * 0.04 * (x + 1)).detach()
    )
    copied = torch.utils.checkpoint.checkpoint(activated, x, use_reentrant=False)
    assert torch.equal(copied, y)
    shared = y.detach().share_memory_()
    assert torch.equal(shared, y)
    with pytest.raises(RuntimeError, match="resizable"):
        y.detach().resize_(2 * y.numel())
