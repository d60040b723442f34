"""csrc/formulas.h and the conversions of csrc/cuda/launch.h on the host, sanitized."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from host import build, result, run

from fastgen.ops.philox import WORD, normal, philox4x32, random_words

# Random123's known answers for philox4x32-10: counter, key, words (as in tests/ops/test_philox.py).
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.fixture(scope="module")
def program() -> Path:
    return build("formulas", ["formulas_host.cpp"])


def normal_in_float64(words: np.ndarray) -> np.ndarray:
    """Box-Muller in float64 from the float32 uniforms of pairs of words."""
    uniform = ((words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)).astype(float)
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)


def test_philox_known_answers(program, tmp_path):
    rows = [[int(word, 16) for word in line.split()] for line in KNOWN_ANSWERS.split("\n") if line]
    table = np.array(rows, dtype=np.uint32)
    run(program, ["philox", len(rows)], {"input": table[:, :6]}, tmp_path)
    np.testing.assert_array_equal(
        result(tmp_path, "output", np.uint32).reshape(-1, 4), table[:, 6:]
    )


def test_philox_equals_the_one_in_pytorch(program, tmp_path):
    random = torch.randint(0, WORD + 1, (1000, 6))
    run(program, ["philox", 1000], {"input": random.numpy().astype(np.uint32)}, tmp_path)
    counter, key = random[:, :4].unbind(1), random[:, 4:].unbind(1)
    expected = torch.stack(philox4x32(counter, key), dim=1)
    np.testing.assert_array_equal(result(tmp_path, "output", np.uint32), expected.flatten().numpy())


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), -0x123456789ABCDEF])
def test_words_and_normals_of_a_seed(program, tmp_path, seed):
    run(program, ["normals", 251, seed, 0], {}, tmp_path)
    words = result(tmp_path, "words", np.uint32)
    np.testing.assert_array_equal(words, random_words(1004, torch.tensor(seed)).flatten().numpy())

    ours = result(tmp_path, "normals")
    exact = normal_in_float64(words.reshape(-1, 2)).flatten()
    # Rounding errors of logarithm, root, sine and product; near a zero of the sine, absolute ones.
    np.testing.assert_allclose(ours, exact, rtol=4e-7, atol=1e-9)
    # PyTorch's own angle is rounded once more: 2^-24 of up to 2 pi, times the radius.
    theirs = normal(torch.Size((1004,)), torch.tensor(seed)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=4e-7, atol=6 * 2 * np.pi * 2.0**-24)


def test_counters_beyond_two_to_the_thirty_two(program, tmp_path):
    first = 2**32 - 2
    run(program, ["words", 5, 7, first], {}, tmp_path)
    groups = torch.arange(first, first + 5)
    zero = torch.zeros_like(groups)
    counter = (groups & WORD, groups >> 32, zero, zero)
    expected = torch.stack(philox4x32(counter, (torch.tensor(7), torch.tensor(0))), dim=1)
    words = result(tmp_path, "words", np.uint32)
    np.testing.assert_array_equal(words, expected.flatten().numpy())


def test_normals_at_the_ends_of_the_uniform_are_finite(program, tmp_path):
    ends = [0, 1, 2**31 - 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1]
    pairs = np.array([(a, b) for a in ends for b in ends], dtype=np.uint32)
    run(program, ["box_muller", len(pairs)], {"input": pairs}, tmp_path)
    ours = result(tmp_path, "output").reshape(-1, 2)
    np.testing.assert_allclose(ours, normal_in_float64(pairs), rtol=4e-7, atol=2e-15)


def test_coarse_normals_are_within_a_hundredth_of_a_rounding_to_sixteen_bits(program, tmp_path):
    ends = [0, 1, 2**31 - 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1]
    near_one = (2**32 - 2.0 ** np.linspace(0, 32, 5000)).clip(0, 2**32 - 1).astype(np.uint32)
    words = np.concatenate((ends, near_one, np.random.default_rng(0).integers(0, 2**32, 15000)))
    turns = np.concatenate((words[7:], ends))
    pairs = np.stack((words, turns), axis=1).astype(np.uint32)
    run(program, ["coarse_box_muller", len(pairs)], {"input": pairs}, tmp_path)
    ours = result(tmp_path, "output").reshape(-1, 2)
    exact = normal_in_float64(pairs)
    radius = np.sqrt((exact**2).sum(1, keepdims=True))
    error = np.abs(ours - exact)
    assert (error <= 5e-7 * radius + 2e-6).all()
    assert (error <= 2.0**-9 * radius).all()  # where the radius is as small as it gets, too


def expm1_minus(x):
    """e^x - 1 - x in float64, without cancellation."""
    series = sum(x**k / math.factorial(k) for k in range(2, 20))
    return np.where(np.abs(x) < 1, series, np.expm1(x) - x)


def test_coarse_exponentials(program, tmp_path):
    small = np.logspace(-18, -0.5, 500)
    logvar = np.concatenate((small, -small, np.linspace(-40, 40, 4001))).astype(np.float32)
    run(program, ["coarse", len(logvar)], {"input": logvar}, tmp_path)
    x = logvar.astype(float)
    growth = np.expm1(x)
    np.testing.assert_allclose(result(tmp_path, "deviation"), np.exp(x / 2), rtol=1.5e-6)
    np.testing.assert_allclose(result(tmp_path, "growth"), growth, rtol=2.0**-13, atol=0)
    exact = expm1_minus(x)
    np.testing.assert_allclose(result(tmp_path, "kl"), exact, rtol=2.0**-11, atol=0)
    error = np.abs(result(tmp_path, "kl") - exact)
    assert (error <= (2.0**-20 + 2.0**-24 * np.abs(x)) * (1 + np.exp(x)) + 2.0**-24 * exact).all()


def test_coarse_divergence_of_many_elements(program, tmp_path):
    """Small and large terms beside each other: what is right for a sum is so for none of them."""
    generator = np.random.default_rng(0)
    count = 20000
    size = generator.uniform(-20, 3, (count, 1)) + generator.uniform(-8, 0, (count, 8))
    sign = generator.choice((-1, 0, 1), (count, 8), p=(0.4, 0.2, 0.4))
    logvar = (sign * 2.0**size).astype(np.float32)
    mean = np.zeros((count, 8), dtype=np.float32)
    mean[1::2] = generator.standard_normal((count // 2, 8))
    run(program, ["coarse_kl", count], {"input": np.hstack((mean, logvar))}, tmp_path)
    x = logvar.astype(float)
    exact = (mean.astype(float) ** 2 + expm1_minus(x)).sum(1)
    error = np.abs(result(tmp_path, "output") - exact)
    assert (error <= 2.0**-10 * exact).all()
    bound = 2.0**-19 * (1 + np.exp(x)) + 2.0**-22 * np.abs(x)
    assert (error <= bound.sum(1) + 2.0**-22 * exact).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 200.0, -200.0])
def test_coarse_exponentials_beyond_float32(program, tmp_path, value):
    run(program, ["coarse", 1], {"input": np.array([value], dtype=np.float32)}, tmp_path)
    deviation, growth, kl = (result(tmp_path, n)[0] for n in ("deviation", "growth", "kl"))
    if math.isnan(value):
        assert math.isnan(deviation)
        assert math.isnan(growth)
        assert math.isnan(kl)
    else:
        large = value > 0
        assert deviation > 1e38 if large else deviation < 1e-38
        assert growth == (math.inf if large else -1)
        assert kl == math.inf or (value == -200 and kl == 199)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_leaky_relu_and_its_mask(program, tmp_path, slope):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0])
    pairs = torch.cat((torch.cartesian_prod(special, special), torch.randn(500, 2)))
    run(program, ["leaky_relu", len(pairs), slope], {"input": pairs.numpy()}, tmp_path)
    a, b = pairs.unbind(1)
    np.testing.assert_array_equal(
        result(tmp_path, "output"), torch.nn.functional.leaky_relu(a, slope).numpy()
    )
    np.testing.assert_array_equal(
        result(tmp_path, "masked"), torch.ops.aten.leaky_relu_backward(a, b, slope, True).numpy()
    )


def test_hyperbolic_tangent(program, tmp_path):
    """Within 3 units in the last place everywhere, and at the ends."""
    sizes = np.concatenate((np.geomspace(1e-38, 100, 200_000), np.linspace(0.4, 1, 100_000)))
    ends = np.array([0, 0.6, 9, 44, 45, 88, 89, 1e30, np.inf, np.nan])
    x = np.concatenate((sizes, ends)).astype(np.float32)
    x = np.concatenate((x, -x))
    run(program, ["tanh", len(x)], {"input": x}, tmp_path)
    ours, exact = result(tmp_path, "output"), np.tanh(x.astype(float))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(x))
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(x))
    there = ~np.isnan(x)
    units = np.spacing(np.abs(exact[there]).astype(np.float32))
    assert (np.abs(ours[there] - exact[there]) <= 3 * units).all()


def pairs_through(program, folder, formula, mu, logvar):
    pairs = torch.stack((mu, logvar), dim=1)
    run(program, [formula, len(mu), 0], {"input": pairs.numpy()}, folder)
    return torch.from_numpy(result(folder, "output")).double()


def test_kl_term_and_standard_deviation(program, tmp_path):
    mu, logvar = torch.randn(4000), torch.linspace(-60, 60, 4000)
    exact = mu.double().square() + torch.expm1(logvar.double()) - logvar.double()
    ours = pairs_through(program, tmp_path, "kl", mu, logvar)
    torch.testing.assert_close(ours, exact, rtol=4e-7, atol=0)

    ours = pairs_through(program, tmp_path, "deviation", mu, logvar)
    torch.testing.assert_close(ours, torch.exp(logvar.double() / 2), rtol=3e-7, atol=0)


def test_kl_term_keeps_its_digits_where_it_is_small(program, tmp_path):
    """e^l - 1 - l is about l^2 / 2: as the difference of three numbers it would be all rounding."""
    logvar = torch.cat((torch.logspace(-18, -0.5, 500), -torch.logspace(-18, -0.5, 500)))
    x = logvar.double()
    series = sum(x**k / math.factorial(k) for k in range(2, 20))
    ours = pairs_through(program, tmp_path, "kl", torch.zeros(1000), logvar)
    torch.testing.assert_close(ours, series, rtol=4e-7, atol=0)


def test_exponentials_beyond_float32(program, tmp_path):
    logvar = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 100.0, -1000.0, 0.0])
    zeros = torch.zeros(8)
    kl = pairs_through(program, tmp_path, "kl", zeros, logvar)
    assert kl.isnan().tolist() == [True] + [False] * 7
    assert (kl[[1, 3, 5]] == torch.inf).all()
    assert kl[[2, 4, 6, 7]].tolist() == [torch.inf, float(torch.tensor(1e30)), 999, 0]
    deviation = pairs_through(program, tmp_path, "deviation", zeros, logvar)
    assert deviation[0].isnan()
    assert (deviation[[1, 3]] > 1e38).all()
    assert (deviation[[2, 4, 6]] < 1e-37).all()
    assert deviation[7] == 1

    low = torch.linspace(-900, -60, 1000)
    kl = pairs_through(program, tmp_path, "kl", torch.zeros(1000), low)
    torch.testing.assert_close(kl, -1 - low.double(), rtol=4e-7, atol=0)


def test_sixteen_bit_conversions_are_pytorchs(program, tmp_path):
    patterns = torch.arange(-32768, 32768, dtype=torch.int16)
    patterns = torch.cat((patterns[32768:], patterns[:32768]))
    values = torch.cat(
        [
            torch.randint(-(2**31), 2**31, (50_000,)).to(torch.int32).view(torch.float32),
            torch.randn(20_000) * 2.0 ** torch.randint(-28, 18, (20_000,)),
            # Half way between neighbours, where ties go to the even one, and around the largest.
            (torch.arange(20_000) + 0.5) * 2.0**-24,
            1 + (torch.arange(4000) + 0.5) * 2.0**-10,
            1 + (torch.arange(4000) + 0.5) * 2.0**-7,
            torch.tensor([65504.0, 65519.9, 65520.0, 3.4e38, torch.inf, -torch.inf, 0.0, -0.0]),
        ]
    )
    run(program, ["conversions", len(values)], {"input": values.numpy()}, tmp_path)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        np.testing.assert_array_equal(
            result(tmp_path, f"from_{name}"), patterns.view(dtype).float().numpy()
        )
        bits = torch.from_numpy(result(tmp_path, f"to_{name}", np.int16)).view(dtype)
        expected = values.to(dtype)
        torch.testing.assert_close(bits, expected, rtol=0, atol=0, equal_nan=True)
        there = ~expected.isnan()
        assert torch.equal(bits.view(torch.int16)[there], expected.view(torch.int16)[there])


def test_division_by_multiplication_is_exact_below_two_to_the_thirty_one(program, tmp_path):
    divisors = torch.cat(
        (torch.arange(1, 300), 2 ** torch.arange(8, 31), torch.tensor([2**31 - 1]))
    )
    divisors = torch.cat((divisors, torch.randint(1, 2**31, (300,)), 2 ** torch.arange(8, 31) + 1))
    numerators = [torch.randint(0, 2**31, (len(divisors),)) for _ in range(5)]
    # Where an error would show first: around multiples of the divisor.
    multiples = (2**31 - 1) // divisors * divisors
    numerators += [multiples, multiples - 1, divisors, divisors - 1, torch.zeros_like(divisors)]
    pairs = torch.stack((torch.cat(numerators), divisors.repeat(len(numerators))), dim=1)
    run(program, ["division", len(pairs)], {"input": pairs.numpy().astype(np.uint32)}, tmp_path)
    np.testing.assert_array_equal(
        result(tmp_path, "output", np.uint32), (pairs[:, 0] // pairs[:, 1]).numpy()
    )
