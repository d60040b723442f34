"""Exact and sliced Wasserstein distances against closed forms, SciPy and POT."""

from __future__ import annotations

import math
import sys
from itertools import permutations

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fastgen.metrics import sliced_wasserstein_distance, wasserstein_distance


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal_quantiles(n: int, standard_deviation: float) -> np.ndarray:
    """An exact sample of N(0, standard_deviation^2): the middles of n equally likely slices."""
    slices = (np.arange(n) + 0.5) / n
    return scipy.stats.norm.ppf(slices, scale=standard_deviation)[:, None]


def test_w1_of_two_centered_normals_is_the_closed_form() -> None:
    """W1(N(0, 1), N(0, 4)) = (2 - 1) E|e| = sqrt(2 / pi) = 0.797885."""
    x, y = normal_quantiles(100_000, 1), normal_quantiles(100_000, 2)
    assert math.sqrt(2 / math.pi) == pytest.approx(0.797885, abs=5e-7)
    assert wasserstein_distance(x, y) == pytest.approx(math.sqrt(2 / math.pi), abs=2e-5)
    assert wasserstein_distance(x, y, p=2) == pytest.approx(1, abs=2e-4)


def test_w1_of_random_samples_of_two_normals_is_near_the_closed_form() -> None:
    x, y = normal(100_000, 1, 0), 2 * normal(100_000, 1, 1)
    assert wasserstein_distance(x, y) == pytest.approx(0.797885, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 17, 127])
@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_sorting_in_one_dimension_is_the_optimal_assignment(n: int, p: float) -> None:
    x, y = normal(n, 1, n), normal(n, 1, n + 1).exp()
    cost = (x - y.T).abs().pow(p).numpy()
    expected = cost[linear_sum_assignment(cost)].mean() ** (1 / p)
    assert wasserstein_distance(x, y, p=p) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [2, 5])
def test_no_permutation_of_seven_points_costs_less(d: int) -> None:
    x, y = normal(7, d, 2), normal(7, d, 3)
    for p in (1, 2):
        costs = [
            float((x - y[list(order)]).norm(dim=1).pow(p).mean())
            for order in permutations(range(7))
        ]
        assert wasserstein_distance(x, y, p=p) == pytest.approx(min(costs) ** (1 / p), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(50, 2), (127, 17)])
@pytest.mark.parametrize("p", [1, 2])
def test_several_dimensions_match_the_transport_of_pot(n: int, d: int, p: int) -> None:
    x, y = normal(n, d, 4), 2 * normal(n, d, 5) + 1
    cost = torch.cdist(x, y).pow(p).numpy()
    expected = ot.emd2([], [], cost) ** (1 / p)
    assert wasserstein_distance(x, y, p=p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 17])
@pytest.mark.parametrize("p", [1, 2])
def test_a_shift_costs_its_length(d: int, p: int) -> None:
    x, shift = normal(60, d, 6), normal(1, d, 7)
    moved = (x + shift).flip(0)
    assert wasserstein_distance(x, moved, p=p) == pytest.approx(float(shift.norm()), rel=1e-9)


@pytest.mark.parametrize("d", [1, 3])
def test_identical_sets_are_at_distance_zero(d: int) -> None:
    x = normal(40, d, 8)
    assert wasserstein_distance(x, x.flip(0)) == 0
    assert sliced_wasserstein_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_lipschitz_critic_never_exceeds_w1(d: int) -> None:
    x, y = normal(80, d, 9), 2 * normal(80, d, 10) + 0.5
    for seed in range(20):
        point = normal(1, d, 100 + seed)
        critics = [
            lambda z, point=point: (z - point).norm(dim=1),
            lambda z, point=point: z @ (point / point.norm()).T,
        ]
        for f in critics:
            assert float(f(x).mean() - f(y).mean()) <= wasserstein_distance(x, y) + 1e-12


