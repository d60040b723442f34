"""Backend "cpp": the operators themselves, the versions of their kernels, threads, and the rule."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cpu_programs import chosen
from torch.autograd import gradcheck, gradgradcheck

import fastgen
from fastgen.ops import compiled, routing
from fastgen.ops.geometry import Geometry
from fastgen.ops.philox import normal

pytestmark = pytest.mark.skipif(
    compiled.missing("cpu") is not None, reason=str(compiled.missing("cpu"))
)
SEED = torch.tensor(-5)


def calls(dtype: torch.dtype) -> list[tuple[str, tuple]]:
    x = torch.randn(3, 5, 7, 6).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    b, grad_kl = torch.randn(5).to(dtype), torch.randn(3, dtype=torch.promote_types(dtype, B32))
    row = torch.randn(3, 10).to(dtype)
    half = row.chunk(2, 1)[0]
    return [
        ("bias_leaky_relu", (x, b, 0.2)),
        ("bias_leaky_relu", (last, None, 0.2)),
        ("bias_leaky_relu_", (last.clone(), b, 0.2)),
        ("leaky_relu_mask", (x, None, x, 0.2)),
        ("leaky_relu_mask", (x, b, last, 0.2)),
        ("leaky_relu_mask_", (x.clone(), b, x, 0.2)),
        ("leaky_relu_mask_sum", (last, None, last, 0.2)),
        ("leaky_relu_mask_sum", (last, None, x, 0.2)),
        ("leaky_relu_mask_sum", (row, None, row, 0.2)),
        ("reparameterize", (half, half, SEED)),
        ("reparameterize_kl", (x, x, SEED)),
        ("reparameterize_backward", (x, grad_kl, last, last, SEED)),
        ("reparameterize_backward", (None, grad_kl, row, row, SEED)),
        ("scaled_noise", (x, last, SEED)),
    ]


B32 = torch.float32
NAMES = [name for name, _ in calls(B32)]


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_operators_pass_opcheck(index, dtype):
    """Schema, fake and absence of autograd; aliasing and mutation as declared."""
    name, arguments = calls(dtype)[index]
    torch.library.opcheck(getattr(torch.ops.fastgen, name).default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_gradient_in_another_order_of_memory_is_masked_in_that_of_the_output(dtype):
    """As a flatten behind a layer gives it back."""
    o, layouts = torch.ops.fastgen, (torch.contiguous_format, torch.channels_last)
    for shape in ((3, 5, 7, 6), (2, 64, 33, 20), (2, 1, 4, 4), (2, 6, 1, 1), (0, 3, 4, 4)):
        g, y, shift = (torch.randn(s).to(dtype) for s in (shape, shape, shape[1]))
        expected = o.leaky_relu_mask(g, shift, y, 0.2), *o.leaky_relu_mask_sum(g, None, y, 0.2)
        wide = torch.stack((g, g), -1)[..., 0]  # every second number of a memory
        for of_g, of_y in ((0, 1), (1, 0), (None, 0), (None, 1)):
            grad = wide if of_g is None else g.contiguous(memory_format=layouts[of_g])
            output = y.contiguous(memory_format=layouts[of_y])
            before = grad.clone()
            results = (
                o.leaky_relu_mask(grad, shift, output, 0.2),
                *o.leaky_relu_mask_sum(grad, None, output, 0.2),
            )
            for ours, other in zip(results[:2], expected[:2], strict=True):
                assert ours.stride() == output.stride()
                assert torch.equal(ours, other)
            torch.testing.assert_close(results[2], expected[2])
            assert torch.equal(grad, before)


SHAPES = [(4, 3), (3, 2, 3, 3), (2, 5, 1, 2), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_gradients_pass_gradcheck(shape):
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, shape[1])]
    pair = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def activation(x, b):
        return fastgen.ops.bias_leaky_relu(x, b, backend="cpp")

    def noise(mu, logvar):
        return fastgen.ops.reparameterize_kl(mu, logvar, seed=SEED, backend="cpp")

    for check in (gradcheck, gradgradcheck):
        assert check(activation, leaves)
        assert check(noise, pair)


def test_compiles_without_a_graph_break_and_equals_eager():
    torch.compiler.reset()
    x, b = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)

    def run(function):
        y, z, kl = function(x, b)
        return (
            y,
            z,
            kl,
            *torch.autograd.grad(y.square().sum() + z.square().sum() + kl.sum(), (x, b)),
        )

    def function(x, b):
        y = fastgen.ops.bias_leaky_relu(x, b, backend="cpp")
        z, kl = fastgen.ops.reparameterize_kl(y, x, seed=SEED, backend="cpp")
        return y, z, kl

    traced = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(run(traced), run(function), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
def test_the_noise_is_that_of_every_backend(seed):
    zeros = torch.zeros(7, 1003)
    ours = fastgen.ops.reparameterize(zeros, zeros, seed=seed, backend="cpp")
    # The angle of PyTorch's own is rounded once more: 2^-24 of up to 2 pi, times the radius.
    torch.testing.assert_close(ours, normal(zeros.shape, torch.tensor(seed)), rtol=4e-7, atol=3e-6)


PROGRAM = """
import sys, torch, fastgen
from fastgen.ops import compiled
torch.manual_seed(0)
results = []
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for shape in ((40000, 3), (9, 130, 11, 7), (3, 2, 300, 200), (2, 70001)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, y, g = torch.randn(3, *shape).to(dtype).unbind()
            b = torch.randn(shape[1]).to(dtype)
            if x.dim() == 4:
                x, y, g = (t.contiguous(memory_format=layout) for t in (x, y, g))
            o, seed = torch.ops.fastgen, torch.tensor(11)
            compiled.missing("cpu")
            grad_kl = torch.randn(len(x), dtype=torch.promote_types(dtype, torch.float32))
            results += [
                o.bias_leaky_relu(x, b, 0.2), o.leaky_relu_mask(g, b, y, 0.2),
                *o.leaky_relu_mask_sum(g, None, y, 0.2), *o.reparameterize_kl(x, y, seed),
                o.scaled_noise(g, y, seed), *o.reparameterize_backward(g, grad_kl, x, y, seed),
            ]
"""


def program(then: str, folder, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + then, str(folder)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions_agree_within_rounding(tmp_path):
    """Every one that this CPU has; of float32's three the differences are those of a fused product
    and sum, which the portable one rounds twice."""
    then = "torch.save(results, sys.argv[1] + '/' + compiled.cpu_version() + '.pt')"
    highest = compiled.CPU_VERSIONS.index(compiled.cpu_version())
    found = {}
    for version in compiled.CPU_VERSIONS[: highest + 1]:
        program(then, tmp_path, FASTGEN_CPU=version)
        # Written by this very test.
        found[version] = torch.load(tmp_path / f"{version}.pt", weights_only=True)
    for version, results in found.items():
        for ours, other in zip(results, found["portable"], strict=True):
            eps = torch.finfo(ours.dtype).eps
            torch.testing.assert_close(ours, other, rtol=2 * eps, atol=2e-6 + eps)
        if version.startswith("avx512"):
            assert all(map(torch.equal, results, found["avx512"]))


def test_the_number_of_threads_changes_no_bit(tmp_path):
    # The program again for each number, in one process.
    then = """
first = None
for threads in (1, 2, 3, 4):
    torch.set_num_threads(threads)
    exec(PROGRAM.split("results = []")[0].split("torch.manual_seed")[0])
    torch.manual_seed(0)
    results = []
    exec("for dtype in" + PROGRAM.split("for dtype in", 1)[1])
    if first is None:
        first = results
    assert all(map(torch.equal, results, first)), threads
"""
    program(f"\nPROGRAM = {PROGRAM!r}\n{then}", tmp_path)


def test_the_variable_lowers_the_version_and_refuses_what_it_does_not_know(tmp_path):
    assert program("print(compiled.cpu_version())", tmp_path, FASTGEN_CPU="portable").split() == [
        "portable"
    ]
    code = "from fastgen.ops import compiled; compiled.build_information()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTGEN_CPU": "avx1024"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "FASTGEN_CPU must be one of 'portable', 'avx2'" in done.stderr


def last_of(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def test_the_rule_takes_one_pass_where_it_was_measured_to_be_faster():
    x, b = torch.randn(4, 3, 5, 5), torch.randn(3)
    middle, large = torch.empty(8, 16, 16, 16), torch.empty(64, 64, 32, 32)
    ours, plain = "one pass (C++)", "plain PyTorch"
    expected = {
        ("forward", x, b, 0.2): ours,
        ("forward", x, None, 0.2): plain,
        ("forward", large, None, 0.2): ours,
        ("forward", x.half(), b.half(), 0.2): plain,
        ("forward", x.double(), b.double(), 0.2): plain,
        ("mask", x, None, x, 0.2): plain,
        ("mask", x, b, x, 0.2): ours,
        ("mask", large, None, large, 0.2): ours,
        ("mask", middle, None, middle, 0.2): plain,
        ("mask", middle.bfloat16(), None, middle.bfloat16(), 0.2): ours,
        ("mask_sum", x, x, 0.2): plain,
        ("mask_sum", x.bfloat16(), x.bfloat16(), 0.2): plain,
        ("mask_sum", middle, middle, 0.2): plain,
        ("mask_sum", middle.bfloat16(), middle.bfloat16(), 0.2): ours,
        ("mask_sum", large, large, 0.2): ours,
        ("mask_sum", x.double(), x.double(), 0.2): plain,
        ("mask", x.double(), b.double(), x.double(), 0.2): plain,
    }
    # What `when` says in numbers; one number less is the other's.
    for dtype, numbers in ((torch.float32, 1 << 18), (torch.bfloat16, 1 << 19)):
        for count, name in ((numbers, ours), (numbers - 1, plain)):
            expected["forward", torch.zeros(1, count, dtype=dtype), None, 0.2] = name
    for dtype, numbers in ((torch.float32, 1 << 17), (torch.bfloat16, 1 << 15)):
        for count, name in ((numbers, ours), (numbers - 1, plain)):
            t = torch.zeros(1, count, dtype=dtype)
            expected["mask_sum", t, t, 0.2] = name
            if dtype == torch.bfloat16:
                expected["mask", t, None, t, 0.2] = name
    # Orders of memory that differ.
    for numbers, name in ((1 << 12, ours), ((1 << 12) - 2, plain)):
        t = torch.zeros(1, 2, 1, numbers // 2)
        for one, other in ((t, last_of(t)), (last_of(t), t)):
            expected["mask", one, None, other, 0.2] = expected["mask_sum", one, other, 0.2] = name
        expected["mask", last_of(t), None, last_of(t), 0.2] = plain
        expected["mask_sum", t.double(), last_of(t.double()), 0.2] = plain
    for call, name in expected.items():
        assert chosen("bias_leaky_relu", *call) == name, routing.describe("", call[0], call[1:])
    for dtype, name in ((torch.float32, ours), (torch.float64, plain), (torch.float16, ours)):
        mu = torch.randn(4, 3).to(dtype)
        assert chosen("reparameterize", "forward_kl", mu, mu, SEED) == name
        assert chosen("reparameterize", "backward", None, torch.ones(4), mu, mu, SEED) == name


def test_the_rule_takes_a_pass_of_its_own_behind_transposed_convolutions_that_stand_apart():
    x, b = torch.zeros(2, 16, 8, 8), torch.zeros(32)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1, True, (0, 0))
    own, plain = "convolution + epilogue (C++)", "plain PyTorch"
    for kernel, groups, dtype, name in (
        (3, 2, torch.float32, own),
        (3, 2, torch.bfloat16, own),
        (3, 2, torch.float64, plain),
        (5, 1, torch.float32, own),
        (5, 4, torch.float16, plain),
    ):
        w = torch.zeros(16, 32 // groups, kernel, kernel)
        call = [t.to(dtype) for t in (x, w, b)]
        found = chosen(
            "conv_transpose2d_bias_leaky_relu", "forward", *call, 0.2,
            geometry._replace(groups=groups),
        )  # fmt: skip
        assert found == name, (kernel, groups, dtype)
    pixels, w = torch.zeros(80, 16, 1, 1), torch.zeros(16, 32, 4, 4)
    call = (pixels, w, b, 0.2, geometry)
    found = chosen("conv_transpose2d_bias_leaky_relu", "forward", *call)
    assert found == "matrix product (PyTorch)"


def test_large_results_lie_in_huge_pages_where_the_system_gives_them_on_demand():
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            setting = file.read()
    except OSError:
        setting = ""
    if "[madvise]" not in setting:
        pytest.skip("the system gives huge pages to all or to nobody")
    result = fastgen.ops.bias_leaky_relu(torch.randn(1, 40 << 20), None, backend="cpp")
    address, flags = result.data_ptr() + (4 << 20), ""
    with open("/proc/self/smaps") as file:
        inside = False
        for line in file:
            head = line.split(" ", 1)[0]
            if "-" in head and ":" not in head:
                low, high = (int(part, 16) for part in head.split("-"))
                inside = low <= address < high
            elif inside and line.startswith("VmFlags"):
                flags = line
    assert " hg" in flags, flags
