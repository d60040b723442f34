"""A GPU that is not there: a pytest plugin, `-p emulation`, for a CUDA build of torch.

Device memory is memory of the host (cuda_runtime.cpp), so every operator of aten on a CUDA tensor
is computed here, by the CPU's kernel on a CPU tensor over the same memory. Our own operators run
their CUDA code: the launchers and kernels of csrc/cuda on fibers (simt.cpp), Triton's in its
interpreter. While a stream is captured nothing is written; what would have run is kept and runs
when the graph is launched. Random numbers are a function of the generator's seed and offset.

What it cannot show: speed, the machine code of nvcc and Triton, races between streams, TMA and
wgmma, cuDNN and cuBLAS, torch.compile's code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch._C.DispatchKey.CUDA
OURS = ("fastgen", "fastgen_triton")
Run = Callable[["Offsets"], object]
Offsets = dict[torch.Generator, int]

_runtime = ctypes.CDLL("libcudart.so.13")
_runtime.emulation_capture_of.restype = ctypes.c_ulonglong
_runtime.emulation_capture_of.argtypes = [ctypes.c_void_p]
_Listener = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_ulonglong)

# --- memory ---


def on_host(tensor: Any) -> Any:
    """A CPU tensor over the memory of a CUDA tensor; anything else as it is."""
    if not isinstance(tensor, Tensor) or tensor.device.type != "cuda":
        return tensor
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    same = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    result = torch.empty(0, dtype=tensor.dtype)
    result.set_(same, tensor.storage_offset(), tensor.size(), tensor.stride())
    return torch._neg_view(result) if tensor.is_neg() else result


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CUDA tensor with the values and strides of a CPU tensor."""
    result = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    on_host(result).copy_(tensor)
    return result


# --- graphs ---


class Recorded:
    """What a graph repeats, and how far it moves the generators."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.drawn: Offsets = {}

    def replay(self) -> None:
        """Run it, from the generators' offsets of the moment."""
        before = {generator: generator.get_offset() for generator in self.drawn}
        for run in self.runs:
            run(before)
        for generator, distance in self.drawn.items():
            generator.set_offset(before[generator] + distance)


_graphs: dict[int, Recorded] = {}


@_Listener
def _listen(what: int, graph: int) -> None:
    try:
        if what == 0:
            _graphs[graph] = Recorded()
        elif what == 2:
            with Emulated():
                _graphs[graph].replay()
        elif what == 3:
            del _graphs[graph]
    except BaseException:  # C++ is waiting, and knows no exceptions of Python
        traceback.print_exc()
        os.abort()


def recording() -> Recorded | None:
    """The graph for which the current stream is captured."""
    return _graphs.get(_runtime.emulation_capture_of(torch.cuda.current_stream().cuda_stream))


# --- random numbers ---

STEP = 16  # by which a draw moves its generator's offset


