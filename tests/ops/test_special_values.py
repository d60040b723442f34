"""NaN, infinity, zeros of both signs and subnormal numbers, as PyTorch's own composition has them.

Documented in docs/cpu.md: NaN goes through every operation and its gradients; the mask takes the
slope where the output is not above 0 (0, -0.0 and NaN); subnormal numbers are kept.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cpu_backends import BACKENDS
from torch import Tensor

import fastgen
from fastgen.ops import reference, torch_convolution
from fastgen.ops.geometry import Geometry

INFINITY, NAN = float("inf"), float("nan")
SUBNORMAL = 1e-40  # in float32 and bfloat16
SPECIAL = [NAN, INFINITY, -INFINITY, 0.0, -0.0, SUBNORMAL, -SUBNORMAL, 3e38, -3e38, 1.5, -1.5]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"


def assert_same_values(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding, with NaN, infinities and the signs of zeros in the same places."""
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=2e-2, atol=1e-6)
    zeros = (ours == 0) & (theirs == 0)
    assert torch.equal(ours.signbit()[zeros], theirs.signbit()[zeros])


def every_pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each special value beside each, long enough for vectors and a remainder."""
    values = torch.tensor(SPECIAL * 7, dtype=torch.float64).to(dtype)
    return torch.cartesian_prod(values, values).unbind(-1)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BACKENDS)
def test_bias_leaky_relu_and_its_gradient(name, dtype, slope):
    values, grad = (t.reshape(-1, 1, 11, 7) for t in every_pair(dtype))
    for layout in (torch.contiguous_format, torch.channels_last):
        for channels in (1, 11):
            x, g = (
                t.reshape(-1, channels, 11 // channels, 7).contiguous(memory_format=layout)
                for t in (values, grad)
            )
            leaves = [x.clone().requires_grad_() for _ in range(2)]
            ours = fastgen.ops.bias_leaky_relu(leaves[0], None, slope, backend=name)
            theirs = reference.bias_leaky_relu(leaves[1], None, slope)
            assert_same_values(ours.detach(), theirs.detach())
            (through,) = torch.autograd.grad(ours, leaves[0], g)
            # From the output, as documented; PyTorch's looks at the input, which has the same sign
            # but where a slope of 0 has lost it: 0 times infinity is NaN in both.
            expected = torch.where(ours.detach() > 0, g, g * slope if slope != 1 else g)
            assert_same_values(through, expected)
            (other,) = torch.autograd.grad(theirs, leaves[1], g)
            same = (
                theirs.detach().isfinite() if slope == 0 else torch.ones_like(x, dtype=torch.bool)
            )
            assert_same_values(through[same], other[same])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BACKENDS)
def test_the_sum_of_a_bias_gradient_has_pytorchs_infinities(name, dtype):
    x = torch.randn(3, 5, 4, 6).to(dtype)
    g = torch.randn(3, 5, 4, 6).to(dtype)
    g[0, 1, 2, 3], g[1, 2, 0, 0], g[2, 3, 1, 1], g[0, 3, 0, 5] = NAN, INFINITY, INFINITY, -INFINITY
    b = torch.zeros(5, dtype=dtype)
    totals = []
    for operation in (
        partial(fastgen.ops.bias_leaky_relu, backend=name),
        reference.bias_leaky_relu,
    ):
        leaf = b.clone().requires_grad_()
        totals.append(torch.autograd.grad(operation(x, leaf, 0.2), leaf, g)[0])
    assert totals[0].isnan().tolist() == [False, True, False, True, False]
    assert totals[0].isinf().tolist() == [False, False, True, False, False]
    torch.testing.assert_close(*totals, equal_nan=True, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("picture", [3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", [CONV, UP])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_convolution_spreads_a_bad_number_where_pytorchs_does(
    name, operation, dtype, picture, value, slope
):
    for layout in (torch.contiguous_format, torch.channels_last):
        inner, outer = (picture, 16) if operation == CONV else (16, picture)
        x = torch.randn(2, inner, 9, 8).to(dtype).contiguous(memory_format=layout)
        shape = (outer, inner, 4, 4) if operation == CONV else (inner, outer, 4, 4)
        # All positive weights: an infinity meets no zero and no infinity of the other sign.
        w = (torch.rand(shape) + 0.1).to(dtype).contiguous(memory_format=layout)
        x[1, inner - 1, 4, 3] = value
        options = {"stride": 2, "padding": 1, "negative_slope": slope}
        ours = getattr(fastgen.ops, operation)(x, w, None, **options, backend=name)
        exact = getattr(reference, operation)(x.double(), w.double(), None, **options)
        bad, exactly = ~ours.isfinite(), ~exact.isfinite()
        # Nothing bad is lost. Taps that a kernel pads with zeros, as oneDNN and the stride phases
        # do, may spread it a little further: zero times NaN is NaN.
        assert bad[exactly].all()
        reached = F.max_pool2d(exactly.amax(1, keepdim=True).float(), 5, 1, 2).bool()
        assert not bad[~reached.expand_as(bad)].any()
        if value != value:
            assert ours[exactly].isnan().all()
        assert ours[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BACKENDS)
def test_reparameterize_kl(name, dtype):
    mu, logvar = (t.reshape(-1, 11) for t in every_pair(dtype))
    results = []
    for operation in (
        partial(fastgen.ops.reparameterize_kl, backend=name),
        reference.reparameterize_kl,
    ):
        leaves = [t.detach().clone().requires_grad_() for t in (mu, logvar)]
        wide = dtype if operation is not reference.reparameterize_kl else torch.float64
        z, kl = operation(*(t.to(wide) for t in leaves), seed=torch.tensor(3))
        results.append((z.detach(), kl.detach()))
    (z, kl), (exact_z, exact_kl) = results
    assert torch.equal(z.isnan(), exact_z.isnan())
    # What leaves the dtype's range is infinite; float64 ends later.
    limit = torch.finfo(dtype).max if dtype != torch.float64 else INFINITY
    overflows = exact_z.abs() > limit
    assert z[overflows].isinf().all()
    finite = exact_z.isfinite() & ~overflows
    torch.testing.assert_close(
        z[finite].double(),
        exact_z[finite],
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
        atol=1e-6,
    )
    bad = exact_kl.isnan()
    assert kl[bad].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BACKENDS)
def test_subnormal_numbers_are_kept(name, dtype):
    tiny = torch.finfo(dtype).tiny / 16
    x = torch.full((2, 3, 5, 5), -tiny, dtype=dtype)
    y = fastgen.ops.bias_leaky_relu(x, None, 0.25, backend=name)
    assert torch.equal(y, x / 4)
    assert (y != 0).all()
    mu = torch.full((3, 40), tiny, dtype=dtype)
    z = fastgen.ops.reparameterize(mu, torch.full_like(mu, -INFINITY), seed=1, backend=name)
    reached = (z - mu).abs()
    assert (reached < 1e-30).all()  # a deviation of 0, or of the least that the kernels compute


@pytest.mark.parametrize("size", [3, 9, 20])  # rows, short planes, planes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BACKENDS)
def test_subnormal_gradients_are_kept(name, dtype, size):
    tiny = torch.finfo(dtype).tiny / 16
    x = torch.full((2, 3, size, size), -1.0, dtype=dtype, requires_grad=True)
    bias = torch.zeros(3, dtype=dtype, requires_grad=True)
    y = fastgen.ops.bias_leaky_relu(x, bias, 0.25, backend=name)
    grad, total = torch.autograd.grad(y, (x, bias), torch.full_like(y, tiny))
    assert (grad == tiny / 4).all()
    torch.testing.assert_close(total, grad.sum((0, 2, 3)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 3), (1, 3)])
def test_a_weight_gradient_of_one_pixel_takes_no_foreign_memory(kernel, stride, transposed):
    """oneDNN's in bfloat16 does, where the stride exceeds the kernel: poison lies around."""
    name = UP if transposed else CONV
    for _ in range(20):
        shape = (1, 16, 1, 1) if transposed else (1, 2, kernel, kernel)
        x = torch.randn(shape).bfloat16()
        w = torch.randn(16, 2, kernel, kernel).bfloat16().requires_grad_()
        for count in (1, 4, 16, 64, 256, 1024):
            poison = [torch.full((count,), NAN) for _ in range(12)]
            del poison
        y = getattr(fastgen.ops, name)(x, w, None, stride, backend="torch")
        (gradient,) = torch.autograd.grad(y.sum(), w)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (4, 2, 2), (4, 3, 2)])
