"""The exponential moving average of weights (EMA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .checkpoint import ForeignCheckpoint


class WeightAverage:
    r"""An average of some sub-modules' weights over the training, which forgets exponentially:

    .. math:: a_0 = w_0, \qquad a_t = \beta_t a_{t-1} + (1 - \beta_t) w_t

    A generator's weights circle around a good point; their average lies nearer to it. Parameters
    are averaged, buffers copied. Averages of bfloat16 and float16 weights are float32: in 16 bits
    a thousandth of a difference is lost beside what it is added to.

    With `warm_up`, beta_t = min(decay, (1 + t) / (10 + t)): the average then spans about the last
    tenth of the training so far until `decay` is reached, instead of remembering the untrained
    weights w_0 for 1 / (1 - decay) steps. Without it, beta_t = decay, and weights that jump from 0
    to a constant c at t = 1 average to c (1 - decay^t).

    Args:
        model: holds the sub-modules.
        names: their attribute names, such as ``("generator",)``.
        decay: in [0, 1).
        warm_up: whether to start with a short memory.
    """

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], decay: float, *, warm_up: bool = True
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"ema_decay must lie in [0, 1) (got {decay}); 0 or None switches it off"
            )
        self.decay, self.warm_up = decay, warm_up
        modules = [(f"{name}.", model.get_submodule(name)) for name in names]
        parameters = {
            prefix + key: parameter
            for prefix, module in modules
            for key, parameter in module.named_parameters(remove_duplicate=False)
        }
        buffers = {
            prefix + key: buffer
            for prefix, module in modules
            for key, buffer in module.named_buffers(remove_duplicate=False)
        }
        # What is tied has one average, and all of its names: a checkpoint's weights have them too.
        self._names: dict[Tensor, list[str]] = {}
        for name, tensor in {**parameters, **buffers}.items():
            self._names.setdefault(tensor, []).append(name)
        self._parameters = {self._names[each][0]: each for each in parameters.values()}
        self._buffers = {self._names[each][0]: each for each in buffers.values()}
        self.weights: dict[str, Tensor] = {}
        averaged = set(self._parameters.values())
        for tensor, tied in self._names.items():
            dtype = _wide(tensor.dtype) if tensor in averaged else tensor.dtype
            mean = tensor.detach().to(dtype, copy=True)
            self.weights.update(dict.fromkeys(tied, mean))
        self._kinds = list(
            dict.fromkeys((each.dtype, each.device) for each in self._parameters.values())
        )
        # 1 - beta_t lies on the device, so that a CUDA graph does not freeze it; in float64 where
        # the weights are.
        self._share = {
            (dtype, device): torch.zeros((), dtype=_wide(dtype.to_real()), device=device)
            for dtype, device in self._kinds
        }
        self._decay: float | None = None

    def update(self, t: int) -> None:
        """Take in the weights after step t = 1, 2, ..."""
        self.reach(t)
        self.follow()

    def reach(self, t: int) -> None:
        """Set the decay to that of step t, without waiting for the device."""
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay
        if decay != self._decay:
            for share in self._share.values():
                share.fill_(1 - decay)
            self._decay = decay

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the weights with the present decay: work on the device alone."""
        for kind in self._kinds:
            names = [n for n, p in self._parameters.items() if (p.dtype, p.device) == kind]
            averages = [self.weights[name] for name in names]
            change = torch._foreach_sub([self._parameters[name] for name in names], averages)
            torch._foreach_mul_(change, self._share[kind])
            torch._foreach_add_(averages, change)
        for name, buffer in self._buffers.items():
            self.weights[name].copy_(buffer)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averaged weights inside; only 16-bit ones are copied."""
        own = {tensor: tensor.data for tensor in self._names}
        try:
            for tensor, names in self._names.items():
                tensor.data = self.weights[names[0]].to(tensor.dtype)
            yield
        finally:
            for tensor, data in own.items():
                tensor.data = data

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the averages of a checkpoint.

        Raises:
            ForeignCheckpoint: they are not the averages of this model.
        """
        if weights.keys() != self.weights.keys():
            raise ForeignCheckpoint(
                "the averaged weights belong to another model: their names differ"
            )
        for name, average in self.weights.items():
            average.copy_(weights[name])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
