"""Precision and recall against a naive implementation and against constructed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.metrics import precision_recall


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inside_balls(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    count = 0
    radii = [np.sort([np.linalg.norm(c - other) for other in centers])[k] for c in centers]
    for point in points:
        count += any(np.linalg.norm(point - c) <= r for c, r in zip(centers, radii, strict=True))
    return count / len(points)


@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(30, 30, 2, 3), (17, 41, 1, 1), (60, 25, 5, 3), (12, 9, 127, 8)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_match_a_naive_loop_over_balls(n: int, m: int, d: int, k: int, seed: int) -> None:
    real, fake = normal(n, d, seed), 0.8 * normal(m, d, seed + 10) + 0.5
    result = precision_recall(real, fake, k=k)
    assert result.precision == inside_balls(fake.numpy(), real.numpy(), k)
    assert result.recall == inside_balls(real.numpy(), fake.numpy(), k)


def test_the_compared_shares_are_not_all_zero_or_one() -> None:
    result = precision_recall(normal(60, 5, 0), 0.8 * normal(25, 5, 10) + 0.5)
    assert 0 < result.precision < 1
    assert 0 < result.recall < 1


@pytest.mark.parametrize(("n", "d"), [(4, 1), (50, 3), (40, 300)])
def test_identical_sets_have_precision_and_recall_one(n: int, d: int) -> None:
    x = normal(n, d, 2)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x.flip(0)) == (1, 1)


@pytest.mark.parametrize(("n", "d", "strangers"), [(33, 2, 5), (20, 64, 1), (7, 300, 1)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_exact_copies_are_inside_balls_of_radius_zero(
    n: int, d: int, strangers: int, offset: float
) -> None:
    """Four copies of every point leave every ball without extent; a few strangers make the two
    sets of unequal size, so that the same inner products round differently.
    """
    copies = normal(n, d, 3).repeat(4, 1) + offset
    more = torch.cat([copies, normal(strangers, d, 4) + offset + 100])
    more = more[torch.randperm(len(more), generator=torch.Generator().manual_seed(5))]
    share = 4 * n / (4 * n + strangers)
    assert precision_recall(copies, more) == (share, 1)
    assert precision_recall(more, copies) == (1, share)


def test_a_point_beside_balls_of_radius_zero_is_outside() -> None:
    x = normal(20, 64, 3).repeat(5, 1)
    assert precision_recall(x, x + 1e-4) == (0, 0)


def test_sets_of_one_point_are_all_inside() -> None:
    assert precision_recall(torch.ones(5, 3), torch.ones(6, 3)) == (1, 1)


def test_disjoint_sets_have_precision_and_recall_zero() -> None:
    assert precision_recall(normal(50, 3, 5), normal(40, 3, 6) + 100) == (0, 0)


def test_half_the_modes_dropped_halves_recall_and_leaves_precision() -> None:
    """Both modes lie far apart; the generator copies points of the first alone."""
    first, second = normal(60, 4, 7), normal(60, 4, 8) + 100
    result = precision_recall(torch.cat([first, second]), first)
    assert result == (1, 0.5)


def test_half_the_samples_invented_halves_precision_and_leaves_recall() -> None:
    real, invented = normal(60, 4, 9), normal(60, 4, 10) + 100
    result = precision_recall(real, torch.cat([real, invented]))
    assert result == (0.5, 1)


def test_swapping_the_sets_swaps_the_shares() -> None:
    a, b = normal(45, 3, 11), 2 * normal(35, 3, 12)
    assert precision_recall(a, b) == tuple(reversed(precision_recall(b, a)))


@pytest.mark.parametrize("offset", [1e3, 1e7])
def test_moving_both_sets_changes_nothing(offset: float) -> None:
    a, b = normal(45, 3, 13), 2 * normal(35, 3, 14)
    assert precision_recall(a + offset, b + offset) == precision_recall(a, b)


def test_one_far_sample_leaves_the_balls_of_the_others_alone() -> None:
    real, fake = normal(60, 8, 21), 2 * normal(60, 8, 22) + 4
    fake[0] = 1e7
    recall = inside_balls(real.numpy(), fake.numpy(), 3)
    assert 0 < recall < 0.7
    assert precision_recall(real, fake).recall == recall


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_larger_than_a_block_of_32_mebibytes() -> None:
    real, fake = normal(5000, 2, 15), normal(4000, 2, 16)
    with LargestTensor() as largest:
        precision_recall(real, fake)
    assert 1_000_000 < largest.elements <= 32 * 2**20 // 8


def test_blocks_give_the_result_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(45, 3, 17), 2 * normal(35, 3, 18)
    expected = precision_recall(a, b)
    for block in (1, 100, 1000):
        monkeypatch.setitem(precision_recall.__globals__, "_BLOCK", block)
        assert precision_recall(a, b) == expected


@pytest.mark.parametrize(("k", "allowed"), [(0, "1..3"), (4, "1..3"), (-1, "1..3")])
def test_a_neighbor_that_is_not_there_is_refused(k: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{allowed} \(got {k}\).*9 real and 4 fake"):
        precision_recall(normal(9, 2, 19), normal(4, 2, 20), k=k)


def test_unequal_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="real and fake must have the same number of features"):
        precision_recall(torch.ones(5, 3), torch.ones(5, 2))
