from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen.ops.philox import normal, philox4x32, random_words

# Random123's known answers for philox4x32-10 [Salmon et al. 2011]: counter, key, words.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    result = philox4x32(words(counter), words(key))
    assert " ".join(f"{word.item():08x}" for word in result) == expected


def test_the_definition_in_numpys_unsigned_integers_gives_the_same_words():
    """Written out with integers that do not wrap into a sign, as ours do."""

    def by_numpy(counter, key):
        c, k = np.array(counter, dtype=np.uint64), np.array(key, dtype=np.uint64)
        for _ in range(10):
            p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
            low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
            c = np.array(
                [(p1 >> shift) ^ c[1] ^ k[0], p1 & low, (p0 >> shift) ^ c[3] ^ k[1], p0 & low]
            )
            k = (k + np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)) & low
        return c.tolist()

    seed = -0x123456789ABCDEF
    rows = random_words(12, torch.tensor(seed)).tolist()
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    assert rows == [by_numpy([i, 0, 0, 0], key) for i in range(3)]


def test_a_prefix_of_a_longer_tensor_is_the_shorter_one():
    seed = torch.tensor(7)
    assert torch.equal(normal(torch.Size([1001]), seed)[:998], normal(torch.Size([998]), seed))
    assert torch.equal(
        normal(torch.Size([3, 5, 2]), seed).flatten(), normal(torch.Size([30]), seed)
    )
    assert normal(torch.Size([0, 4]), seed).shape == (0, 4)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62 + 3])
def test_numbers_are_standard_normal_and_independent(seed):
    sample = normal(torch.Size([200_000]), torch.tensor(seed)).double().numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(sample[:-lag], sample[lag:])[0, 1]) < 4 / np.sqrt(len(sample))


def test_box_muller_agrees_with_float64():
    seed = torch.tensor(11)
    uniform = (random_words(4000, seed).double().float().double() + 0.5) * 2.0**-32
    radius, angle = torch.sqrt(-2 * torch.log(uniform[:, 0::2])), 2 * torch.pi * uniform[:, 1::2]
    exact = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1).flatten()
    assert (normal(torch.Size([4000]), seed).double() - exact).abs().max() < 4e-6


def test_different_seeds_give_different_numbers():
    first, second = (normal(torch.Size([64]), torch.tensor(seed)) for seed in (1, 1 + 2**32))
    assert not torch.isclose(first, second).any()
