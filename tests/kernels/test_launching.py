"""Launches that are worked out once: what is done again, and what is worked out every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.kernels.launching import Replayed, launch


class Adds:
    """Stands for a kernel: result = left + right + number. With `compiled`, for one that Triton has
    compiled, which is launched with everything in the order of the signature.
    """

    arg_names = ("left", "right", "result", "number", "BLOCK")

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.launches: list[str] = []

    def __getitem__(self, grid: Any) -> Any:
        assert grid == (2, 1)

        def run(left: Tensor, right: Tensor, result: Tensor, number: int, **options: int) -> Any:
            assert options == {"BLOCK": 16, "num_warps": 4}
            self.launches.append("worked out")
            result.copy_(left + right + number)
            return _Compiled(self) if self.compiled else None

        return run


class _Compiled:
    launch_metadata = None

    def __init__(self, kernel: Adds) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        assert grid == (2, 1, 1)

        def run(left: Tensor, right: Tensor, result: Tensor, number: int, block: int) -> None:
            assert block == 16
            self.kernel.launches.append("again")
            result.copy_(left + right + number)

        return run


class Sum:
    """An operator's function over the kernel, and how often it was asked."""

    def __init__(self, compiled: bool = True) -> None:
        self.kernel, self.calls = Adds(compiled), 0

    def __call__(self, left: Tensor, right: Tensor | None, number: int) -> tuple[Tensor, None]:
        self.calls += 1
        right = left if right is None else right
        between, result = torch.empty_like(left), left.new_empty(left.shape)
        for target, start in ((between, left), (result, between)):
            launch(self.kernel, (2, 1), start, right, target, number, BLOCK=16, num_warps=4)
        return result, None


@pytest.mark.parametrize("compiled", [True, False])
def test_the_second_call_of_a_kind_is_the_launches_alone(compiled):
    function = Sum(compiled)
    replayed = Replayed(function)
    for seed in range(3):
        left, right = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed))
        result, nothing = replayed(left, right, 7)
        assert nothing is None
        torch.testing.assert_close(result, left + 2 * right + 14)
    assert function.calls == 1
    if compiled:
        assert function.kernel.launches == ["worked out"] * 2 + ["again"] * 4


@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x[:3], x[:3].clone(), 7),
        lambda x: (x.double(), x.double(), 7),
        lambda x: (x.t(), x.t().clone(), 7),
        lambda x: (x, x.clone(), 8),
        lambda x: (x, None, 7),
        lambda x: (torch.zeros(21)[1:].view(4, 5), x, 7),  # another alignment
    ],
    ids=["shape", "dtype", "strides", "number", "absent", "alignment"],
)
def test_another_kind_is_worked_out(other):
    function = Sum()
    replayed = Replayed(function)
    x = torch.randn(4, 5)
    replayed(x, x.clone(), 7)
    left, right, number = other(x)
    result, _ = replayed(left, right, number)
    torch.testing.assert_close(result, left + 2 * (left if right is None else right) + 2 * number)
    assert function.calls == 2


def test_a_tensor_given_twice_is_not_taken_for_two():
    function = Sum()
    replayed = Replayed(function)
    x, y = torch.randn(2, 4, 5)
    for left, right in ((x, x), (x, y), (y, y), (y, x)):
        torch.testing.assert_close(replayed(left, right, 1)[0], left + 2 * right + 2)


def test_what_computes_with_pytorch_is_worked_out_every_time():
    function = Sum()

    def copies(left: Tensor, right: Tensor, number: int) -> Tensor:
        return function(left.contiguous(), right, number)[0].zero_()

    replayed = Replayed(copies)
    for _ in range(3):
        assert not replayed(torch.randn(4, 5), torch.randn(4, 5), 1).any()
    assert function.calls == 3


def test_an_error_is_raised_every_time():
    def refuses(tensor: Tensor) -> Tensor:
        raise ValueError("no such shape")

    replayed = Replayed(refuses)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such shape"):
            replayed(torch.randn(3))
