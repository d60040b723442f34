"""Which of several ways computes an operation on this device, for this shape: measured once, kept.

Every way to compute one pass of an operation (forward, input gradient, ...) is a `Candidate`. A
`Router` stands where a backend's kernels stand and hands each call to one candidate:

1. the choice made before for this (operation, pass, shapes, dtypes, layouts, settings), in memory
   or in the table on disk (`route_table`);
2. else, on a GPU, the fastest by measurement on the very tensors of the call (`route_timing`);
3. else the written rule: the first candidate of the list that fits and is expected to win.

The rule alone decides where nothing may be measured or where a choice must not depend on a clock:
with `FASTGEN_ROUTES=off`, while a graph is traced or a CUDA graph captured, and under
`torch.use_deterministic_algorithms`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import backend, route_timing, variables
from .convolution import Activation
from .geometry import Geometry
from .gradients import are_alone, is_followed
from .layouts import is_channels_last_like
from .route_table import Route, table_of

# What `torch.backends.cudnn.conv.fp32_precision` asks, by way of four objects.
_precision = torch._C._get_fp32_precision_getter
is_deterministic = torch.are_deterministic_algorithms_enabled
uses_onednn = torch._C._get_mkldnn_enabled  # what `torch.backends.mkldnn.enabled` asks


def always(*_: Any) -> bool:
    """Of a candidate that always fits, or always should win."""
    return True


def never(*_: Any) -> bool:
    """Of a candidate that is taken by measurement or by name alone."""
    return False


@dataclass(frozen=True)
class Candidate:
    """One way to compute a pass.

    Attributes:
        name: what `fastgen info --routes` calls it.
        backends: the backends it belongs to; a backend asked for by name uses its own only.
        fits: whether it computes this call right; takes the arguments of the pass.
        run: computes it; changes none of its arguments.
        expected: whether it should win unmeasured when backends compete; takes the arguments of
            the pass.
        when: the same in words, for `fastgen info --routes`; empty where it always should.
        narrow: from the arguments of a call, what `run` does for all calls that the router does
            not tell apart; None: there is nothing to find out. Not asked while a graph is traced.
    """

    name: str
    backends: frozenset[str]
    fits: Callable[..., bool]
    run: Callable[..., Any]
    expected: Callable[..., bool] = always
    when: str = ""
    narrow: Callable[..., Callable[..., Any]] | None = None


CONVOLUTIONS = ("conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu")
_CONVOLUTION = (
    "forward",
    "masked_forward",
    "input_gradient",
    "weight_gradient",
    "mask",
    "mask_sum",
)
PASSES = {
    "bias_leaky_relu": ("forward", "mask", "mask_sum"),
    **dict.fromkeys(CONVOLUTIONS, _CONVOLUTION),
    "reparameterize": ("forward", "forward_kl", "scaled_noise", "backward"),
}
"""What an operation is made of; the arguments are those of the routers' methods."""

CANDIDATES: dict[tuple[str, str], list[Candidate]] = {}
"""By operation and pass, in the order of the written rule: backends as `backend.BACKENDS` lists
them, and as offered within one.
"""


def offer(
    name: str,
    backends: Iterable[str],
    operations: Iterable[str],
    passes: Iterable[str],
    run: Callable[..., Any],
    *,
    fits: Callable[..., bool] = always,
    expected: Callable[..., bool] = always,
    when: str = "",
    narrow: Callable[..., Callable[..., Any]] | None = None,
) -> None:
    """Enter a candidate for every pass of every operation named."""
    candidate = Candidate(name, frozenset(backends), fits, run, expected, when, narrow)
    order = list(backend.BACKENDS)
    for operation in operations:
        for pass_ in passes:
            entries = CANDIDATES.setdefault((operation, pass_), [])
            entries.append(candidate)
            entries.sort(key=lambda entry: min(map(order.index, entry.backends)))


ALWAYS_DIFFERENTIABLE = frozenset({"torch"})
"""Backends of PyTorch's own operators, which have gradients without a Function around them."""


