"""The CUDA bodies of bias_leaky_relu, every thread of every block on the host, sanitized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from host import build, result, run
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# outer, channels, inner: both passes, each with whole and broken vectors, one block and many, more
# columns than a block has threads, periods that share no factor with a vector.
SHAPES = [
    (1, 1, 1),
    (3, 1, 1),
    (17, 3, 1),
    (127, 5, 1),
    (1000, 8, 1),
    (301, 64, 1),
    (40, 129, 1),
    (9, 1031, 1),
    (5, 4096, 1),
    (2, 3, 7),
    (33, 17, 16),
    (3, 127, 49),
    (3, 2, 128),
    (2, 3, 257),
    (1, 5, 1000),
    (4, 2, 4099),
    (1, 1, 70001),
]


@pytest.fixture(scope="module")
def program() -> Path:
    return build("bias_leaky_relu", ["bias_leaky_relu_host.cpp"])


def bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16).numpy()


def tensor(folder: Path, name: str, dtype: torch.dtype) -> Tensor:
    kind = np.int32 if dtype == torch.float32 else np.int16
    return torch.from_numpy(result(folder, name, kind)).view(dtype)


def play(
    program: Path,
    folder: Path,
    operation: str,
    shape: tuple[int, int, int],
    dtype: str = "float32",
    wide: bool = True,
    shift: bool = True,
    in_place: bool = False,
    slope: float = 0.2,
    multiprocessors: int = 2,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Result and sum of the kernel, and of the formula in float64."""
    x, y = torch.randn(shape).to(DTYPES[dtype]), torch.randn(shape).to(DTYPES[dtype])
    s = torch.randn(shape[1]).to(DTYPES[dtype])
    inputs = {"input": bits(x)}
    if operation != "forward":
        inputs["output"] = bits(y)
    if shift:
        inputs["shift"] = bits(s)
    arguments = [operation, dtype, int(wide), int(shift), int(in_place), *shape, slope]
    run(program, [*arguments, 0 if wide else 1, multiprocessors], inputs, folder)

    exact = x.double() + (s.double()[:, None] if shift else 0)
    sign = exact if operation == "forward" else y
    exact = torch.where(sign > 0, exact, exact * float(np.float32(slope)))
    ours = tensor(folder, "result", DTYPES[dtype]).view(shape)
    if operation != "mask_sum":
        return ours, None, exact, None
    return ours, tensor(folder, "sum", DTYPES[dtype]), exact, exact.sum((0, 2))


def assert_right(results: tuple[Tensor, Tensor | None, Tensor, Tensor | None]) -> None:
    ours, ours_sum, exact, exact_sum = results
    rounding = torch.finfo(ours.dtype).eps / 2
    # One rounding to the dtype and two in float32; the result may be a difference, hence absolute.
    bound = rounding * exact.abs() + 3e-7 * (1 + exact.abs())
    assert ((ours.double() - exact).abs() <= bound).all()
    if exact_sum is not None:
        assert ours_sum is not None
        error = (ours_sum.double() - exact_sum).abs()
        # A few float32 roundings of partial sums, far below one missing element; subnormal results
        # of float16 are rounded to a multiple of 2^-24.
        summing = 2.0**-22 * exact.abs().sum((0, 2))
        assert (error <= rounding * exact_sum.abs() + summing + 2.0**-25).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", ["forward", "mask", "mask_sum"])
def test_every_shape_wide_and_misaligned(program, tmp_path, operation, shape):
    for wide in (True, False):
        assert_right(play(program, tmp_path, operation, shape, wide=wide))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_sixteen_bits(program, tmp_path, dtype, shape):
    for operation in ("forward", "mask_sum"):
        assert_right(play(program, tmp_path, operation, shape, dtype))
    assert_right(play(program, tmp_path, "mask_sum", shape, dtype, wide=False))


@pytest.mark.parametrize("slope", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(127, 5, 1), (2, 3, 257)])
def test_slopes_no_shift_and_in_place(program, tmp_path, shape, slope):
    for operation in ("forward", "mask", "mask_sum"):
        for shift, in_place in ((True, True), (False, True), (False, False)):
            assert_right(
                play(
                    program,
                    tmp_path,
                    operation,
                    shape,
                    shift=shift,
                    in_place=in_place,
                    slope=slope,
                )
            )


@pytest.mark.parametrize("shape", [(30000, 5, 1), (90, 700, 1), (50, 6, 300)])
def test_a_large_device_splits_the_work_and_sums_the_same(program, tmp_path, shape):
    """132 multiprocessors: many blocks a channel; every partial sum that is added was written."""
    for dtype in ("float32", "bfloat16"):
        assert_right(play(program, tmp_path, "mask_sum", shape, dtype, multiprocessors=132))
        partials = result(tmp_path, "partials")
        assert partials.size > shape[1]
        assert not np.isnan(partials).any()


def test_nan_infinity_and_negative_zero_follow_pytorch(program, tmp_path):
    special = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38]
    x = torch.tensor(special * 8)
    y = torch.tensor([value for value in special for _ in range(8)])
    for slope in (0.0, 0.2, 1.0):
        for operation, expected in (
            ("forward", torch.nn.functional.leaky_relu(x, slope)),
            ("mask", torch.ops.aten.leaky_relu_backward(x, y, slope, True)),
        ):
            inputs = {"input": bits(x)} | ({"output": bits(y)} if operation == "mask" else {})
            run(program, [operation, "float32", 1, 0, 0, 64, 1, 1, slope, 0, 2], inputs, tmp_path)
            ours = tensor(tmp_path, "result", torch.float32)
            torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


LARGE = [
    (33_554_435, 131, 1),
    (3, 3, 536_870_915),
    (33000, 3, 65537),
    (67_108_865, 64, 1),
    (131_073, 5, 32768),
]


@pytest.mark.parametrize("shape", LARGE)
def test_more_than_two_to_the_thirty_two_elements(program, tmp_path, shape):
    run(program, ["large", *shape], {}, tmp_path)
