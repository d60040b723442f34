"""Philox4x32-10 and Box-Muller in PyTorch integers: the noise that every backend reproduces.

The generator is a function of a 64-bit key and a 128-bit counter [Salmon, Moraes, Dror, Shaw,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011]. Element i of a tensor (in row-major order
of its shape, whatever its layout) takes word i mod 4 of counter (i div 4, 0) under the key `seed`:

    words 0, 1 -> u, v = (word + 1/2) / 2^32 in float32
    elements 0, 1 -> sqrt(-2 log u) cos(2 pi v), sqrt(-2 log u) sin(2 pi v); words 2, 3 likewise

so four numbers cost one evaluation. 32-bit words are held in int64, where a product wraps modulo
2^64 and its two halves come out by shifting and masking.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds of Philox4x32: four random 32-bit words per counter, each in an int64 tensor.

    Args:
        counter: four int64 tensors of one shape, least significant word first, values in [0, 2^32).
        key: two int64 tensors (0-dim or of that shape), least significant word first.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD) ^ c1 ^ k0,
            product1 & WORD,
            ((product0 >> 32) & WORD) ^ c3 ^ k1,
            product0 & WORD,
        )
        k0 = (k0 + KEY_STEPS[0]) & WORD
        k1 = (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def random_words(count: int, seed: Tensor) -> Tensor:
    """The words of elements 0 ... 4 ceil(count / 4) - 1, shape (ceil(count / 4), 4), int64."""
    counter = torch.arange((count + 3) // 4, device=seed.device)
    zero = torch.zeros_like(counter)
    words = philox4x32(
        (counter & WORD, counter >> 32, zero, zero), (seed & WORD, (seed >> 32) & WORD)
    )
    return torch.stack(words, dim=-1)


def normal(shape: torch.Size, seed: Tensor) -> Tensor:
    """Standard normal numbers in float32, a function of the seed and each element's index alone.

    Args:
        shape: of the result, which is contiguous.
        seed: 0-dim int64; its device is the result's.
    """
    count = math.prod(shape)
    uniform = (random_words(count, seed).to(torch.float32) + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(uniform[:, 0::2]))
    angle = (2.0 * math.pi) * uniform[:, 1::2]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten()[:count].view(shape)
