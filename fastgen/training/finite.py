"""Stops a training whose numbers are no longer finite, and says where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from fastgen.models.phase import Losses


class Moment(NamedTuple):
    """One run of one phase: step and repetition count from 0, phase is its place in the list."""

    step: int
    phase: int
    repetition: int


class NonFiniteLoss(ArithmeticError):
    """A loss, or its gradient, is NaN or infinite.

    Attributes:
        phase: the name of the phase.
        step: the step, counted from 1 as in the log.
        module: the qualified name of the first module that returned a non-finite number, or None
            when every module's output was finite (then the loss itself is the source).
        process: the rank of the process whose numbers these are, where several train together.
    """

    def __init__(
        self, phase: str, step: int, module: str | None, message: str, process: int | None = None
    ) -> None:
        super().__init__(message)
        self.phase, self.step, self.module, self.process = phase, step, module, process


class FiniteWatch:
    """Finds the first moment at which a loss or a gradient was not finite.

    On the CPU asking costs nothing, so `first` can be asked before each update and the weights stay
    good. On a GPU the answer is gathered on the device, and only `first` waits for it; meanwhile
    `guarding` keeps the weights as they were when the bad number came up, so that its source can
    still be found.

    Attributes:
        deferred: whether asking makes the device wait, so that it should be put off.
    """

    def __init__(self, device: torch.device, *, deferred: bool | None = None) -> None:
        self.deferred = device.type != "cpu" if deferred is None else deferred
        self._nowhere = torch.tensor(torch.iinfo(torch.int64).max, device=device)
        # Changed in place, and counted on the device: a CUDA graph writes where it was recorded.
        self._first, self._count = self._nowhere.clone(), torch.zeros_like(self._nowhere)
        self._found = torch.zeros((), device=device)  # 1 after a bad number
        self._moments: list[Moment] = []

    def record(self, moment: Moment, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Look at one loss and its gradients; nothing waits for the device."""
        self.note(moment)
        self.look(loss, gradients)

    def note(self, moment: Moment) -> None:
        """Say which moment the next look belongs to: the part of `record` for the host."""
        self._moments.append(moment)

    @torch.no_grad()
    def look(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Look at one loss and its gradients: the part of `record` for the device alone."""
        # In float16 the norm of numbers that are finite may be infinite.
        size = get_total_norm(
            [
                gradient.float() if gradient.dtype == torch.float16 else gradient
                for gradient in gradients
                if gradient is not None
            ]
        )
        # Three kernels, where two `isfinite` are nine. NaN is not below infinity either.
        finite = size.add(loss.detach().abs()) < torch.inf
        place = torch.where(finite, self._nowhere, self._count)
        torch.minimum(self._first, place, out=self._first)
        torch.lt(self._first, self._nowhere, out=self._found)
        self._count.add_(1)

    @contextmanager
    def guarding(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside, a step of the optimizer changes nothing once a bad number was seen.

        The decision is the device's, by the flag through which torch's gradient scaler tells fused
        optimizers to skip a step. Others, which wait for a scaler's answer, go on.
        """
        if not (self.deferred and getattr(optimizer, "_step_supports_amp_scaling", False)):
            yield
            return
        optimizer.found_inf = self._found  # type: ignore[attr-defined]
        try:
            yield
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]

    def first(self) -> Moment | None:
        """The first bad moment recorded since the last question; waits for the device."""
        place, moments = int(self._first), self._moments
        self._first.copy_(self._nowhere)
        self._count.zero_()
        self._found.zero_()
        self._moments = []
        return moments[place] if place < len(moments) else None


def explain(
    model: nn.Module,
    phase: str,
    moment: Moment,
    rerun: Callable[[], Losses],
    process: int | None = None,
) -> NonFiniteLoss:
    """Run a phase again, watching every module, and return the error that names the source."""
    with _first_non_finite_module(model) as found:
        losses = rerun()
    values = ", ".join(f"{name} {float(value.detach()):.6g}" for name, value in losses.items())
    module, source = found[0] if found else (None, _source_outside(losses["loss"]))
    step, where = moment.step + 1, "" if process is None else f" on process {process}"
    return NonFiniteLoss(
        phase,
        step,
        module,
        f"training stopped at step {step}: phase {phase!r} is no longer finite{where} ({values}). "
        f"{source} A lower learning rate, a stronger regularizer or fp32 may help.",
        process,
    )


def _source_outside(loss: Tensor) -> str:
    if bool(loss.detach().isfinite()):
        return "The loss and every module's output are finite; its gradient is not."
    return "Every module's output is finite: the loss itself is the source."


@contextmanager
def _first_non_finite_module(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Collects (name, sentence) of the first module inside that returns a non-finite number."""
    found: list[tuple[str, str]] = []
    handles = [
        module.register_forward_hook(_watch(name or "the model", found))
        for name, module in model.named_modules()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, found: list[tuple[str, str]]) -> Callable[[nn.Module, object, object], None]:
    # Hooks run as modules return, so an inner module is found before the ones around it.
    def hook(module: nn.Module, inputs: object, outputs: object) -> None:
        if not found and not all_finite(outputs):
            found.append((name, f"{_source_inside(name, module, inputs)}."))

    return hook


def _source_inside(name: str, module: nn.Module, inputs: object) -> str:
    what = f"The first module to return a non-finite number is {name} ({type(module).__name__})"
    weights = [
        key for key, weight in module.named_parameters(recurse=False) if not all_finite(weight)
    ]
    if weights:
        return f"{what}, whose {' and '.join(weights)} no longer is finite"
    if not all_finite(inputs):
        return f"{what}, whose inputs already were not finite"
    return f"{what}, from finite inputs"


def all_finite(value: object) -> bool:
    """Whether every number in the tensors of nested tuples and lists is finite."""
    if isinstance(value, Tensor):
        return bool(value.detach().isfinite().all())
    if isinstance(value, (tuple, list)):
        return all(map(all_finite, value))
    return True
