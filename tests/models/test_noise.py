from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from fastgen.models.noise import (
    FixedSigma,
    LearnedSigma,
    OptimalSigma,
    make_sigma,
    make_tau,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fixed_sigma_is_its_number_in_any_dtype(dtype: torch.dtype) -> None:
    error = torch.tensor(0.7, dtype=dtype)
    assert FixedSigma(0.1)(error).item() == torch.tensor(0.1**2, dtype=dtype).item()


def test_a_learned_sigma_is_one_parameter() -> None:
    sigma = LearnedSigma()
    assert sigma.variance(torch.zeros(())).item() == pytest.approx(0.25)
    (gradient,) = torch.autograd.grad(sigma(torch.zeros(())), tuple(sigma.parameters()))
    assert gradient.item() == pytest.approx(2 * 0.25)


def test_the_optimal_sigma_is_the_batch_in_training_and_a_running_mean_in_evaluation() -> None:
    sigma, errors = OptimalSigma().double(), torch.rand(20, dtype=torch.float64)
    assert sigma.eval()(errors[0]).item() == 1
    sigma.train()
    for error in errors:
        assert sigma(error).item() == error.item()

    weights = 0.99 ** torch.arange(19, -1, -1, dtype=torch.float64)
    expected = (weights * errors).sum() / weights.sum()
    sigma.eval()
    torch.testing.assert_close(sigma(torch.tensor(5.0)), expected)
    torch.testing.assert_close(sigma(torch.tensor(7.0)), expected)

    copy = OptimalSigma().double().eval()
    copy.load_state_dict(sigma.state_dict())
    torch.testing.assert_close(copy(torch.tensor(9.0)), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_optimal_sigma_of_a_perfect_reconstruction_is_positive(training: bool) -> None:
    sigma = OptimalSigma()
    sigma(torch.zeros(()))
    variance = sigma.train(training)(torch.zeros(()))
    assert variance > 0
    assert variance.log().isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_running_mean_of_a_16_bit_model_follows_small_differences(dtype: torch.dtype) -> None:
    sigma, exact = OptimalSigma().to(dtype), OptimalSigma().double()
    for error in [torch.tensor(0.5)] * 300 + [torch.tensor(0.1)] * 900:
        sigma(error)
        exact(error.double())
    like = torch.zeros(())
    expected = exact.variance(like).float()
    torch.testing.assert_close(sigma.variance(like), expected, rtol=1e-4, atol=0)


def test_the_optimal_sigma_takes_no_gradient() -> None:
    error = torch.rand((), requires_grad=True)
    assert not OptimalSigma()(error).requires_grad


def test_a_learned_tau_is_one_parameter_per_latent_dimension() -> None:
    tau = make_tau("learned", (3, 2))
    (log_tau,) = tau.parameters()
    with torch.no_grad():
        log_tau.copy_(torch.arange(6.0).view(3, 2))
    code = torch.randn(4, 3, 2)
    mu, logvar = tau(code, 4)
    assert torch.equal(mu, code)
    torch.testing.assert_close(logvar, (2 * log_tau).expand(4, 3, 2))


def test_a_fixed_tau_is_its_number() -> None:
    mu, logvar = make_tau(0.3, (2,))(torch.randn(4, 2), 4)
    torch.testing.assert_close(logvar, torch.full((4, 2), 2 * log(0.3)))
    assert mu.shape == logvar.shape


def test_an_amortized_tau_is_the_encoders_second_answer() -> None:
    code = torch.randn(4, 2), torch.randn(4, 2)
    assert all(map(torch.equal, make_tau("amortized", (2,))(code, 4), code))


@pytest.mark.parametrize("code", [torch.zeros(4, 2), (torch.zeros(4, 2),), "mu"])
def test_an_amortized_tau_refuses_an_encoder_that_returns_no_pair(code: object) -> None:
    with pytest.raises(ValueError, match="the encoder must return"):
        make_tau("amortized", (2,))(code, 4)


@pytest.mark.parametrize("tau", ["learned", 0.5])
def test_a_tau_of_its_own_refuses_an_encoder_that_returns_a_pair(tau: float | str) -> None:
    pair: tuple[Tensor, Tensor] = (torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"one tensor of shape .* \(got a tuple\)"):
        make_tau(tau, (2,))(pair, 4)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "best"])
def test_values_that_are_no_deviation_are_refused(value: float | str) -> None:
    with pytest.raises(ValueError, match="sigma must be"):
        make_sigma(value)
    with pytest.raises(ValueError, match="tau must be"):
        make_tau(value, (2,))
