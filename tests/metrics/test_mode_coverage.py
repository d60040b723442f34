"""Mode coverage: the mixtures themselves, perfect samplers and collapsed ones."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from fastgen.metrics import Mixture, ModeCoverage, grid, mode_coverage, ring


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("mixture", "modes"), [(ring(), 8), (grid(), 25)])
def test_a_perfect_sampler_captures_every_mode(mixture: Mixture, modes: int, seed: int) -> None:
    result = mode_coverage(mixture.sample(2500, seed=seed), mixture)
    assert (result.captured, result.modes) == (modes, modes)


@pytest.mark.parametrize("mixture", [ring(), grid()])
def test_a_perfect_sampler_has_the_high_quality_share_of_the_chi_distribution(
    mixture: Mixture,
) -> None:
    """In the plane 1 - exp(-9 / 2) = 98.889 %; three binomial deviations of 200,000 samples."""
    expected = scipy.stats.chi.cdf(3, df=2)
    assert expected == pytest.approx(1 - math.exp(-4.5), rel=1e-12)
    assert expected == pytest.approx(0.98889, abs=5e-6)
    n = 200_000
    share = mode_coverage(mixture.sample(n, seed=2), mixture).high_quality
    assert share == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / n))


def test_the_ring_has_eight_centers_on_the_unit_circle() -> None:
    centers = ring().centers
    assert centers.shape == (8, 2)
    torch.testing.assert_close(centers.norm(dim=1), torch.ones(8))
    neighbors = (centers - centers.roll(1, dims=0)).norm(dim=1)
    torch.testing.assert_close(neighbors, torch.full((8,), 2 * math.sin(math.pi / 8)))
    assert ring().standard_deviation == 0.01


def test_the_grid_has_the_centers_of_the_papers() -> None:
    axis = (-4, -2, 0, 2, 4)
    assert {tuple(c) for c in grid().centers.tolist()} == {(x, y) for x in axis for y in axis}
    assert grid().standard_deviation == 0.05


def test_samples_lie_around_every_center_alike() -> None:
    mixture = grid()
    samples = mixture.sample(50_000, seed=3)
    nearest = torch.cdist(samples, mixture.centers).argmin(dim=1)
    offsets = samples - mixture.centers[nearest]
    assert scipy.stats.chisquare(nearest.bincount(minlength=25).numpy()).pvalue > 0.001
    normalized = (offsets / 0.05).numpy()
    assert scipy.stats.kstest(normalized[:, 0], "norm").pvalue > 0.001
    assert scipy.stats.kstest(normalized[:, 1], "norm").pvalue > 0.001


def test_samples_are_a_function_of_the_seed() -> None:
    mixture = ring()
    assert torch.equal(mixture.sample(5, seed=4), mixture.sample(5, seed=4))
    assert not torch.equal(mixture.sample(5, seed=4), mixture.sample(5, seed=5))
    torch.manual_seed(6)
    first = mixture.sample(5)
    torch.manual_seed(6)
    assert torch.equal(first, mixture.sample(5))
    assert mixture.sample(0).shape == (0, 2)


def test_a_collapsed_generator_captures_one_mode_at_full_quality() -> None:
    mixture = grid()
    samples = mixture.centers[7].repeat(100, 1)
    assert mode_coverage(samples, mixture) == ModeCoverage(1, 25, 1.0)


def test_samples_between_the_modes_count_for_nothing() -> None:
    mixture = grid()
    assert mode_coverage(mixture.centers + 1, mixture) == ModeCoverage(0, 25, 0.0)


def test_a_mixture_far_from_the_origin_is_told_apart_as_well() -> None:
    near = ring()
    far = Mixture(near.centers.double() + 1e6, near.standard_deviation)
    samples = near.sample(2500, seed=0).double()
    assert mode_coverage(samples + 1e6, far) == mode_coverage(samples, near)


def test_three_standard_deviations_are_the_border() -> None:
    mixture = Mixture(torch.zeros(1, 2), 1.0)
    samples = torch.tensor([[2.999, 0.0], [0.0, -3.001], [2.2, 2.2]])
    assert mode_coverage(samples, mixture) == ModeCoverage(1, 1, pytest.approx(1 / 3))


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="samples and centers must have the same number"):
        mode_coverage(torch.zeros(4, 3), ring())
    with pytest.raises(ValueError, match="n must be 0 or more"):
        ring().sample(-1)
