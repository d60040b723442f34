from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from fastgen.models.scores import (
    at_least_float32,
    input_gradient,
    norms,
    scores,
    zero_centered_penalty,
)


class Answer(nn.Module):
    """Sums each sample and answers in the shape given."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1).view(self.shape).to(self.dtype)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1)])
def test_one_number_per_image_is_accepted_in_three_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(scores(Answer(*shape), x), x.sum((1, 2, 3)))


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (4, 1, 1), (4, 1, 1, 1, 1)])
def test_any_other_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Answer must return one number per image.* N = 4 \(got"):
        scores(Answer(*shape), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_scores_are_never_narrower_than_float32(dtype: torch.dtype, result: torch.dtype) -> None:
    assert scores(Answer(4, dtype=dtype), torch.randn(4, 2)).dtype == result
    assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == result


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 3, 4)])
def test_the_input_gradient_is_each_images_own(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gradient = input_gradient(x.reshape(5, -1).pow(3).sum(1), x)
    torch.testing.assert_close(gradient, 3 * x.detach() ** 2)
    assert gradient.requires_grad

    expected = (3 * x.detach() ** 2).reshape(5, -1).norm(dim=1)
    torch.testing.assert_close(norms(gradient), expected)
    penalty = zero_centered_penalty(0.4, x.reshape(5, -1).pow(3).sum(1), x)
    torch.testing.assert_close(penalty, 0.2 * expected.square().mean())


def test_gradients_of_narrow_images_are_measured_in_float32() -> None:
    x = torch.full((2, 1000), 1e-2, dtype=torch.bfloat16, requires_grad=True)
    gradient = input_gradient(x.float().square().sum(1) / 2, x)
    assert gradient.dtype == torch.float32
    expected = 1000**0.5 * x[0, 0].item()
    assert norms(gradient)[0].item() == pytest.approx(expected, rel=1e-5)


def test_images_that_do_not_matter_have_gradient_zero() -> None:
    x, w = torch.randn(3, 2, requires_grad=True), torch.ones((), requires_grad=True)
    assert torch.equal(input_gradient(w.expand(3), x), torch.zeros(3, 2))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2, 2)])
def test_the_derivative_of_a_norm_at_zero_is_zero_not_nan(shape: tuple[int, ...]) -> None:
    gradient = torch.zeros(shape, requires_grad=True)
    (derivative,) = torch.autograd.grad(
        (norms(gradient) - 1).square().mean(), gradient, create_graph=True
    )
    assert torch.equal(derivative, torch.zeros(shape))
    (second,) = torch.autograd.grad(derivative.sum(), gradient)
    assert torch.equal(second, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2, 2)])
def test_norms_have_derivatives_of_any_order(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(norms, gradient)
    assert gradgradcheck(norms, gradient)

    def third(lengths: Callable[[Tensor], Tensor]) -> Tensor:
        result = lengths(gradient).sin().sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(result, gradient, create_graph=True)
            result = slope.sin().sum()
        return result

    def plain(gradient: Tensor) -> Tensor:
        return gradient.reshape(3, -1).square().sum(1).sqrt()

    torch.testing.assert_close(third(norms), third(plain))
