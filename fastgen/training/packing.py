"""Nested Python structures as JSON plus named tensors: what optimizers remember, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(tree: object) -> tuple[Any, dict[str, Tensor]]:
    """Split a structure of dicts, lists, tuples, numbers, strings, None and tensors.

    Returns:
        What `json` can write, and the tensors, named by their path. Containers become {"dict":
        [[key, value], ...]}, {"list": [...]}, {"tuple": [...]}, a tensor {"tensor": name}, so that
        keys of any kind and tuples survive.

    Raises:
        TypeError: something else is in it; the message says where.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: object, name: str) -> Any:
        if isinstance(node, Tensor):
            tensors[name] = node
            return {"tensor": name}
        if isinstance(node, dict):
            items = [[key, walk(value, f"{name}/{key}")] for key, value in node.items()]
            return {"dict": items}
        if isinstance(node, (list, tuple)):
            kind = "list" if isinstance(node, list) else "tuple"
            return {kind: [walk(value, f"{name}/{i}") for i, value in enumerate(node)]}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(
            f"{name} is a {type(node).__name__}, which a checkpoint cannot hold: only tensors, "
            "numbers, strings, None and dicts, lists and tuples of them"
        )

    return walk(tree, ""), tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The structure that `pack` split."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    return _UNPACK[kind](content, tensors)


_UNPACK: dict[str, Any] = {
    "tensor": lambda name, tensors: tensors[name],
    "dict": lambda items, tensors: {key: unpack(value, tensors) for key, value in items},
    "list": lambda items, tensors: [unpack(value, tensors) for value in items],
    "tuple": lambda items, tensors: tuple(unpack(value, tensors) for value in items),
}