class Router:
    """The kernels of one operation, each call handed to one candidate.

    Args:
        operation: stem of the operation.
        backends: the backends whose candidates may run; None: all that can run here.
    """

    def __init__(self, operation: str, backends: Iterable[str] | None = None) -> None:
        self.operation = operation
        self.backends = None if backends is None else frozenset(backends)
        self._chosen: dict[Hashable, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        names = "any backend" if self.backends is None else ", ".join(sorted(self.backends))
        return f"{type(self).__name__}({self.operation}, {names})"

    def candidates(self, pass_: str, *arguments: Any) -> list[Candidate]:
        """Those that can compute this call here, in the order of the written rule."""
        device_type = _first_tensor(arguments).device.type
        allowed = self.backends or backend.automatic_names(device_type)
        if are_alone():  # an operator without autograd would have gradient 0
            allowed = ALWAYS_DIFFERENTIABLE.intersection(allowed)
        entries = CANDIDATES.get((self.operation, pass_), [])
        return [
            entry
            for entry in entries
            if not allowed.isdisjoint(entry.backends) and entry.fits(*arguments)
        ]

    def run(self, pass_: str, *arguments: Any) -> Any:
        """Compute the pass."""
        if is_followed():
            return self._run_by_rule(pass_, arguments)
        # Every call comes by here: one flat key, built in place.
        words: list[Hashable] = [pass_, is_deterministic(), uses_onednn()]
        if self.operation in CONVOLUTIONS:
            words.append(precision_on(arguments[0]))
        for argument in arguments:
            if isinstance(argument, Tensor):
                words += (
                    type(argument),  # tensors without memory are not measured
                    argument.shape,
                    argument.stride(),
                    argument.dtype,
                    argument.device,
                    # Kernels with wide accesses want aligned addresses, so a shifted view is
                    # another case.
                    argument.storage_offset() % 8 == 0,
                )
            else:
                words.append(argument)
        key = tuple(words)
        try:
            run = self._chosen.get(key)
        except TypeError:  # a size that is a symbol
            return self._run_by_rule(pass_, arguments)
        if run is None:
            run = self.choose(self._chosen, key, pass_, *arguments)
        return run(*arguments)

    def _run_by_rule(self, pass_: str, arguments: tuple[Any, ...]) -> Any:
        return self._by_rule(self.candidates(pass_, *arguments), pass_, arguments).run(*arguments)

    def choose(
        self, memory: dict[Hashable, Callable[..., Any]], key: Hashable, pass_: str, *arguments: Any
    ) -> Callable[..., Any]:
        """What runs for a call, kept in `memory` if it stands for the calls to come."""
        chosen, final = self._choose(pass_, arguments)
        run = chosen.run if chosen.narrow is None else chosen.narrow(*arguments)
        if final:
            memory[key] = run
        return run

    def forget(self) -> None:
        """Drop the choices in memory."""
        self._chosen.clear()

    def _choose(self, pass_: str, arguments: tuple[Any, ...]) -> tuple[Candidate, bool]:
        """The candidate for a call, and whether the choice stands for the calls to come."""
        candidates = self.candidates(pass_, *arguments)
        rule = self._by_rule(candidates, pass_, arguments)
        device = _first_tensor(arguments).device
        if len(candidates) == 1 or not _measures(arguments):
            return rule, True
        table = table_of(device)
        call = describe(self.operation, pass_, arguments)
        names = {entry.name for entry in candidates}
        known = table.get(call)
        # A table from before a candidate was built is measured again.
        if known is None or not names <= known.seconds.keys():
            if route_timing.cannot_measure_now(device):
                return rule, False
            ways = {entry.name: entry.run for entry in candidates}
            try:
                seconds = route_timing.measure(ways, arguments, device)
            except torch.OutOfMemoryError:  # says nothing about the next process
                return rule, True
            if known is not None:
                seconds = {**known.seconds, **seconds}
            known = Route(_fastest(seconds, rule.name), seconds)
            table.put(call, known)
        choice = known.choice
        if choice not in names:
            choice = _fastest({name: known.seconds[name] for name in names}, rule.name)
        return next(entry for entry in candidates if entry.name == choice), True

    def _by_rule(
        self, candidates: list[Candidate], pass_: str, arguments: tuple[Any, ...]
    ) -> Candidate:
        if not candidates:
            if are_alone():
                raise backend.BackendUnavailable(
                    f"no kernel of backend {self._names()} can be taken through this transform of "
                    "torch.func; use backend='torch'"
                )
            given = describe(self.operation, pass_, arguments)
            raise backend.BackendUnavailable(
                f"no kernel of backend {self._names()} computes {given}; use backend='torch'"
            )
        if self.backends is not None:  # asked for by name: its own kernels come first
            return candidates[0]
        return next((c for c in candidates if c.expected(*arguments)), candidates[0])

    def _names(self) -> str:
        return " or ".join(repr(name) for name in sorted(self.backends or ["auto"]))


class ConvolutionPasses:
    """The passes of a convolution or a transposed one, by a `run` that finds their kernels."""

    run: Callable[..., Any]

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        geometry: Geometry,
    ) -> Tensor:
        result: Tensor = self.run("forward", input, weight, bias, activation, geometry)
        return result

    def masked_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        negative_slope: float,
        geometry: Geometry,
    ) -> Tensor:
        result: Tensor = self.run(
            "masked_forward", input, weight, bias, output, negative_slope, geometry
        )
        return result

    def input_gradient(
        self, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
    ) -> Tensor:
        result: Tensor = self.run("input_gradient", grad, weight, size, geometry)
        return result

    def weight_gradient(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> Tensor:
        result: Tensor = self.run("weight_gradient", input, grad, weight, geometry)
        return result

    def both_gradients(
        self, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        size = input.shape[2], input.shape[3]
        return (
            self.input_gradient(grad, weight, size, geometry),
            self.weight_gradient(input, grad, weight, geometry),
        )

    def mask(
        self, grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
    ) -> Tensor:
        result: Tensor = self.run("mask", grad, shift, output, negative_slope)
        return result

    def mask_sum(
        self, grad: Tensor, output: Tensor, negative_slope: float
    ) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.run("mask_sum", grad, output, negative_slope)
        return pair


class ConvolutionRouter(ConvolutionPasses, Router):
    """The kernels of a convolution or a transposed convolution.

    Attributes:
        known, recalled: what `layer_calls` remembers of the layers called so far.
    """

    def __init__(self, operation: str, backends: Iterable[str] | None = None) -> None:
        super().__init__(operation, backends)
        self.known: dict[Hashable, Any] = {}
        self.recalled: dict[Hashable, Any] = {}

    def narrowed(self) -> NarrowedConvolution:
        """The kernels for tensors of shapes, a dtype and a device that will not change."""
        return NarrowedConvolution(self)

    def forget(self) -> None:
        super().forget()
        for call in self.known.values():  # graphs that are still to be differentiated hold it
            call.forget()
        self.known.clear()
        self.recalled.clear()


class NarrowedConvolution(ConvolutionPasses):
    """The kernels of a convolution for one geometry and tensors of known shapes, dtype and device.

    A layer, its gradients and theirs ask for passes over tensors of three shapes. What is left to
    tell calls apart are layouts, so finding a choice costs a part of what a router takes.
    """

    def __init__(self, router: ConvolutionRouter) -> None:
        self._router = router
        self._chosen: dict[Hashable, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._router})"

    def forget(self) -> None:
        """Drop the choices in memory."""
        self._chosen.clear()

    def run(self, pass_: str, *arguments: Any) -> Any:
        """Compute the pass; the geometry is the last of its arguments, if it has one."""
        if is_followed():
            return self._router.run(pass_, *arguments)
        run, _ = self.find(pass_, *arguments)
        return run(*arguments)

    def find(self, pass_: str, *arguments: Any) -> tuple[Callable[..., Any], bool]:
        """What computes the pass, and whether that stands for the calls to come."""
        words: list[Hashable] = [
            pass_,
            is_deterministic(),
            uses_onednn(),
            precision_on(arguments[0]),
        ]
        for argument in arguments:
            if isinstance(argument, Tensor):
                words += (argument.stride(), argument.storage_offset() % 8 == 0)
            elif type(argument) is not Geometry:
                words.append(argument)
        key = tuple(words)
        run = self._chosen.get(key)
        if run is not None:
            return run, True
        run = self._router.choose(self._chosen, key, pass_, *arguments)
        return run, key in self._chosen


class BiasLeakyReLURouter(Router):
    """The kernels of bias + leaky ReLU."""

    def forward(self, input: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
        result: Tensor = self.run("forward", input, bias, negative_slope)
        return result

    mask = ConvolutionPasses.mask
    mask_sum = ConvolutionPasses.mask_sum


class ReparameterizeRouter(Router):
    """The kernels of the reparameterization."""

    def forward(self, mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        z: Tensor = self.run("forward", mu, logvar, seed)
        return z

    def forward_kl(self, mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.run("forward_kl", mu, logvar, seed)
        return pair

    def scaled_noise(self, scale: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        result: Tensor = self.run("scaled_noise", scale, logvar, seed)
        return result

    def backward(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        logvar: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.run("backward", grad_z, grad_kl, mu, logvar, seed)
        return pair


ROUTERS: dict[str, type[Router]] = {
    "bias_leaky_relu": BiasLeakyReLURouter,
    "conv2d_bias_leaky_relu": ConvolutionRouter,
    "conv_transpose2d_bias_leaky_relu": ConvolutionRouter,
    "reparameterize": ReparameterizeRouter,
}
for _operation, _router in ROUTERS.items():
    backend.register(_operation, backend.AUTO, _router(_operation))
    for _name in backend.BACKENDS:
        backend.register(_operation, _name, _router(_operation, [_name]))


def forget() -> None:
    """Drop every choice in memory; tables on disk stay and are read again."""
    for kernels in backend.KERNELS.values():
        if isinstance(kernels, Router):
            kernels.forget()
    table_of.cache_clear()


def describe(operation: str, pass_: str, arguments: Iterable[Any]) -> str:
    """The words for a call under which the table keeps it."""
    words = [operation, pass_, *map(_words, arguments)]
    if torch.float32 in {a.dtype for a in arguments if isinstance(a, Tensor)}:
        words.append("tf32" if allow_tf32() else "ieee")
    if torch.backends.cudnn.benchmark:
        words.append("cudnn.benchmark")
    return " ".join(words)


def allow_tf32() -> bool:
    """Whether PyTorch's settings let float32 convolutions multiply in TensorFloat-32."""
    if is_compiling():  # traceable, but refuses a mix of the old and new flags
        return bool(torch.backends.cudnn.allow_tf32)
    return bool(_precision("cuda", "conv") == "tf32")


def precision_on(tensor: Tensor) -> object:
    """PyTorch's setting for the precision of convolutions of float32, on a GPU: there kernels are
    made for one or the other.
    """
    return tensor.is_cuda and _precision("cuda", "conv")


def _measures(arguments: Iterable[Any]) -> bool:
    """Whether a choice may depend on a measurement."""
    return (
        variables.read("FASTGEN_ROUTES") != "off"
        and not torch.are_deterministic_algorithms_enabled()
        and all(type(a) in (Tensor, torch.nn.Parameter) for a in arguments if isinstance(a, Tensor))
        and route_timing.clock_of(_first_tensor(arguments).device) is not None
    )


# Within this of the fastest, the written rule's choice stays: the difference is noise.
NOISE = 1.02


def _fastest(seconds: dict[str, float], rule: str) -> str:
    best = min(seconds, key=seconds.__getitem__)
    return rule if seconds.get(rule, float("inf")) <= NOISE * seconds[best] else best


def _first_tensor(arguments: Iterable[Any]) -> Tensor:
    return next(argument for argument in arguments if isinstance(argument, Tensor))


def _words(argument: Any) -> str:
    if isinstance(argument, Tensor):
        dtype = str(argument.dtype).removeprefix("torch.")
        return f"{dtype}[{'x'.join(map(str, argument.shape))} {layout_of(argument)}]"
    if isinstance(argument, Geometry):
        return (
            f"stride={_joined(argument.stride)} padding={_joined(argument.padding)} "
            f"dilation={_joined(argument.dilation)} groups={argument.groups}"
            + (f" output_padding={_joined(argument.output_padding)}" if argument.transposed else "")
        )
    if isinstance(argument, tuple):
        return f"to {_joined(argument)}"
    return "-" if argument is None else str(argument)


def _joined(values: Iterable[int]) -> str:
    return "x".join(map(str, values))


def layout_of(tensor: Tensor) -> str:
    """The name of a tensor's layout, its strides where it has none."""
    if tensor.is_contiguous():
        return "either" if is_channels_last_like(tensor) else "contiguous"
    if is_channels_last_like(tensor):
        return "channels_last"
    return f"strides {_joined(tensor.stride())}"
