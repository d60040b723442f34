"""What stands between an operator and the function that runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgen.kernels.registration import on_device


class Gpus:
    """Stands in for `torch.cuda` on machines without one: which GPU is current, and when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.use)

    def use(self, device: torch.device) -> Any:
        gpus = self

        class Guard:
            def __enter__(self) -> None:
                self.before, gpus.current = gpus.current, device.index

            def __exit__(self, *_: object) -> None:
                gpus.current = self.before

        return Guard()


class OnGpu(torch.Tensor):
    """A tensor that says which GPU it is on."""

    index = 0

    def get_device(self) -> int:
        return self.index

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("before", [(), (None,)], ids=["first", "after an absent one"])
def test_a_kernel_is_launched_on_the_gpu_of_its_tensors(
    index: int, before: tuple[None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(monkeypatch)
    tensor = torch.zeros(2).as_subclass(OnGpu)
    tensor.index = index
    seen = []

    @on_device
    def launch(*arguments: Any) -> str:
        seen.append(gpus.current)
        return "result"

    assert launch(*before, tensor, 0.2) == "result"
    assert seen == [index]
    assert gpus.current == 0


def test_the_gpu_that_was_current_is_so_again_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = Gpus(monkeypatch)
    tensor = torch.zeros(2).as_subclass(OnGpu)
    tensor.index = 1

    @on_device
    def launch(_: torch.Tensor) -> None:
        raise ValueError("no such shape")

    with pytest.raises(ValueError, match="no such shape"):
        launch(tensor)
    assert gpus.current == 0
