"""What the ladder measures: layers, whole training steps and sampling, by every way there is.

A subject has a table of ways; each entry makes a candidate, a function without arguments, for a
rung of the ladder.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.training.capture import capture

from . import peers, steps
from .jax_peer import critic_seconds
from .layers import LAYERS, Layer
from .onnx_peer import onnx_sampler
from .passes import BOTH, Pass, bias_leaky_relu_pass, layer_pass, reparameterize_pass
from .rungs import Rung
from .runners import tensors_in
from .steps import CPU_STEPS, LATENTS, STEPS, Step
from .timing import rotating
from .work import Work, work_per_batch

Candidate = Callable[[], object]


class Outside(NamedTuple):
    """Seconds per call that were measured in a process of its own."""

    seconds: float
    wall_seconds: float


Maker = Callable[[Rung, torch.device], Candidate | Outside]


@dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
        name, kind: what it is called; "layer", "step" or "sampling".
        batch: images in one call.
        work: counts operations and numbers of one call.
        ways: from a way to what makes its candidate; other ways do not apply.
        compares: whether all candidates return the same numbers.
        compile_seconds: what torch.compile is expected to take, once, for one precision.
        quick_compile: whether --quick has time for that.
    """

    name: str
    kind: str
    batch: int
    work: Callable[[], Work]
    ways: Mapping[str, Maker]
    compares: bool = False
    compile_seconds: float = 4.0
    quick_compile: bool = False


def subjects(device: torch.device, *, tiny: bool = False) -> list[Subject]:
    """Layers, steps and sampling, of the size that suits the device; tiny: to try it out."""
    training = STEPS if device.type == "cuda" else CPU_STEPS
    if tiny:
        training = {
            kind: step._replace(batch=4, size=16, width=8) for kind, step in training.items()
        }
    return [
        sampling_subject(batch=2, size=16, width=8) if tiny else sampling_subject(),
        *(step_subject(kind, training[kind]) for kind in training),
        *layer_subjects(device, tiny=tiny),
    ]


# --- layers ---

LADDER_LAYERS = {
    "critic's first layer": "vae-64 E 1",
    "critic's third layer": "dcgan-64 D 3",
    "3x3 layer": "wgan-gp-32 D 3",
    "generator's fourth layer": "dcgan-64 G 4",
    "generator's last layer": "dcgan-64 G 5",
}
"""Names in the ladder and in `layers.LAYERS`: picture edges, wide layers, and both directions."""

CPU_BATCH = 32


def layer_subjects(device: torch.device, *, tiny: bool = False) -> list[Subject]:
    """Forward + backward of a few layers, and of the operations that only move numbers."""
    by_name = {layer.name: layer for layer in LAYERS}
    found = []
    for name, key in LADDER_LAYERS.items():
        layer = by_name[key]
        if device.type != "cuda":
            layer = layer._replace(batch=CPU_BATCH)
        if tiny:
            layer = layer.scaled(batch=2, channels=8, size=8)
        found.append(layer_subject(f"{name} {shape_of(layer)}", layer, BOTH))
    maps, latents = ((2, 4, 8, 8), (4, 8)) if tiny else ((32, 64, 64, 64), (4096, 512))
    if device.type == "cuda":
        maps, latents = (maps[0] * 8, *maps[1:]), (latents[0] * 8, latents[1])
    activation = bias_leaky_relu_pass(maps, BOTH)
    noise = reparameterize_pass(latents, BOTH)
    return [
        *found,
        pass_subject(f"bias_leaky_relu {_times(maps)}", maps[0], activation),
        pass_subject(f"reparameterize_kl {_times(latents)}", latents[0], noise),
    ]


def shape_of(layer: Layer) -> str:
    """What a layer is, in a few words."""
    arrow = f"{layer.inputs} to {layer.outputs}, {layer.size}x{layer.size}"
    return f"{arrow}, k{layer.kernel} s{layer.stride}{' up' if layer.transposed else ''}"


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def layer_subject(name: str, layer: Layer, pass_: str) -> Subject:
    """A pass of a convolution layer."""
    eager = peers.eager_layer(layer)

    def compiled(mode: str) -> Callable[..., Any]:
        # The backward of a compiled function is compiled with it.
        return peers.training_step(peers.compiled(eager, mode))

    measured = layer_pass(layer, pass_)
    return pass_subject(name, layer.batch, measured, compiled if pass_ == BOTH else None)


def pass_subject(
    name: str,
    batch: int,
    measured: Pass,
    compiled: Callable[[str], Callable[..., Any]] | None = None,
) -> Subject:
    """A pass of an operation; `compiled` makes it through torch.compile in a mode."""

    def candidate(function: Callable[..., Any], rung: Rung, device: torch.device) -> Candidate:
        return over_sets(
            function, lambda: measured.make(rung.torch_dtype, device, rung.memory_format), device
        )

    ways: dict[str, Maker] = {
        "eager": lambda rung, device: candidate(measured.eager, rung, device),
        "fastgen": lambda rung, device: candidate(measured.fastgen("auto", device), rung, device),
    }
    if compiled is not None:
        for mode in ("compile", "compile max-autotune"):
            ways[mode] = lambda rung, device: candidate(compiled(rung.way), rung, device)
    return Subject(name, "layer", batch, lambda: measured.work, ways, measured.compares)


