"""Permutations that are a function of their seed, on every machine and NumPy version."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def permutation(count: int, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """A uniformly random order of 0 .. count - 1, a pure function of its arguments.

    It is the order of `count` raw 64-bit words of Philox. NumPy promises that its bit generators
    and seed sequences never change their words, and promises no such thing of
    `Generator.permutation`: a run resumed under another NumPy would see other batches.
    """
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,))).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
