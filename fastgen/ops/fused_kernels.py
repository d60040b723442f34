"""What the compiled and the Triton operators share: the same operators under two namespaces.

`FusedKernels` turns them into passes of the operations: memory orders made to agree, in-place forms
used on tensors that nobody else holds, and a convolution of PyTorch's (cuDNN on a GPU) followed by
one pass over its output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .convolution import Activation
from .geometry import Geometry
from .layouts import is_dense, ordered_like, same_order
from .routing import CONVOLUTIONS, always, offer
from .torch_bias_leaky_relu import activate_
from .torch_convolution import PASSES, WAYS, linear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FusedKernels:
    """The passes that one namespace of operators computes.

    Args:
        operators: gives the namespace, loading it when first asked.
        any_order: whether its masks take a gradient in another order of memory than the output's.
    """

    def __init__(self, operators: Callable[[], Any], *, any_order: bool = False) -> None:
        self._operators = operators
        self._any_order = any_order

    # --- bias + leaky ReLU and its mask ---

    def bias_leaky_relu(self, input: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
        if not is_dense(input):
            result = torch.empty_like(input)
            return result.copy_(self.bias_leaky_relu(input.contiguous(), bias, negative_slope))
        bias = None if bias is None else bias.contiguous()
        output: Tensor = self._operators().bias_leaky_relu(input, bias, negative_slope)
        return output

    def mask(
        self, grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
    ) -> Tensor:
        if not is_dense(output):
            dense = output.contiguous()
            result = torch.empty_like(output)
            return result.copy_(self.mask(grad.contiguous(), shift, dense, negative_slope))
        shift = None if shift is None else shift.contiguous()
        operators = self._operators()
        if self._any_order or torch.compiler.is_compiling() or same_order(grad, output):
            through: Tensor = operators.leaky_relu_mask(
                self._ordered(grad, output), shift, output, negative_slope
            )
            return through
        copied = ordered_like(grad, output)
        operators.leaky_relu_mask_(copied, shift, output, negative_slope)
        return copied

    def mask_sum(
        self, grad: Tensor, output: Tensor, negative_slope: float
    ) -> tuple[Tensor, Tensor]:
        if not is_dense(output):
            through, total = self.mask_sum(grad.contiguous(), output.contiguous(), negative_slope)
            return torch.empty_like(output).copy_(through), total
        pair: tuple[Tensor, Tensor] = self._operators().leaky_relu_mask_sum(
            self._ordered(grad, output), None, output, negative_slope
        )
        return pair

    def _ordered(self, grad: Tensor, output: Tensor) -> Tensor:
        return grad if self._any_order else ordered_like(grad, output)

    # Ways of the same for calls whose shapes and layouts the operators take as they are. Which
    # operators is asked in every call: it may depend on modes (see `triton_kernels.operators`).

    def mask_way(
        self, grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
    ) -> Callable[..., Tensor]:
        as_they_are = is_dense(output) and same_order(grad, output)
        if torch.compiler.is_compiling() or not as_they_are:
            return self.mask
        return self._dense_mask if shift is None or shift.is_contiguous() else self.mask

    def _dense_mask(
        self, grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
    ) -> Tensor:
        result: Tensor = self._operators().leaky_relu_mask(grad, shift, output, negative_slope)
        return result

    def mask_sum_way(
        self, grad: Tensor, output: Tensor, negative_slope: float
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        as_they_are = is_dense(output) and same_order(grad, output)
        if torch.compiler.is_compiling() or not as_they_are:
            return self.mask_sum
        return self._dense_mask_sum

    def _dense_mask_sum(
        self, grad: Tensor, output: Tensor, negative_slope: float
    ) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor]
        pair = self._operators().leaky_relu_mask_sum(grad, None, output, negative_slope)
        return pair

    # --- PyTorch's convolution and one pass over its output ---

    def convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> Tensor:
        slope = 1.0 if activation == "tanh" else activation
        output = self.activate_(linear(input, weight, None, geometry), bias, slope)
        return activate_(output, activation) if activation == "tanh" else output

    def convolution_way(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> Callable[..., Tensor]:
        nothing = input.numel() == 0 or (bias is None and activation == 1)
        dense = bias is None or bias.is_contiguous()
        if torch.compiler.is_compiling() or activation == "tanh" or nothing or not dense:
            return self.convolution
        return self._convolution_and_epilogue

    def _convolution_and_epilogue(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        negative_slope: float,
        geometry: Geometry,
    ) -> Tensor:
        output = linear(input, weight, None, geometry)
        self._operators().bias_leaky_relu_(output, bias, negative_slope)
        return output

    def activate_(self, fresh: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
        """Bias and leaky ReLU in place, on a tensor that nobody else holds."""
        if (bias is None and negative_slope == 1) or fresh.numel() == 0:
            return fresh
        bias = None if bias is None else bias.contiguous()
        if torch.compiler.is_compiling():  # out of place, see `torch_bias_leaky_relu.activate_`
            traced: Tensor = self._operators().bias_leaky_relu(fresh, bias, negative_slope)
            return traced
        self._operators().bias_leaky_relu_(fresh, bias, negative_slope)
        return fresh

    def masked_convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        negative_slope: float,
        geometry: Geometry,
    ) -> Tensor:
        result = linear(input, weight, None, geometry)
        return self.mask_(result, bias, output, negative_slope)

    def mask_(
        self, fresh: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
    ) -> Tensor:
        """The mask in place, on a tensor that nobody else holds."""
        if torch.compiler.is_compiling() or not same_order(fresh, output) or not is_dense(output):
            return self.mask(fresh, shift, output, negative_slope)
        shift = None if shift is None else shift.contiguous()
        self._operators().leaky_relu_mask_(fresh, shift, output, negative_slope)
        return fresh

    # --- the reparameterization ---

    def reparameterize(self, mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        mu, logvar = _agreeing(mu, logvar)
        z: Tensor = self._operators().reparameterize(mu, logvar, seed)
        return z

    def reparameterize_kl(self, mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = _agreeing(mu, logvar)
        pair: tuple[Tensor, Tensor] = self._operators().reparameterize_kl(mu, logvar, seed)
        return pair

    def scaled_noise(self, scale: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        logvar, scale = _agreeing(logvar, scale)
        result: Tensor = self._operators().scaled_noise(scale, logvar, seed)
        return result

    def reparameterize_backward(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        logvar: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        mu, logvar = _agreeing(mu, logvar)
        if grad_z is not None:
            _, grad_z = _agreeing(mu, grad_z)
        if grad_kl is not None:
            grad_kl = grad_kl.contiguous()
        pair: tuple[Tensor, Tensor] = self._operators().reparameterize_backward(
            grad_z, grad_kl, mu, logvar, seed
        )
        return pair


def _agreeing(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one memory order that the operators take: dense, or rows a constant apart."""
    if first.is_contiguous() and second.is_contiguous():
        return first, second
    if not (is_dense(first) or _rows_apart(first)):
        first = first.contiguous()
    if first.is_contiguous() or _rows_apart(first):
        return first, second if _rows_apart(second) else second.contiguous()
    return first, ordered_like(second, first)


