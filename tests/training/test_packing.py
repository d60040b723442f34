"""Nested structures become JSON and tensors, and come back."""

from __future__ import annotations

import json

import pytest
import torch

from fastgen.training.packing import pack, unpack

TREE = {
    "state": {0: {"step": torch.tensor(3.0), "rows": [torch.arange(4), None]}, 1: {}},
    "groups": [{"lr": 0.1, "betas": (0.5, 0.999), "fused": True, "name": "critic", "n": 2}],
    "empty": ((), [], {}),
    "large": float("inf"),
}


def test_what_is_packed_comes_back_through_json() -> None:
    packed, tensors = pack(TREE)
    back = unpack(json.loads(json.dumps(packed)), tensors)
    assert str(back) == str(TREE)
    assert list(back["state"]) == [0, 1]
    assert isinstance(back["groups"][0]["betas"], tuple)
    assert back["state"][0]["rows"][0].dtype == torch.int64


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.LBFGS])
def test_the_state_of_an_optimizer_comes_back(make: type[torch.optim.Optimizer]) -> None:
    weight = torch.nn.Parameter(torch.randn(3))
    optimizer = make([weight], lr=0.01)  # type: ignore[call-arg]

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    packed, tensors = pack(optimizer.state_dict())
    assert tensors
    assert str(unpack(json.loads(json.dumps(packed)), tensors)) == str(optimizer.state_dict())


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(TypeError, match="/groups/0/schedule is a function"):
        pack({"groups": [{"schedule": lambda: 0}]})
