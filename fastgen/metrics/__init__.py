"""Distances between sets of features, shape (N, d), tensors or arrays; no knowledge of models.

============================  ==================================================================
``frechet_distance``          means and covariances, as in FID
``precision_recall``          k-nearest-neighbor balls: fidelity and coverage apart
``wasserstein_distance``      exact W_p between equally large sets
``sliced_wasserstein_distance``  its lower bound over random projections, for large sets
``mode_coverage``             modes found and share of good samples, for the toy mixtures
============================  ==================================================================

Everything computes in float64, on the device of its first argument. Only
``wasserstein_distance`` in more than one dimension needs more than torch: SciPy, from
``pip install "fastgen-kernels[metrics]"``.
"""

from .frechet import (
    GaussianStatistics,
    covariance_to_statistics,
    features_to_statistics,
    frechet_distance,
    frechet_distance_of_gaussians,
    statistics_to_distance,
)
from .mode_coverage import Mixture, ModeCoverage, grid, mode_coverage, ring
from .precision_recall import PrecisionRecall, precision_recall
from .wasserstein import sliced_wasserstein_distance, wasserstein_distance

__all__ = [
    "GaussianStatistics",
    "Mixture",
    "ModeCoverage",
    "PrecisionRecall",
    "covariance_to_statistics",
    "features_to_statistics",
    "frechet_distance",
    "frechet_distance_of_gaussians",
    "grid",
    "mode_coverage",
    "precision_recall",
    "ring",
    "sliced_wasserstein_distance",
    "statistics_to_distance",
    "wasserstein_distance",
]
