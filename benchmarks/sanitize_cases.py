"""A small case of every CUDA operator of fastgen, to run under compute-sanitizer.

    compute-sanitizer --tool memcheck  python benchmarks/sanitize_cases.py
    compute-sanitizer --tool racecheck python benchmarks/sanitize_cases.py
    python benchmarks/sanitize_cases.py --planted     # reads beyond an allocation, on purpose

Odd extents, every dtype, both layouts, shapes on both sides of each kernel's vector width. The
results are checked for NaN only; whether they are right is asked by tests/ops/test_on_gpu.py, which
runs the same cases. Without its own memory for each tensor (PYTORCH_NO_CUDA_MEMORY_CACHING=1) a
read beyond one tensor lands in another and stays unseen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgen.ops import compiled

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
Arguments = tuple[Any, ...]
Draw = Callable[..., Tensor]

# Positions and channels: below a vector, a vector and a bit, several blocks and a bit.
MAPS = ((1, 1, 1, 1), (3, 5, 7, 3), (2, 16, 9, 8), (2, 130, 33, 3), (1, 1, 67, 65))
LATENTS = ((1, 1), (5, 3), (3, 1030), (700, 8), (2, 4, 9, 7), (3, 70000))


def _activations(draw: Draw) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for layout in LAYOUTS:
        for shape in MAPS:
            yield draw(*shape, layout=layout), draw(*shape, layout=layout), draw(shape[1])


def _bias(draw: Draw) -> Iterator[Arguments]:
    for x, _, b in _activations(draw):
        for slope in (0.2, 1.0):
            yield from ((x.clone(), b, slope), (x.clone(), None, slope))


def _mask(draw: Draw) -> Iterator[Arguments]:
    for g, y, b in _activations(draw):
        yield from ((g.clone(), b, y, 0.2), (g.clone(), None, y, 0.0))


def _pairs(draw: Draw) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    seed = torch.tensor(-(2**40) - 3, device=draw(1).device)
    for shape in LATENTS:
        yield draw(*shape), draw(*shape), seed
    for shape in LATENTS[4:5]:
        yield *(draw(*shape, layout=torch.channels_last) for _ in "ab"), seed
    # The halves of one tensor, as an encoder's head gives them.
    mu, logvar = draw(5, 14).chunk(2, dim=1)
    yield mu, logvar, seed


def _sample(draw: Draw) -> Iterator[Arguments]:
    yield from _pairs(draw)


def _backward(draw: Draw) -> Iterator[Arguments]:
    for mu, logvar, seed in _pairs(draw):
        gz, gkl = torch.empty_like(mu).copy_(draw(*mu.shape)), draw(len(mu)).float()
        for first, second in ((gz, gkl), (None, gkl), (gz, None)):
            yield first, second, mu, logvar, seed


# (picture channels, other channels, height, width, kernel, stride, padding)
EDGES = (
    (3, 5, 9, 7, 4, 2, 1),
    (1, 64, 16, 16, 4, 2, 1),
    (3, 33, 17, 20, 3, 1, 1),
    (4, 16, 8, 40, 5, 1, 2),
    (2, 8, 6, 5, 1, 1, 0),
    (3, 70, 33, 34, 4, 2, 1),
)


# float32 has kernels with and without tensor cores.
_TF32 = {torch.float32: (False, True), torch.bfloat16: (False,), torch.float16: (False,)}


def _edge_forward(draw: Draw) -> Iterator[Arguments]:
    for layout in LAYOUTS:
        last = layout == torch.channels_last
        for c, k, h, w, r, s, p in EDGES:
            x, weight = draw(3, c, h, w, layout=layout), draw(k, c, r, r, layout=layout)
            out = [(n + 2 * p - r) // s + 1 for n in (h, w)]
            y = draw(3, k, *out, layout=layout)
            for b, output in ((draw(k), None), (None, None), (None, y), (draw(k), y)):
                for tf32 in _TF32[draw(1).dtype]:
                    yield x, weight, b, output, 0.2, s, s, p, p, last, tf32


def _edge_transposed(draw: Draw) -> Iterator[Arguments]:
    for layout in LAYOUTS:
        last = layout == torch.channels_last
        for c, k, h, w, r, s, p in EDGES:
            low = [(n + 2 * p - r) // s + 1 for n in (h, w)]
            x, weight = draw(3, k, *low, layout=layout), draw(k, c, r, r, layout=layout)
            for b, slope, tanh in ((draw(c), 0.2, False), (None, 1.0, False), (draw(c), 1.0, True)):
                for tf32 in _TF32[draw(1).dtype]:
                    yield x, weight, b, slope, tanh, s, s, p, p, h, w, last, tf32


def _edge_weight(draw: Draw) -> Iterator[Arguments]:
    for layout in LAYOUTS:
        last = layout == torch.channels_last
        for c, k, h, w, r, s, p in EDGES:
            low = [(n + 2 * p - r) // s + 1 for n in (h, w)]
            x, g = draw(3, c, h, w, layout=layout), draw(3, k, *low, layout=torch.channels_last)
            yield x, g, r, r, s, s, p, p, last, True


# (input channels, outputs, height, width, kernel, stride, padding, dilation)
WIDE = ((64, 64, 9, 7, 3, 1, 1, 1), (64, 136, 16, 16, 4, 2, 1, 1), (128, 72, 8, 8, 3, 1, 2, 2))


def _hopper(draw: Draw) -> Iterator[Arguments]:
    x = draw(1)
    if x.dtype == torch.float32 or x.device.type != "cuda" or not compiled.has_cutlass():
        return
    if torch.cuda.get_device_capability(x.device)[0] != 9:
        return
    layout = torch.channels_last
    for c, k, h, w, r, s, p, d in WIDE:
        for tile in (0, 1):
            tensors = draw(2, c, h, w, layout=layout), draw(k, c, r, r, layout=layout)
            for b in (draw(k), None):
                yield *tensors, b, 0.2, s, s, p, p, d, d, tile


CASES: dict[str, Callable[[Draw], Iterator[Arguments]]] = {
    "bias_leaky_relu": _bias,
    "bias_leaky_relu_": _bias,
    "leaky_relu_mask": _mask,
    "leaky_relu_mask_": _mask,
    "leaky_relu_mask_sum": _mask,
    "reparameterize": _sample,
    "reparameterize_kl": _sample,
    "scaled_noise": _sample,
    "reparameterize_backward": _backward,
    "image_edge_conv2d": _edge_forward,
    "image_edge_conv2d_weight_gradient": _edge_weight,
    "image_edge_conv_transpose2d": _edge_transposed,
    "hopper_conv2d": _hopper,
}
"""By operator of namespace `fastgen`: the arguments of its calls."""


def registered(namespace: str = "fastgen") -> list[str]:
    """The operators on tensors that a namespace holds for CUDA, by name; their module is loaded
    here.
    """
    compiled.build_information()
    prefix = f"{namespace}::"
    return sorted(
        schema.name.removeprefix(prefix)
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith(prefix)
        and any("Tensor" in str(argument.type) for argument in schema.arguments)
        and torch._C._dispatch_has_kernel_for_dispatch_key(schema.name, "CUDA")
    )


def drawer(device: torch.device, dtype: torch.dtype) -> Draw:
    """Draws random tensors of one dtype on a device."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        drawn = torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
        return drawn.contiguous(memory_format=layout) if len(shape) == 4 else drawn

    return draw