CPU_SET_BYTES = 32 << 20


def over_sets(
    function: Callable[..., Any], make: Callable[[], tuple[Any, ...]], device: torch.device
) -> Candidate:
    """The function on one set of arguments after the other, so that a cache holds none of them.

    Results stay alive until as many bytes of later ones are there: they rotate through memory like
    the arguments, and the first touch of that memory is not timed. (On a GPU as many as there are
    sets.)
    """
    least = None if device.type == "cuda" else CPU_SET_BYTES
    sets = rotating(make, device, least_bytes=least)
    turns, results = itertools.cycle(sets), deque[Any](maxlen=len(sets))

    def call() -> Any:
        results.append(function(*next(turns)))
        return results[-1]

    if least is not None:
        held = sum(tensor.nbytes for tensor in tensors_in(call()))
        results = deque(maxlen=min(len(sets), 1 + least // max(1, held)))
        for _ in range(results.maxlen or 1):
            call()
    return call


# --- training steps ---


def step_subject(kind: str, step: Step) -> Subject:
    """A whole step: losses, gradients, Adam."""

    def looped(loop: steps.Loop) -> Candidate:
        return partial(loop.step, loop.images)

    def eager(rung: Rung, device: torch.device) -> Candidate:
        mode = None if rung.way == "eager" else rung.way
        return looped(steps.loop(kind, step, rung.dtype, mode, device, rung.memory_format))

    def fused(rung: Rung, device: torch.device) -> Candidate:
        return looped(steps.fastgen_loop(step, rung.dtype, device))

    def captured(rung: Rung, device: torch.device) -> Candidate:
        loop = steps.fastgen_loop(step, rung.dtype, device, capturable=True)
        return partial(capture(loop.step, (loop.images,)), loop.images)

    def jax(rung: Rung, device: torch.device) -> Outside:
        threads = torch.get_num_threads() if device.type == "cpu" else None
        timed = critic_seconds(
            step, rung.dtype, device, steps=100 if device.type == "cuda" else 2, limit_s=240,
            threads=threads,
        )  # fmt: skip
        per_thread = timed["process_seconds"] / (threads or 1)
        return Outside(timed["seconds"] if threads is None else per_thread, timed["seconds"])

    ways: dict[str, Maker] = {"eager": eager, "fastgen": fused, "captured": captured}
    ways |= dict.fromkeys(steps.COMPILED[kind], eager)
    if kind == "critic":
        ways["jax"] = jax
    name = f"{step.name}, {step.size}x{step.size}, width {step.width}, batch {step.batch}"
    return Subject(
        name, "step", step.batch, partial(steps.work, step), ways, compile_seconds=35.0,
        quick_compile=kind == "dcgan-64",
    )  # fmt: skip


# --- sampling ---


def sampling_subject(batch: int = 16, size: int = 64, width: int = 64) -> Subject:
    """Drawing a batch of images with a generator, without gradients."""
    step = STEPS["dcgan-64"]._replace(batch=batch, size=size, width=width)

    def generator() -> nn.Module:
        network: nn.Module = step.build().generator
        return network.requires_grad_(False).eval()

    def latents(rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(rows, LATENTS, generator=generator).to(device, dtype)

    def drawing(network: nn.Module, rung: Rung, device: torch.device) -> Candidate:
        network = network.to(device, rung.torch_dtype, memory_format=rung.memory_format)  # type: ignore[call-overload]
        z = latents(batch, device, rung.torch_dtype)
        draw: Callable[..., Any] = network
        if rung.way.startswith("compile"):
            draw = peers.compiled(network, rung.way)
        if rung.way == "captured":
            return partial(_without_gradient, capture(network.forward, (z,)), z)
        return partial(_without_gradient, draw, z)

    def onnx(rung: Rung, device: torch.device) -> Candidate:
        z = latents(batch, torch.device("cpu"), rung.torch_dtype)
        return onnx_sampler(peers.plain(generator()), z, torch.get_num_threads())

    def plain(rung: Rung, device: torch.device) -> Candidate:
        return drawing(peers.plain(generator()), rung, device)

    def fused(rung: Rung, device: torch.device) -> Candidate:
        return drawing(generator(), rung, device)

    def work() -> Work:
        def draw(rows: int) -> Candidate:
            z = latents(rows, torch.device("cpu"), torch.float32)
            return partial(_without_gradient, generator(), z)

        return work_per_batch(draw, batch)

    ways: dict[str, Maker] = dict.fromkeys(("eager", "compile", "compile max-autotune"), plain)
    ways |= {"fastgen": fused, "captured": fused, "onnxruntime": onnx}
    name = f"sampling, {size}x{size}, width {width}, batch {batch}"
    return Subject(
        name, "sampling", batch, work, ways, compares=True, compile_seconds=10.0, quick_compile=True
    )


@torch.no_grad()
def _without_gradient(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