def test_a_weight_gradient_of_one_column_takes_no_foreign_memory(
    kernel, stride, padding, transposed
):
    """oneDNN's in bfloat16 does, where the stride leaves columns out."""
    low, left_over = divmod(8 + 2 * padding - kernel, stride)
    shapes = (1, 16, 8, 1), (1, 16, low + 1, 1)
    beyond = (left_over, (1 + 2 * padding - kernel) % stride) if transposed else (0, 0)
    geometry = Geometry((stride,) * 2, (padding,) * 2, (1, 1), 1, transposed, beyond)
    for _ in range(20):
        high, low = (_within_poison(torch.randn(shape).bfloat16()) for shape in shapes)
        w = torch.randn(16, 16, kernel, kernel).bfloat16()
        operands = (low, high) if transposed else (high, low)
        gradient = torch_convolution.weight_gradient(*operands, w, geometry)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_gradient_of_a_picture_within_a_stride_takes_no_foreign_memory(transposed):
    """oneDNN's in bfloat16 does, of two columns with stride 3."""
    beyond = (0, 1) if transposed else (0, 0)
    geometry = Geometry((3, 3), (0, 1), (1, 1), 1, transposed, beyond)
    for _ in range(20):
        high = _within_poison(torch.randn(3, 16, 5, 2).bfloat16())
        low = _within_poison(torch.randn(3, 8, 2, 1).bfloat16())
        w = torch.randn(8, 16, 2, 3).bfloat16()
        operands = (low, high) if transposed else (high, low)
        gradient = torch_convolution.weight_gradient(*operands, w, geometry)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 100


def _within_poison(tensor: torch.Tensor) -> torch.Tensor:
    memory = torch.full((tensor.numel() + 4096,), NAN, dtype=tensor.dtype)
    place = memory[2048 : 2048 + tensor.numel()].view(tensor.shape)
    return place.copy_(tensor)