def run(names: list[str], device: torch.device) -> int:
    """Run the cases of these operators in every dtype; how many calls that were."""
    calls = 0
    for name in names:
        operator = getattr(torch.ops.fastgen, name)
        for dtype in DTYPES:
            for arguments in CASES[name](drawer(device, dtype)):
                results = operator(*arguments)
                results = arguments[:1] if results is None else results
                for result in [results] if isinstance(results, Tensor) else results:
                    if result.isnan().any():
                        sys.exit(f"{name}: NaN for {[getattr(a, 'shape', a) for a in arguments]}")
                calls += 1
    torch.cuda.synchronize(device)
    return calls


def planted(device: torch.device) -> None:
    """One call whose input is far larger than the memory behind it: a sanitizer must object."""
    x = torch.randn(1, 4, 64, 64, device=device)
    x.untyped_storage().resize_(512)
    torch.ops.fastgen.bias_leaky_relu(x, None, 0.2)
    torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--planted", action="store_true")
    options = parser.parse_args()
    if (reason := compiled.missing("cuda")) is not None:
        sys.exit(f"sanitize_cases: {reason}")
    device = torch.device("cuda")
    if options.planted:
        planted(device)
        return
    names = registered()
    if strangers := [name for name in names if name not in CASES]:
        sys.exit(f"sanitize_cases: no case for {', '.join(strangers)}; add one to CASES")
    print(f"{run(names, device)} calls of {len(names)} operators: {', '.join(names)}")


if __name__ == "__main__":
    main()