def numbers_of(seed: int, offset: int) -> torch.Generator:
    """A generator of the CPU for one draw."""
    digest = hashlib.blake2b(f"{seed} {offset}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


# --- operators ---


def in_tf32(tensor: Tensor) -> Tensor:
    """Rounded to 10 bits of fraction, as cuDNN rounds the operands of a float32 convolution."""
    bits = tensor.clone(memory_format=torch.preserve_format).view(torch.int32)
    rounded = bits.add_(0x1000).bitwise_and_(~0x1FFF).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


def _cudnn_may_use_tf32() -> bool:
    return torch.backends.cudnn.conv.fp32_precision != "ieee"


# They allocate or look at metadata: torch's own code for CUDA does that without a kernel.
AS_THEY_ARE = {
    "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty",
    "aten::new_empty_strided", "aten::set_", "aten::resize_", "aten::is_pinned",
    "aten::_pin_memory", "aten::record_stream", "aten::_reshape_alias",
}  # fmt: skip
# They bring a number to the host.
WAITING = {
    "aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero",
    "aten::masked_select", "aten::_unique2", "aten::unique_dim",
}  # fmt: skip
# They write to running averages, of which their schemas say nothing.
SECRETLY_WRITING = {"aten::native_batch_norm": slice(3, 5), "aten::cudnn_batch_norm": slice(3, 5)}


def only_looks(func: Any) -> bool:
    """Whether an operator's results are views, or it changes nothing but metadata."""
    if func.is_view or torch.Tag.inplace_view in func.tags:
        return True
    returned = [value.alias_info for value in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


def written(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator that writes to its arguments returns: those."""
    named = {}
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None:
            named |= dict.fromkeys(argument.alias_info.before_set, value)
    results = [named[next(iter(r.alias_info.before_set))] for r in func._schema.returns]
    return None if not results else results[0] if len(results) == 1 else tuple(results)


def wait() -> None:
    """What a copy between host and device does: wait, where that is allowed."""
    if torch.cuda.get_sync_debug_mode() == 2:
        raise RuntimeError("called a synchronizing CUDA operation")
    torch.cuda.current_stream().synchronize()


class Emulated(TorchDispatchMode):
    """Computes on the host what is called on CUDA tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = [tensor.device for tensor in tensors if tensor.device.type == "cuda"]
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            index = torch.device(asked).index
            devices = [
                torch.device("cuda", torch.cuda.current_device() if index is None else index)
            ]
        fakes = any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
        name = func._schema.name
        if not devices or fakes or name in AS_THEY_ARE or only_looks(func):
            return func(*args, **kwargs)
        if func.namespace in OURS:
            return self.ours(func, args, kwargs)
        if name in ("aten::copy_", "aten::_to_copy"):
            return self.copy(func, args, kwargs, asked or devices[0])
        if name in WAITING:
            wait()
        indices = name.startswith(("aten::index", "aten::_index_put"))
        if not indices and any(t.device.type == "cpu" and t.dim() for t in tensors):
            raise RuntimeError(f"expected all tensors to be on the same device ({func})")
        if indices and any(t.device.type == "cpu" and t.dim() for t in tensors):
            wait()
        return self.computed(func, args, kwargs, devices[0])

    def computed(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        """By the CPU's kernel."""
        graph, name = recording(), func._schema.name
        draw = self._draw(args, kwargs, device, graph) if self._is_random(func) else None
        hosts: dict[int, tuple[Tensor, Tensor]] = {}

        tf32 = name.startswith("aten::convolution") and _cudnn_may_use_tf32()

        def lowered(value: Any) -> Any:
            if isinstance(value, Tensor) and tf32 and value.dtype == torch.float32:
                return in_tf32(on_host(value))
            if isinstance(value, Tensor):
                return hosts.setdefault(id(value), (on_host(value), value))[0]
            return torch.device("cpu") if isinstance(value, torch.device) else value

        def execute(before: Offsets) -> Any:
            low_args, low_kwargs = tree_map(lowered, (args, kwargs))
            low_kwargs = {
                key: torch.device("cpu") if key == "device" and value is not None else value
                for key, value in low_kwargs.items()
                if key != "pin_memory"
            }
            if draw is None:
                return func(*low_args, **low_kwargs)
            generator, offset = draw
            numbers = numbers_of(generator.initial_seed(), before.get(generator, 0) + offset)
            return self._drawn(func, low_args, low_kwargs, numbers)

        if graph is not None and func._schema.is_mutable:
            graph.runs.append(execute)
            return written(func, args, kwargs)
        secret = args[SECRETLY_WRITING[name]] if graph and name in SECRETLY_WRITING else ()
        kept = [(tensor, on_host(tensor).clone()) for tensor in secret if tensor is not None]
        results = execute({})
        for tensor, values in kept:
            on_host(tensor).copy_(values)

        given = {id(host): tensor for host, tensor in hosts.values()}

        def raised(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return given[id(value)] if id(value) in given else on_device(value, device)

        raised_results = tree_map(raised, results)
        if graph is not None:
            self._keep(graph, execute, raised_results, set(map(id, given.values())))
        return raised_results

    def ours(self, func: Any, args: Any, kwargs: Any) -> Any:
        """By the operator's CUDA code, in which calls of aten are emulated in turn."""
        graph, interpreted = recording(), func.namespace == "fastgen_triton"

        def execute(_: Offsets | None = None) -> Any:
            _runtime.emulation_hide_captures(int(interpreted and graph is not None))
            try:
                with Emulated():
                    return func._op_dk(CUDA, *args, **kwargs)
            finally:
                _runtime.emulation_hide_captures(0)

        if graph is not None and func._schema.is_mutable:
            graph.runs.append(execute)
            return written(func, args, kwargs)
        mark = len(graph.runs) if graph else 0
        results = execute()
        if graph is not None:
            del graph.runs[mark:]  # the call as a whole repeats what was called inside
            given = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            self._keep(graph, execute, results, given)
        return results

    def copy(self, func: Any, args: Any, kwargs: Any, device: Any) -> Any:
        """Between devices, layouts and dtypes; only pinned memory is copied without waiting."""
        graph, device = recording(), torch.device(device)
        into = func._schema.name == "aten::copy_"
        source = args[1] if into else args[0]
        target = args[0].device if into else device
        ahead = args[2] if into and len(args) > 2 else kwargs.get("non_blocking", False)
        if source.device.type != target.type:
            host = source if source.device.type == "cpu" else args[0] if into else None
            if not (ahead and (host is None or host.is_pinned())):
                wait()
        if into:

            def write(_: Offsets) -> None:
                func(on_host(args[0]), on_host(source))

            if graph is not None:
                graph.runs.append(write)
            else:
                write({})
            return args[0]

        options = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}

        def execute(_: Offsets) -> Tensor:
            return func(on_host(source), **options, device=torch.device("cpu"))  # type: ignore[no-any-return]

        result = execute({})
        if target.type == "cuda":
            index = torch.cuda.current_device() if target.index is None else target.index
            result = on_device(result, torch.device("cuda", index))
        if graph is not None:
            self._keep(graph, execute, result, set())
        return result

    def _keep(self, graph: Recorded, execute: Run, results: Any, given: set[int]) -> None:
        def run(before: Offsets) -> None:
            for place, value in zip(
                tree_leaves(results), tree_leaves(execute(before)), strict=True
            ):
                if isinstance(place, Tensor) and id(place) not in given:
                    on_host(place).copy_(on_host(value))

        graph.runs.append(run)

    def _is_random(self, func: Any) -> bool:
        return torch.Tag.nondeterministic_seeded in func.tags

    def _draw(
        self, args: Any, kwargs: Any, device: torch.device, graph: Recorded | None
    ) -> tuple[torch.Generator, int]:
        """The generator, and the offset of a draw; in a graph, counted from its launch."""
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Generator)]
        generator = given[0] if given else torch.cuda.default_generators[device.index]
        if generator.device.type != "cuda":
            raise RuntimeError("expected a 'cuda' device type for generator but found 'cpu'")
        if graph is not None:
            offset = graph.drawn.get(generator, 0)
            graph.drawn[generator] = offset + STEP
        else:
            offset = generator.get_offset()
            generator.set_offset(offset + STEP)
        return generator, offset

    def _drawn(self, func: Any, args: Any, kwargs: Any, numbers: torch.Generator) -> Any:
        if any(argument.name == "generator" for argument in func._schema.arguments):
            args = [numbers if isinstance(a, torch.Generator) else a for a in args]
            if numbers not in args:
                kwargs = {**kwargs, "generator": numbers}
            return func(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(numbers.initial_seed())
            return func(*args, **kwargs)


def install() -> None:
    """Emulate from now on, in this thread and in those it starts."""
    _runtime.emulation_listen(_listen)
    Emulated().__enter__()

    run = threading.Thread.run

    def emulated_run(thread: threading.Thread) -> None:
        with Emulated():
            run(thread)

    threading.Thread.run = emulated_run  # type: ignore[method-assign]

    # Printing looks at tensors with all modes switched off.
    text = torch._tensor_str._str
    torch._tensor_str._str = lambda tensor, **options: text(on_host(tensor.detach()), **options)


def pytest_configure(config: Any) -> None:
    """As a plugin: `pytest -p emulation -m gpu`."""
    install()
