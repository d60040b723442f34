"""What can be launched: every configuration of every kernel, for compiling ahead of time.

A kernel file ends in `COMPILATIONS`. The tests compile them all for each architecture without a
GPU and hold registers, spills, stack and shared memory to a budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Attributes = dict[tuple[int, ...], list[list[Any]]]


@dataclass(frozen=True)
class Compilation:
    """One configuration of one kernel.

    Attributes:
        name: unique among all files, as in ``"conv2d bfloat16 128x128x64 mask"``.
        kernel: the function under ``triton.jit``.
        signature: Triton type of each argument by name (``"*bf16"``, ``"i32"``, ``"fp32"``),
            ``"constexpr"`` for those in `constexprs`.
        constexprs: values known at compile time, by name; None for a pointer that is not there.
        attrs: facts that the launch would find out, by position (see :func:`divisible`).
        tensor_cores: whether the code must hold tensor-core instructions.
        memory_bound: whether it must hold 128-bit loads.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attrs: Attributes
    num_warps: int
    num_stages: int
    tensor_cores: bool = False
    memory_bound: bool = False


def divisible(kernel: Any, arguments: Iterable[str]) -> Attributes:
    """The attributes of arguments that are multiples of 16: aligned pointers, even row lengths."""
    return {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in arguments}


def compilation(
    name: str,
    kernel: Any,
    types: dict[str, str],
    constexprs: dict[str, Any],
    *,
    odd: Iterable[str] = (),
    num_warps: int,
    memory_bound: bool = False,
) -> Compilation:
    """A configuration from the types of its arguments, those in `constexprs` left out.

    Pointers and 32-bit integers count as multiples of 16 but for those in `odd`.
    """
    signature = {
        a: "constexpr" if a in constexprs else types.get(a, "i32") for a in kernel.arg_names
    }
    even = [
        a
        for a, kind in signature.items()
        if (kind.startswith("*") or kind == "i32") and a not in odd
    ]
    return Compilation(
        name,
        kernel,
        signature,
        constexprs,
        divisible(kernel, even),
        num_warps,
        1,
        memory_bound=memory_bound,
    )