def _rows_apart(tensor: Tensor) -> bool:
    """Whether each sample is contiguous, as the halves of a chunked tensor are."""
    expected = 1
    for extent, stride in zip(
        reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True
    ):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return tensor.dim() > 0 and (len(tensor) <= 1 or tensor.stride(0) >= expected)


def computes_in(dtypes: Collection[torch.dtype]) -> Callable[..., bool]:
    """Whether operators of these dtypes take the tensors of a call."""
    known = frozenset(dtypes)

    def computes(*arguments: Any) -> bool:
        operands = [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
        return operands[0].dim() > 0 and operands[0].dtype in known

    return computes


computes = computes_in(DTYPES)


def offer_fused(
    kernels: FusedKernels,
    mark: str,
    backends: Iterable[str],
    *,
    also_plain: Iterable[str],
    dtypes: Collection[torch.dtype] = DTYPES,
    expected: Mapping[str, tuple[Callable[..., bool], str]] | None = None,
) -> None:
    """Enter the passes as candidates.

    Args:
        mark: of the candidates' names.
        backends: that the operators belong to.
        also_plain: passes of convolutions that these backends leave to PyTorch.
        dtypes: that the operators take.
        expected: whether a candidate should win unmeasured, and in words when, by kind:
            ``"activation"``, ``"mask"``, ``"mask_sum"``, ``"noise"``, ``"convolution"`` and
            ``"plain"``. A kind that is not named should.
    """
    bias = ("bias_leaky_relu",)
    every = (*bias, *CONVOLUTIONS)
    noise = ("reparameterize",)
    one_pass = f"one pass ({mark})"
    epilogue, masked = f"convolution + epilogue ({mark})", f"convolution + mask ({mark})"
    ways: dict[Callable[..., Any], Callable[..., Callable[..., Any]]] = {
        kernels.mask: kernels.mask_way,
        kernels.mask_sum: kernels.mask_sum_way,
        kernels.convolution: kernels.convolution_way,
    }
    entries: list[tuple[str, str, Iterable[str], str, Callable[..., Any]]] = [
        # kind, name, operations, pass, what computes it
        ("activation", one_pass, bias, "forward", kernels.bias_leaky_relu),
        ("mask", one_pass, every, "mask", kernels.mask),
        ("mask_sum", one_pass, every, "mask_sum", kernels.mask_sum),
        ("noise", one_pass, noise, "forward", kernels.reparameterize),
        ("noise", one_pass, noise, "forward_kl", kernels.reparameterize_kl),
        ("noise", one_pass, noise, "scaled_noise", kernels.scaled_noise),
        ("noise", one_pass, noise, "backward", kernels.reparameterize_backward),
        ("convolution", epilogue, CONVOLUTIONS, "forward", kernels.convolution),
        ("convolution", masked, CONVOLUTIONS, "masked_forward", kernels.masked_convolution),
    ]
    backends, fits, wins = list(backends), computes_in(dtypes), expected or {}
    for kind, name, operations, pass_, run in entries:
        win, when = wins.get(kind, (always, ""))
        offer(name, backends, operations, [pass_], run, fits=fits, expected=win, when=when,
              narrow=ways.get(run))  # fmt: skip
    for pass_ in also_plain:
        win, when = wins.get("plain", (always, ""))
        offer("plain convolution", backends, CONVOLUTIONS, [pass_], PASSES[pass_],
              fits=fits, expected=win, when=when, narrow=WAYS[pass_])  # fmt: skip
