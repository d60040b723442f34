"""Any step of a training loop in a CUDA graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .graphs import CaptureError, CudaGraphs, Graphs, Recording, record

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["CaptureError", "Captured", "capture"]


def capture(
    step_function: Callable[P, R],
    example_inputs: Sequence[object],
    *,
    warmup: int = 3,
    generators: Sequence[torch.Generator] = (),
) -> Captured[P, R]:
    """Let a function run as one CUDA graph: losses, gradients of any order, the optimizer's step.

    A step of a small network is some thousand launches from Python; replaying a graph is one. What
    is called here is the whole step, so a gradient penalty, which differentiates twice, may be in
    it.

    **Calls.** The first `warmup` calls run the function as it is, on a side stream: they are real
    steps, with the inputs they are given. The next call records the function, which executes
    nothing, and replays the recording; every later call replays. So n calls are n steps, and no
    step is made up. A call copies its inputs to fixed memory and waits for nothing; the ``.grad``
    of an input that requires one is that of this call alone.

    **Results** are what the function returned when it was recorded, without gradients of their
    own; each call overwrites them. Clone what is to be kept.

    **What the function must keep to**, because a replay repeats its work on the GPU and runs none
    of its Python:

    * it does not wait for the GPU: no ``.item()``, ``.cpu()``, ``print(tensor)``, ``if tensor:``;
    * what changes from call to call is an input or a tensor that stays where it is (weights,
      buffers, optimizer state): a number in Python is frozen, so a learning rate that changes must
      be a tensor;
    * optimizers are made with ``capturable=True`` (and ``fused=True``), SGD needs neither;
    * random numbers come from the GPU's default generator or from `generators`. They go on from
      call to call as without capture; calling ``torch.manual_seed`` before a call seeds it;
    * input shapes do not change.

    Args:
        step_function: the step. Parameters and buffers it uses must not be replaced afterwards.
        example_inputs: its arguments, in order. Tensors say which shape, dtype and device every
            call has; anything else is a constant that every call must repeat.
        warmup: how many calls run eagerly first, at least 1: they choose kernels and create the
            optimizer's state.
        generators: of the inputs' device, other than its default one, that the function draws from.

    Returns:
        a callable with the arguments of `step_function`, see :class:`Captured`.

    Raises:
        ValueError: tensors on several devices, or a `warmup` below 1. On a call: an argument whose
            shape, dtype or device differs from the example's; it is named.
        CaptureError: on the recording call: the function cannot be captured. Nothing was executed;
            only the ``.grad`` of parameters may have been left with nonsense.

    Without a CUDA device among the inputs, every call runs the function eagerly, with the same
    checks: one loop runs everywhere.

    Example::

        def step(images, noise):
            loss = gan.discriminator_loss(images, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        step = fastgen.capture(step, (images, noise))
        for images, noise in batches:
            loss = step(images, noise)
    """
    if warmup < 1:
        raise ValueError(
            f"warmup must be at least 1 (got {warmup}): the optimizer's state is made in it"
        )
    devices = {each.device for each in example_inputs if isinstance(each, Tensor)}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"example_inputs must lie on one device (got {names})")
    device = next(iter(devices), torch.device("cpu"))
    graphs = CudaGraphs(device, generators) if device.type == "cuda" else None
    return Captured(step_function, example_inputs, warmup, graphs)


class Captured(Generic[P, R]):
    """A function that runs eagerly a few times, then as a CUDA graph; made by :func:`capture`.

    Attributes:
        replaying: whether the function has been recorded, so that calls replay it.
    """

    def __init__(
        self,
        function: Callable[P, R],
        example_inputs: Sequence[object],
        warmup: int,
        graphs: Graphs | None,
    ) -> None:
        self._function, self._graphs, self._left = function, graphs, warmup
        self._names, self._signature = _arguments(function, len(example_inputs))
        # The layout too: kernels are chosen by it, and channels_last should stay what it is.
        self._inputs = [
            torch.empty_like(each).requires_grad_(each.requires_grad)
            if isinstance(each, Tensor)
            else each
            for each in example_inputs
        ]
        self._recording: Recording[R] | None = None

    @property
    def replaying(self) -> bool:
        return self._recording is not None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        self._take(self._in_order(args, kwargs))
        if self._graphs is None:
            return self._run()
        if self._left:
            self._left -= 1
            with self._graphs.apart():
                return self._run()
        if self._recording is None:
            self._recording = record(self._graphs, self._run)
        self._recording.replay()
        return self._recording.results

    def _run(self) -> R:
        for each in self._inputs:
            if isinstance(each, Tensor):
                # Else a backward adds to what the last call left; a recorded one in every replay.
                each.grad = None
        results = self._function(*self._inputs)  # type: ignore[call-arg,arg-type]
        detached: R = tree_map_only(Tensor, Tensor.detach, results)
        return detached

    def _in_order(self, args: Sequence[object], kwargs: dict[str, Any]) -> list[object]:
        given = list(args)
        if kwargs:
            if self._signature is None:
                raise TypeError("this function's arguments have no names: give them in order")
            given = list(self._signature.bind(*args, **kwargs).arguments.values())
        if len(given) != len(self._inputs):
            raise TypeError(
                f"expected {len(self._inputs)} arguments as in example_inputs (got {len(given)})"
            )
        return given

    @torch.no_grad()
    def _take(self, given: list[object]) -> None:
        for name, there, here in zip(self._names, self._inputs, given, strict=True):
            _check(name, there, here)
        for there, here in zip(self._inputs, given, strict=True):
            if isinstance(there, Tensor) and isinstance(here, Tensor):
                there.copy_(here, non_blocking=True)


def _check(name: str, expected: object, given: object) -> None:
    if isinstance(expected, Tensor) and isinstance(given, Tensor):
        for what in ("shape", "dtype", "device"):
            one, other = getattr(expected, what), getattr(given, what)
            if one != other:
                shown = tuple if what == "shape" else str
                raise ValueError(
                    f"{name} must have the {what} of its example, {shown(one)} (got {shown(other)})"
                )
    elif isinstance(expected, Tensor) or isinstance(given, Tensor) or expected != given:
        shown_given = "a tensor" if isinstance(given, Tensor) else repr(given)
        shown_expected = "a tensor" if isinstance(expected, Tensor) else repr(expected)
        raise ValueError(
            f"{name} must be what its example was, {shown_expected} (got {shown_given})"
        )


def _arguments(
    function: Callable[..., object], count: int
) -> tuple[list[str], inspect.Signature | None]:
    """Names of the first arguments, and the signature where there is one."""
    try:
        signature = inspect.signature(function)
        bound = signature.bind(*range(count)).arguments
    except (TypeError, ValueError):
        return [f"input {place}" for place in range(count)], None
    names = [
        f"{name}[{place}]" if isinstance(value, tuple) else name
        for name, value in bound.items()
        for place in range(len(value) if isinstance(value, tuple) else 1)
    ]
    return names, signature