@pytest.mark.parametrize("d", [1, 4, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_sliced_distance_of_a_shift_is_its_square_over_the_dimension(d: int, seed: int) -> None:
    """SW_2^2 = mean over theta of (theta . m)^2 = |m|^2 / d."""
    x, shift = normal(30, d, 11), normal(1, d, 12)
    sliced = sliced_wasserstein_distance(x, x + shift, projections=20_000, seed=seed)
    assert sliced**2 == pytest.approx(float(shift.square().sum()) / d, rel=0.05)


def test_sliced_distance_in_one_dimension_is_the_exact_one() -> None:
    x, y = normal(50, 1, 13), normal(50, 1, 14).exp()
    for p in (1, 2):
        expected = wasserstein_distance(x, y, p=p)
        for projections in (1, 256):
            sliced = sliced_wasserstein_distance(x, y, p=p, projections=projections)
            assert sliced == pytest.approx(expected, rel=1e-12)


def test_sliced_distance_is_a_lower_bound_and_a_function_of_its_seed() -> None:
    x, y = normal(60, 3, 15), 2 * normal(60, 3, 16)
    for seed in range(5):
        sliced = sliced_wasserstein_distance(x, y, seed=seed)
        assert 0 < sliced < wasserstein_distance(x, y, p=2)
        assert sliced == sliced_wasserstein_distance(x, y, seed=seed)
    assert sliced != sliced_wasserstein_distance(x, y, seed=0)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
@pytest.mark.parametrize("d", [1, 2])
def test_powers_that_leave_float64_are_no_part_of_the_result(d: int, scale: float) -> None:
    """A shift by m costs |m| for every p; 0.001^400 is 0 in float64 and 30^400 infinite."""
    x, shift = scale / 10 * normal(20, d, 17), scale * torch.eye(d, dtype=torch.float64)[0]
    assert wasserstein_distance(x, x + shift, p=400) == pytest.approx(scale, rel=1e-9)
    one = x[:, :1], (x + shift)[:, :1]
    assert sliced_wasserstein_distance(*one, p=400) == pytest.approx(scale, rel=1e-9)
    assert wasserstein_distance(x, x, p=400) == 0


def test_an_order_that_loses_the_plan_beside_the_largest_distance_is_refused() -> None:
    x = torch.tensor([[0.0, 0.0], [1000.0, 0.0]], dtype=torch.float64)
    assert wasserstein_distance(x, x + 0.1, p=20) == pytest.approx(0.1 * 2**0.5)
    with pytest.raises(ValueError, match=r"p is too large for these distances \(got 400\)"):
        wasserstein_distance(x, x + 0.1, p=400)


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert wasserstein_distance(normal(5, 1, 17), normal(5, 1, 18)) > 0
    with pytest.raises(ImportError, match=r'pip install "fastgen-kernels\[metrics\]"'):
        wasserstein_distance(normal(5, 2, 17), normal(5, 2, 18))


@pytest.mark.parametrize("distance", [wasserstein_distance, sliced_wasserstein_distance])
def test_unusable_arguments_are_refused(distance) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"equally many samples.*5 and 6"):
        distance(normal(5, 2, 19), normal(6, 2, 20))
    with pytest.raises(ValueError, match=r"p must be at least 1 \(got 0.5\)"):
        distance(normal(5, 2, 19), normal(5, 2, 20), p=0.5)
    with pytest.raises(ValueError, match=r"p must be finite \(got inf\)"):
        distance(normal(5, 1, 19), normal(5, 1, 20), p=math.inf)
    with pytest.raises(ValueError, match=r"p must be at least 1 \(got nan\)"):
        distance(normal(5, 1, 19), normal(5, 1, 20), p=math.nan)
    with pytest.raises(ValueError, match="x must have shape"):
        distance(torch.ones(5), torch.ones(5))


def test_a_sliced_distance_without_projections_is_refused() -> None:
    with pytest.raises(ValueError, match="projections must be at least 1"):
        sliced_wasserstein_distance(normal(5, 2, 19), normal(5, 2, 20), projections=0)
