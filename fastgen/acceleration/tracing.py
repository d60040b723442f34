"""What stands behind each layer in a forward of the user's own, found by `torch.fx`.

A trace shows one way through a forward. So it counts only where there is no other: the forward, and
all code of the user's that it calls, has no branch, no loop and no exception handler. Nothing of
the trace is run afterwards; it only tells which layer may take in which activation.
"""

from __future__ import annotations

import dis
import gc
import operator
import sys
from collections import Counter, deque
from types import CodeType, FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .activations import FUNCTIONS, Call
from .classes import original_class
from .epilogues import (
    ACTIVATES,
    ACTIVATION_IS_SEEN,
    FOLDS,
    OUTPUT_IS_SEEN,
    TAKES_NO_TANH,
    call_of,
    is_bare,
    is_frozen_norm,
    only_reads,
    sees_output,
    takes,
)
from .mentions import is_users
from .rerouting import Link, Plan

JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)

# Functions that surely leave their arguments as they are.
READERS = {
    operator.add, operator.sub, operator.mul, torch.add, torch.cat, F.avg_pool2d, F.max_pool2d,
    F.interpolate,
}  # fmt: skip
OVERWRITE_THE_FIRST = {operator.iadd, operator.isub, operator.imul}


class NotTraceable(Exception):
    """Why a forward says nothing about what stands behind its layers."""


def plan_of(module: nn.Module, *, shared: set[int], fold: bool) -> tuple[Plan, dict[str, str]]:
    """(what the layers of a forward may take in, why others may not), by the layers' names.

    Args:
        shared: the ids of modules that stand at several places of the model.
    """
    graph = trace(module)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    plan: Plan = {}
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        layer = module.get_submodule(node.target)
        if not isinstance(layer, ACTIVATES):
            continue
        found = _link(module, layer, node, fold=fold)
        if found is None:
            continue
        if calls[node.target] > 1 or id(layer) in shared:
            found = "it is used at several places"
        if isinstance(found, str):
            refused[node.target] = found
        else:
            plan[node.target] = found
    return plan, refused


def _link(module: nn.Module, layer: nn.Module, node: fx.Node, *, fold: bool) -> Link | str | None:
    """What a layer may take in; a reason against; None where nothing of the kind is behind it."""
    if len(node.users) != 1:
        applied = [_activation(module, user) for user in node.users]
        used_twice = "its output before the activation is also used elsewhere"
        return used_twice if any(call is not None for call in applied) else None
    (after,) = node.users
    norm = None
    if fold and isinstance(layer, FOLDS) and after.op == "call_module":
        candidate = module.get_submodule(after.target)  # type: ignore[arg-type]
        if is_frozen_norm(candidate, layer) and after.all_input_nodes == [node]:
            norm = str(after.target)
            if len(after.users) != 1:
                return Link(norm, None, NO_CALL, only_read=True)
            (after,) = after.users
    call = _activation(module, after)
    if call is None:
        return None if norm is None else Link(norm, None, NO_CALL, only_read=True)
    if not takes(layer, call.activation):
        return TAKES_NO_TANH if call.activation == "tanh" else None
    if sees_output(layer):
        return OUTPUT_IS_SEEN
    by_module = after.op == "call_module"
    if by_module and not is_bare(module.get_submodule(str(after.target))):
        return ACTIVATION_IS_SEEN
    only_read = all(_only_reads(module, user, after) for user in after.users)
    return Link(norm, str(after.target) if by_module else None, call, only_read)


NO_CALL = Call(1.0, inplace=False, keeps_output=False)
"""Nothing behind a layer but a normalization."""


def _activation(module: nn.Module, node: fx.Node) -> Call | None:
    """The activation that a node applies to its one input."""
    if len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        return call_of(module.get_submodule(str(node.target)))
    function = getattr(torch.Tensor, str(node.target), None) if node.op == "call_method" else None
    read = FUNCTIONS.get(node.target if node.op == "call_function" else function)
    if read is None or "out" in node.kwargs:
        return None
    input, call = read(*node.args, **node.kwargs)
    fits = call.activation == "tanh" or isinstance(call.activation, (int, float))
    return call if fits and input in node.all_input_nodes else None


def _only_reads(module: nn.Module, node: fx.Node, operand: fx.Node) -> bool:
    """Whether a node surely leaves an operand of its own as it is."""
    if node.op == "call_module":
        return only_reads(module.get_submodule(str(node.target)))
    if node.op == "call_function" and node.target in OVERWRITE_THE_FIRST:
        return node.args[0] is not operand
    return node.op == "call_function" and node.target in READERS


# --- the trace ---


class _Proxy(fx.Proxy):
    """Knows `h += x` from `h = h + x`, which an `fx.Proxy` takes it for: the former overwrites."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(fx.Tracer):
    """Every child is a leaf: a forward is read one level at a time. Buffers stand for themselves,
    so that a forward that counts in one does not count now.
    """

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(module: nn.Module) -> fx.Graph:
    """The graph of a forward that has only one way through.

    The module and the random numbers stay as they are: what is traced is a twin that shares the
    children.

    Raises:
        NotTraceable: with the reason.
    """
    forward = getattr(original_class(module).forward, "__code__", None)
    if forward is None:
        raise NotTraceable("its forward is no Python function")
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and is_users(frame.f_code):
            seen.add(frame.f_code)

    if _branches(forward):
        raise NotTraceable(_BRANCHES)
    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()  # a callback of the collector's is not called by the forward
    try:
        with torch.random.fork_rng(devices=[]):
            sys.setprofile(note)
            graph = _Tracer().trace(_twin(module))
    except Exception as error:
        raise NotTraceable(f"torch.fx cannot trace its forward ({type(error).__name__})") from error
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    if any(_branches(code) for code in seen if code.co_filename != __file__):
        raise NotTraceable(_BRANCHES)
    return graph


_BRANCHES = "its forward branches or loops, so a trace does not show every way through it"


def _branches(code: CodeType) -> bool:
    jumps = any(instruction.opcode in JUMPS for instruction in dis.get_instructions(code))
    return jumps or bool(getattr(code, "co_exceptiontable", b""))


def _twin(module: nn.Module) -> nn.Module:
    kind = original_class(module)
    twin = kind.__new__(kind)
    twin.__dict__ = {
        name: value.copy() if isinstance(value, (dict, list, set, deque)) else value
        for name, value in module.__dict__.items()
    }
    return twin
