"""The Frechet distance against closed forms, SciPy's matrix square root and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fastgen.metrics import (
    features_to_statistics,
    frechet_distance,
    frechet_distance_of_gaussians,
    statistics_to_distance,
)

SIZES = [(1, 40), (3, 127), (17, 60), (64, 300)]  # d, N


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_covariance(d: int, seed: int, rank: int | None = None) -> Tensor:
    root = normal(rank or d + 2, d, seed)
    return root.T @ root / d


def by_scipy(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    root = scipy.linalg.sqrtm(c1.numpy() @ c2.numpy())
    return float((m1 - m2).square().sum()) + np.trace((c1 + c2).numpy() - 2 * np.real(root))


class Identity(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def by_torchmetrics(a: Tensor, b: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Identity(a.shape[1]))
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())


@pytest.mark.parametrize("d", [1, 3, 17, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_gaussians_match_scipys_matrix_square_root(d: int, seed: int) -> None:
    m1, m2 = normal(2, d, seed)
    c1, c2 = random_covariance(d, seed + 10), random_covariance(d, seed + 20)
    expected = by_scipy(m1, c1, m2, c2)
    assert frechet_distance_of_gaussians(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [1, 5, 33])
def test_commuting_covariances_have_a_distance_of_standard_deviations(d: int) -> None:
    """With one eigenbasis V, tr(C1 + C2 - 2 (C1 C2)^(1/2)) = sum (s1 - s2)^2."""
    basis = torch.linalg.qr(normal(d, d, 1)).Q
    s1, s2 = normal(2, d, 2).abs()
    m1, m2 = normal(2, d, 3)
    c1, c2 = (basis @ torch.diag(s.square()) @ basis.T for s in (s1, s2))
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance_of_gaussians(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_a_shift_by_m_has_distance_m_squared(d: int, n: int) -> None:
    x, shift = normal(n, d, 4), normal(1, d, 5)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_a_scaling_around_the_mean_has_distance_of_its_variances(d: int, n: int) -> None:
    x = normal(n, d, 6)
    scaled = x.mean(dim=0) + 3 * (x - x.mean(dim=0))
    variance = float(x.var(dim=0).sum())
    assert frechet_distance(x, scaled) == pytest.approx(4 * variance, rel=1e-9)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_features_match_the_gaussians_of_their_sample_moments(d: int, n: int) -> None:
    a, b = normal(n, d, 7), 2 * normal(n + 5, d, 8) + 1
    moments = [torch.from_numpy(np.atleast_2d(np.cov(x.numpy(), rowvar=False))) for x in (a, b)]
    expected = by_scipy(a.mean(dim=0), moments[0], b.mean(dim=0), moments[1])
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_full_rank_features_match_torchmetrics() -> None:
    a, b = normal(400, 24, 9), 2 * normal(300, 24, 10) + 1
    assert frechet_distance(a, b) == pytest.approx(by_torchmetrics(a, b), rel=1e-9)


def test_rank_deficient_features_keep_the_precision_that_torchmetrics_loses() -> None:
    """The reason that frechet_distance gives for not calling torchmetrics."""
    x = 30 * normal(100, 256, 11)
    assert abs(by_torchmetrics(x, x)) > 1e-4
    assert frechet_distance(x, x) < 1e-8
    a, b = normal(500, 16, 12), normal(500, 16, 12) + 1
    assert abs(by_torchmetrics(a + 1e7, b + 1e7) - 16) > 0.01
    assert frechet_distance(a + 1e7, b + 1e7) == pytest.approx(16, rel=1e-6)


@pytest.mark.parametrize(("d", "n"), [*SIZES, (100, 2), (256, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_sets_are_at_distance_zero(d: int, n: int, dtype: torch.dtype) -> None:
    x = normal(n, d, 13).to(dtype)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(14))]
    assert 0 <= frechet_distance(x, x) < 1e-12 * d
    assert 0 <= frechet_distance(x, shuffled) < 1e-12 * d


@pytest.mark.parametrize(("d", "rank"), [(5, 1), (40, 7)])
def test_singular_covariances_match_a_rotation_of_the_full_rank_case(d: int, rank: int) -> None:
    """Gaussians on one subspace are as far apart as the same Gaussians in its coordinates."""
    basis = torch.linalg.qr(normal(d, d, 15)).Q[:, :rank]
    m1, m2 = normal(2, rank, 16)
    c1, c2 = random_covariance(rank, 17), random_covariance(rank, 18)
    embedded = [basis @ m1, basis @ c1 @ basis.T, basis @ m2, basis @ c2 @ basis.T]
    expected = by_scipy(m1, c1, m2, c2)
    assert frechet_distance_of_gaussians(*embedded) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_features_match_the_subspace_they_span() -> None:
    a, b = normal(9, 4, 19), 2 * normal(7, 4, 20)
    basis = torch.linalg.qr(normal(200, 200, 21)).Q[:, :4]
    expected = frechet_distance(a, b)
    assert frechet_distance(a @ basis.T, b @ basis.T) == pytest.approx(expected, rel=1e-9)


def test_constant_features_add_only_the_difference_of_their_means() -> None:
    a, b = normal(50, 3, 22), normal(60, 3, 23)
    expected = frechet_distance(a, b) + (0.5 - 2) ** 2
    with_constant = [
        torch.cat([x, torch.full((len(x), 1), value)], dim=1) for x, value in ((a, 0.5), (b, 2.0))
    ]
    assert frechet_distance(*with_constant) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(torch.full((4, 3), 0.1), torch.full((5, 3), 0.1)) == pytest.approx(0)


def test_the_distance_is_symmetric_and_indifferent_to_rotation() -> None:
    a, b = normal(80, 12, 24), normal(70, 12, 25).exp()
    rotation = torch.linalg.qr(normal(12, 12, 26)).Q
    expected = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-9)


def test_statistics_hold_the_moments_of_the_features_and_can_be_kept() -> None:
    a, b = normal(31, 6, 27), normal(5, 6, 28)
    statistics = features_to_statistics(a)
    np.testing.assert_allclose(statistics.mean, a.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(a.numpy(), rowvar=False), atol=1e-12)
    kept = statistics_to_distance(statistics, features_to_statistics(b))
    assert kept == frechet_distance(a, b)


def test_arrays_tensors_and_integers_give_one_result_and_stay_as_they_were() -> None:
    a = torch.randint(0, 255, (20, 5), generator=torch.Generator().manual_seed(29))
    b = normal(20, 5, 30).requires_grad_()
    before = a.clone()
    expected = frechet_distance(a.double(), b)
    assert frechet_distance(a.numpy(), b.detach().numpy()) == expected
    assert frechet_distance(a.numpy()[::-1], b) == pytest.approx(expected)
    assert frechet_distance(a.numpy().astype(">i4"), b) == expected
    assert not features_to_statistics(b).root.requires_grad
    assert frechet_distance(a.to(torch.uint8), b) == expected
    assert torch.equal(a, before)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(5), torch.ones(5, 1), r"features_a must have shape \(N, d\).*\(5,\)"),
        (torch.ones(0, 3), torch.ones(5, 3), r"N, d >= 1 \(got \(0, 3\)\)"),
        (torch.ones(5, 3), torch.ones(5, 4), "same number of features.*3 and 4"),
        (torch.ones(5, 3), torch.full((5, 3), torch.nan), "features_b must be finite"),
        (torch.ones(5, 3), torch.ones(5, 3, dtype=torch.complex64), "must be real"),
        (torch.ones(1, 3), torch.ones(5, 3), "at least 2 samples"),
    ],
)
def test_unusable_features_are_refused_by_name(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.eye(3), r"shape \(d, d\)"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "semi-definite.*-1"),
        (torch.tensor([[1.0, 1e-7], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 0.0], [0.0, -1e-7]]), "semi-definite.*-1e-07"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(covariance: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance_of_gaussians(torch.zeros(2), covariance, torch.zeros(2), torch.eye(2))
