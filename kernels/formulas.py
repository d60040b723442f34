"""The scalar formulas of csrc/formulas.h for Triton: leaky ReLU, its mask, the noise, the KL term.

All in float32. Tests hold them equal to fastgen.ops.
"""

from __future__ import annotations

import triton
import triton.language as tl

TWO_PI = tl.constexpr(6.283185307179586)
# pi / 2 in three parts of 12 bits and less: small multiples of each are exact in float32, so the
# reduction of an angle loses nothing, whether or not the compiler fuses multiply and add.
HALF_PI_HIGH = tl.constexpr(1.57080078125)
HALF_PI_MIDDLE = tl.constexpr(-4.453584551811218e-06)
HALF_PI_LOW = tl.constexpr(-8.705515752716053e-10)


@triton.jit
def leaky_relu(x, negative_slope):
    """x where it is positive, negative_slope x elsewhere; NaN stays NaN."""
    return tl.where(x > 0, x, x * negative_slope)


@triton.jit
def leaky_relu_mask(grad, output, negative_slope):
    """Leaky ReLU's derivative from its output; an output of NaN counts as not positive."""
    return tl.where(output > 0, grad, grad * negative_slope)


@triton.jit
def round_to_tf32(x):
    """float32 rounded to TF32's 10 bits of fraction; NaN and infinities go through.

    A product in TF32 cuts the rest off, which is twice as wrong and always towards zero.
    """
    bits = tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,f", [x], dtype=tl.int32, is_pure=True, pack=1
    )
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def uniform(word):
    """A 32-bit word as a number in (0, 1]."""
    return (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def box_muller(first, second):
    """Two standard normal numbers from two words.

    The library's sine and cosine keep a 32-byte stack for huge angles. Here the angle lies in
    (0, 2 pi]: it is brought to [-pi/4, pi/4] by quarter turns, where Taylor polynomials are off by
    less than half a rounding.
    """
    radius = tl.sqrt(-2.0 * tl.log(uniform(first)))
    angle = TWO_PI * uniform(second)

    turns = (angle * 0.6366197723675814 + 0.5).to(tl.int32)
    quarter = turns.to(tl.float32)
    x = angle - quarter * HALF_PI_HIGH
    x = x - quarter * HALF_PI_MIDDLE
    x = x - quarter * HALF_PI_LOW
    x2 = x * x
    sine = ((x2 * (1.0 / 362880) - 1.0 / 5040) * x2 + 1.0 / 120) * x2 - 1.0 / 6
    sine = x + x * x2 * sine
    cosine = ((x2 * (1.0 / 40320) - 1.0 / 720) * x2 + 1.0 / 24) * x2 - 0.5
    cosine = 1.0 + x2 * cosine

    odd = (turns & 1) == 1
    c = tl.where(odd, sine, cosine)
    s = tl.where(odd, cosine, sine)
    c = tl.where(((turns + 1) & 2) != 0, -c, c)
    s = tl.where((turns & 2) != 0, -s, s)
    return radius * c, radius * s


@triton.jit
def random_words(seed, counter):
    """The four 32-bit words of a counter: Philox4x32-10 under the 64-bit key `seed`."""
    low = counter.to(tl.uint32)
    high = (counter.to(tl.int64) >> 32).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero, zero, n_rounds=10)


@triton.jit
def normals(seed, counter):
    """Standard normal numbers; the last axis is four times that of `counter`.

    Counter k gives elements 4k ... 4k + 3, as fastgen/ops/philox.py does.
    """
    w0, w1, w2, w3 = random_words(seed, counter)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation near 0, where its Taylor series takes over."""
    series = 1.0 / 362880
    series = series * x + 1.0 / 40320
    series = series * x + 1.0 / 5040
    series = series * x + 1.0 / 720
    series = series * x + 1.0 / 120
    series = series * x + 1.0 / 24
    series = series * x + 1.0 / 6
    series = series * x + 0.5
    series = series * x + 1.0
    return tl.where(tl.abs(x) < 0.5, series * x, tl.exp(x) - 1.0)


@triton.jit
def kl_term(mu, logvar):
    """mu^2 + exp(logvar) - 1 - logvar, twice an element's divergence, exact near logvar = 0.

    exp(l) - 1 - l cancels where l is small; there its Taylor series (to the 9th power, off by
    less than a rounding for |l| < 1/2) takes over.
    """
    series = 1.0 / 362880
    series = series * logvar + 1.0 / 40320
    series = series * logvar + 1.0 / 5040
    series = series * logvar + 1.0 / 720
    series = series * logvar + 1.0 / 120
    series = series * logvar + 1.0 / 24
    series = series * logvar + 1.0 / 6
    series = series * logvar + 0.5
    direct = tl.exp(logvar) - 1.0 - logvar
    return mu * mu + tl.where(tl.abs(logvar) < 0.5, logvar * logvar * series, direct)
