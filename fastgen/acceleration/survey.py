"""What is to be done with each module of a model, and why: decided before anything is changed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from types import FunctionType

import torch
from torch import nn

from fastgen.ops.convolution import Activation

from .activations import FUNCTIONS
from .classes import original_class, subclass_of
from .containers import is_sequence
from .epilogues import ACTIVATES, FOLDS, MAY_BE_OVERWRITTEN, behind
from .layers import LAYERS
from .mentions import is_users, mentions, mentions_rerouted
from .obstacles import is_candidate, obstacle
from .report import Row
from .rerouting import Plan
from .tracing import NotTraceable, plan_of

CONTIGUOUS = "it answers in contiguous memory: with it in the model all weights stay as they are"
LINEAR = "no activation that it could take in is known to be behind it, and alone it gains nothing"


class Survey:
    """What a model is made of, as acceleration sees it.

    Attributes:
        channels_last: whether weights move to it.
        exchanged: the modules whose class changes.
        plans: by the id of a module with a forward of the user's, what its layers take in.
        rows: what the report says.
    """

    def __init__(self, model: nn.Module, *, fold: bool, channels_last: bool) -> None:
        self.fold = fold
        self.modules = dict(model.named_modules())
        # Between layers in channels_last each of these would copy its map twice. On a GPU cuDNN
        # copies as much for every contiguous convolution.
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        stay = channels_last and on_cpu
        self.contiguous = {id(m) for m in self.modules.values() if stay and _answers_contiguous(m)}
        self.channels_last = channels_last and not self.contiguous
        self.names = {id(module): name or "(model)" for name, module in self.modules.items()}
        places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
        self.shared = {key for key, count in places.items() if count > 1}
        self.left = {
            id(module): reason
            for module in self.modules.values()
            if is_candidate(module) and (reason := obstacle(module)) is not None
        }
        self.taken: dict[int, str] = {}  # by a layer: the activation it takes in
        self.apart: dict[int, str] = {}  # by a layer: why it takes in none
        self.part_of: dict[int, list[str]] = {}  # by an activation or a norm: what takes it in
        self.plans: dict[int, Plan] = {}
        self.untraced: dict[int, str] = {}

        with torch.enable_grad():
            for module in self.modules.values():
                if _is_replaced_on_the_instance(module):
                    continue
                if is_sequence(original_class(module)):
                    self._read_sequence(module)
                elif has_users_forward(module):
                    self._read_forward(module)
        for module in self.modules.values():
            if _is_linear(module) and id(module) not in self.taken:
                self.left.setdefault(id(module), self.apart.get(id(module), LINEAR))
        self.exchanged = [m for m in self.modules.values() if self._is_exchanged(m)]
        for module in self.exchanged:
            try:
                subclass_of(original_class(module))
            except Exception as error:
                self.left[id(module)] = f"its class refuses a subclass ({type(error).__name__})"
        self.exchanged = [m for m in self.exchanged if id(m) not in self.left]
        self.rows = list(self._rows())

    # --- what the callers know ---

    def _read_sequence(self, sequence: nn.Module) -> None:
        layers = [layer for layer in sequence._modules.values() if layer is not None]
        for position, layer in enumerate(layers):
            if not isinstance(layer, ACTIVATES) or id(layer) in self.left:
                continue
            epilogue, count, why_not = behind(layers, position, fold=self.fold)
            parts = layers[position + 1 : position + 1 + count]
            self._note(layer, epilogue.activation, parts)
            if why_not:
                self.apart[id(layer)] = why_not

    def _read_forward(self, module: nn.Module) -> None:
        if not any(isinstance(m, ACTIVATES) and id(m) not in self.left for m in module.modules()):
            return
        try:
            plan, refused = plan_of(module, shared=self.shared, fold=self.fold)
        except NotTraceable as reason:
            self.untraced[id(module)] = str(reason)
            return
        for name, why_not in refused.items():
            self.apart[id(module.get_submodule(name))] = why_not
        kept: Plan = {}
        for name, link in plan.items():
            layer = module.get_submodule(name)
            if id(layer) in self.left:
                continue
            kept[name] = link
            if not link.fuses_always:
                self.apart[id(layer)] = MAY_BE_OVERWRITTEN
                continue
            parts = [part for part in (link.norm, link.module) if part is not None]
            self._note(layer, link.call.activation, [module.get_submodule(p) for p in parts])
        if kept:
            self.plans[id(module)] = kept

    def _note(self, layer: nn.Module, activation: Activation, parts: list[nn.Module]) -> None:
        if activation != 1:
            self.taken[id(layer)] = _label(activation)
        for part in parts:
            self.part_of.setdefault(id(part), []).append(self.names[id(layer)])

    # --- what is done ---

    def _is_exchanged(self, module: nn.Module) -> bool:
        if id(module) in self.left or _is_replaced_on_the_instance(module):
            return False
        kind = original_class(module)
        if is_sequence(kind):
            return any(isinstance(layer, ACTIVATES) for layer in module._modules.values())
        if has_users_forward(module):
            # A map in channels_last may meet a `view` in any code that the forward calls.
            maps = self.channels_last and any(map(self._answers_in_channels_last, module.modules()))
            return maps or self._is_rerouted(module)
        return isinstance(module, tuple(LAYERS))

    def _answers_in_channels_last(self, module: nn.Module) -> bool:
        return isinstance(module, FOLDS) and id(module) not in self.left

    def _is_rerouted(self, module: nn.Module) -> bool:
        return id(module) in self.plans or needs_rerouting(module)

    # --- what is said ---

    def _rows(self) -> Iterator[Row]:
        exchanged = {id(module) for module in self.exchanged}
        for module in self.modules.values():
            key, name, kind = id(module), self.names[id(module)], _kind(module)
            parts = ", ".join(dict.fromkeys(self.part_of.get(key, [])))
            if key in self.left:
                yield Row(name, kind, "", self.left[key])
            elif isinstance(module, ACTIVATES):
                took = self.taken.get(key)
                became = "fastgen's" if took is None else f"fastgen's, with {took}"
                yield Row(name, kind, became, self.apart.get(key, ""))
            elif type(module) is nn.BatchNorm2d:
                became = f"folded into {parts}" if parts else ""
                yield Row(name, kind, became, "" if parts else self._why_not_folded(module))
            elif isinstance(module, tuple(LAYERS)):
                yield Row(name, kind, f"part of {parts}" if parts else "fastgen's", "")
            elif parts:
                yield Row(name, kind, f"part of {parts}", "")
            elif key in self.contiguous:
                yield Row(name, kind, "", CONTIGUOUS)
            elif has_users_forward(module) and _is_replaced_on_the_instance(module):
                yield Row(name, kind, "", "its forward was replaced on the instance")
            elif is_sequence(original_class(module)):
                continue
            elif key in exchanged and self._is_rerouted(module):
                yield Row(name, kind, "its functions fastgen's", self.untraced.get(key, ""))

    def _why_not_folded(self, norm: nn.BatchNorm2d) -> str:
        if not self.fold:
            return "stays PyTorch's; fold_batchnorm=True folds it in evaluation mode"
        if norm.training:
            return "it is in training mode: call model.eval() first"
        return "not known to stand alone behind a convolution, with fixed statistics"


def _kind(module: nn.Module) -> str:
    return original_class(module).__name__


def _label(activation: Activation) -> str:
    return {0: "ReLU", "tanh": "Tanh"}.get(activation) or f"LeakyReLU({activation:g})"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and is_candidate(module)


def _answers_contiguous(module: nn.Module) -> bool:
    """Whether a module copies its maps into contiguous memory and answers there: a normalization of
    whole maps, (C, H, W), or of each map of an image.
    """
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 3
    return isinstance(module, nn.InstanceNorm2d)


def _is_replaced_on_the_instance(module: nn.Module) -> bool:
    return "forward" in module.__dict__


def has_users_forward(module: nn.Module) -> bool:
    """Whether a module runs a forward that stands outside of torch and of fastgen."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    code = getattr(original_class(module).forward, "__code__", None)
    return code is not None and is_users(code) and not isinstance(module, ACTIVATES)


def needs_rerouting(module: nn.Module) -> bool:
    """Whether a module's methods, or functions that it holds, are such as are rerouted."""
    held = [v.func if isinstance(v, functools.partial) else v for v in vars(module).values()]
    return mentions_rerouted(original_class(module)) or any(map(_is_rerouted, held))


def _is_rerouted(value: object) -> bool:
    if isinstance(value, FunctionType) and is_users(value.__code__):
        return mentions(value)
    return callable(value) and not isinstance(value, nn.Module) and value in FUNCTIONS
