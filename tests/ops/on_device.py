"""What the tests on a GPU share: the device, the backends that can run there, the accuracy rule.

`FASTGEN_REQUIRE_GPU=1` turns a missing device or backend from a skip into a failure.
`FASTGEN_TEST_DEVICE=cpu` runs what does not need CUDA itself on the CPU, to try the tests out (with
`TRITON_INTERPRET=1` the Triton kernels too).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from accuracy import root_mean_square
from torch import Tensor

from fastgen.ops.backend import BACKENDS

DEVICE = torch.device(os.environ.get("FASTGEN_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
REQUIRED = os.environ.get("FASTGEN_REQUIRE_GPU") == "1"
NO_DEVICE = (
    "torch sees no CUDA device (tests on a GPU run under pytest -m gpu)"
    if ON_GPU and not torch.cuda.is_available()
    else None
)

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative distance of whole tensors from float64 on the same inputs: what rounding explains.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TF32 = 2e-3


def skip_without_device() -> None:
    """Skip the module, or fail where a GPU is required; to be called while it is imported."""
    if NO_DEVICE is not None:
        if REQUIRED:
            pytest.fail(NO_DEVICE, pytrace=False)
        pytest.skip(NO_DEVICE, allow_module_level=True)


def available(backend: str) -> str:
    """The backend's name, if it can run on the device; else the test is skipped, or fails."""
    if backend == "auto":
        return backend
    entry = BACKENDS[backend]
    reason = entry.missing()
    if reason is None and not entry.runs_on(DEVICE.type, by_name=True):
        reason = f"backend {backend!r} does not run on {DEVICE.type}"
    if reason is not None:
        (pytest.fail if REQUIRED else pytest.skip)(f"backend {backend!r}: {reason}")
    return backend


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
    """Random tensors on the device, drawn from the same numbers whatever the dtype."""
    tensors = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]
    chosen = LAYOUTS[layout]
    return [t.contiguous(memory_format=chosen) if t.dim() == 4 else t for t in tensors]


def assert_close(result: Tensor, truth: Tensor, tolerance: float) -> None:
    """Within `tolerance` of a float64 truth as a whole, and eight times that at every number."""
    assert result.shape == truth.shape
    error = result.double() - truth.double()
    assert not error.isnan().any(), "NaN: a number was not written, or computed from poison"
    if truth.numel():
        distance = error.norm() / truth.double().norm().clamp_min(1e-30)
        assert distance <= tolerance, f"off by {distance:.2e}, allowed {tolerance:.0e}"
        worst = error.abs().max() / truth.abs().max().clamp_min(1e-30)
        assert worst <= 8 * tolerance, f"one number is off by {worst:.2e} of the largest"


def derivatives(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Output, first and second gradients, as `accuracy.derivatives`, with sums in float64: those
    of float16 numbers overflow.
    """
    inputs = [
        t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
    output = function(*inputs)
    first = torch.autograd.grad(output.double().square().sum() / 2, inputs, create_graph=True)
    scalar = sum(g.double().square().sum() for g in first)
    second = torch.autograd.grad(scalar, inputs, allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(second, inputs, strict=True)]
    return [t.detach() for t in (output, *first, *zeros)]


def _rounded_once(tensor: Tensor, rounding: float) -> Tensor:
    noise = torch.rand_like(tensor, dtype=torch.float64)
    return tensor.double() * (1 + rounding * (2 * noise - 1))


class _RoundedToTf32(torch.autograd.Function):
    """A number with 10 bits of fraction; its gradient goes through as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        fraction, exponent = torch.frexp(x)
        return torch.ldexp((fraction * 2**11).round(), exponent - 11)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _GradientRoundedToTf32(torch.autograd.Function):
    """The number itself; its gradient has 10 bits of fraction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _RoundedToTf32.apply(grads[0])


@contextmanager
def convolutions_in_tf32() -> Iterator[None]:
    """In float64 convolutions, round what tensor cores would: both operands of every product of the
    forward and of the backward. cuDNN computes some layers in float32 although TF32 is allowed.
    """

    def rounding(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def rounded(x: Tensor, w: Tensor, b: Tensor | None, *more: Any) -> Tensor:
            y = convolution(_RoundedToTf32.apply(x), _RoundedToTf32.apply(w), None, *more)
            y = _GradientRoundedToTf32.apply(y)
            return y if b is None else y + b.view(-1, 1, 1)

        return rounded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("conv2d", "conv_transpose2d"):
            patch.setattr(torch.nn.functional, name, rounding(getattr(torch.nn.functional, name)))
        yield


def assert_as_accurate_as_torch(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    rounding: float,
    *,
    tf32: bool = False,
) -> None:
    """The accuracy rule of `accuracy.py` on the device, through the second order.

    At most twice PyTorch's own error in the same dtype, plus one `rounding` of every input: that of
    the dtype, or TF32's where float32 convolutions may use it (`tf32`); PyTorch's own error is then
    at least that of all its products in TF32. Triton's interpreter cuts off where a GPU rounds,
    which is twice as much.
    """
    backend = getattr(ours, "keywords", {}).get("backend")
    rounding = 2 * rounding if INTERPRETED and backend in ("auto", "triton") else rounding
    exact = derivatives(theirs, [t.double() for t in tensors])
    baseline = derivatives(theirs, tensors)
    moved = derivatives(theirs, [_rounded_once(t, rounding) for t in tensors])
    with convolutions_in_tf32() if tf32 else nullcontext():
        model = derivatives(theirs, [t.double() for t in tensors])
    results = derivatives(ours, tensors)
    for place, (result, truth, near, theirs_, modelled) in enumerate(
        zip(results, exact, moved, baseline, model, strict=True)
    ):
        assert result.dtype == theirs_.dtype
        if truth.numel() == 0:
            continue
        one_rounding = root_mean_square(near - truth) + rounding * truth.abs().max()
        own = max(root_mean_square(each.double() - truth) for each in (theirs_, modelled))
        allowed = 2 * own + one_rounding
        error = root_mean_square(result.double() - truth)
        assert error <= allowed, f"result {place}: off by {error:.3e}, allowed {allowed:.3e}"
