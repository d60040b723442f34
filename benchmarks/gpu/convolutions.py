"""Convolution layers: the image-edge kernels pass by pass, and whole layers forward + backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import peers
import torch
from layers import EDGES, LAYERS, Layer

from fastgen.ops.backend import select
from fastgen.ops.geometry import Geometry

from .session import DTYPES, Job, Row, Session


def _fitting(session: Session, layer: Layer) -> Layer:
    return layer.scaled(batch=2, channels=8, size=8) if session.tiny else layer


def _row(layer: Layer, dtype: str, **more: Any) -> Row:
    return {
        "name": layer.name, "dtype": dtype, "input": list(layer.input_shape),
        "weight": list(layer.weight_shape), "stride": layer.stride, "padding": layer.padding,
        "groups": layer.groups, "transposed": layer.transposed,
        "activation": "tanh" if layer.tanh else layer.negative_slope, **more,
    }  # fmt: skip


# --- image-edge layers ---


def edge_jobs(session: Session) -> list[Job]:
    """Forward with bias and activation, and the input gradient of the linear part."""
    found = []
    for layer in (_fitting(session, edge) for edge in EDGES):
        for dtype in DTYPES:
            work = partial(_edge, session, layer, dtype)
            found.append(Job(f"{layer.name} forward {dtype}", work))
            work = partial(_edge_gradient, session, layer, dtype)
            found.append(Job(f"{layer.name} input gradient {dtype}", work))
    return found


def _edge(session: Session, layer: Layer, dtype: str) -> Row:
    def make() -> tuple[Any, ...]:
        return peers.layer_tensors(layer, DTYPES[dtype], session.device, gradients=False)[:3]

    eager = peers.eager_layer(layer)
    candidates: dict[str, Callable[..., Any]] = {
        "fastgen": peers.fastgen_layer(layer),
        "eager": eager,
        "compile": peers.compiled(eager),
    }
    with torch.no_grad():
        row = session.measured(candidates, make)
    moved = DTYPES[dtype].itemsize * layer.forward_numbers
    sizes = {"pass": "forward", "bytes": moved, "operations": layer.operations}
    return {**_row(layer, dtype), **sizes, **row}


def _edge_gradient(session: Session, layer: Layer, dtype: str) -> Row:
    kind = "conv_transpose2d" if layer.transposed else "conv2d"
    kernels = select(f"{kind}_bias_leaky_relu", "auto", session.device)
    pairs = ((layer.stride,) * 2, (layer.padding,) * 2)
    geometry = Geometry(*pairs, (1, 1), layer.groups, layer.transposed, (0, 0))
    size = (layer.size, layer.size)

    def make() -> tuple[Any, ...]:
        x, w, _, g = peers.layer_tensors(layer, DTYPES[dtype], session.device, gradients=False)
        return x, w, g

    def ours(x: Any, w: Any, g: Any) -> Any:
        return kernels.input_gradient(g, w, size, geometry)

    eager = peers.eager_input_gradient(layer)
    row = session.measured({"fastgen": ours, "eager": eager}, make)
    moved = DTYPES[dtype].itemsize * layer.forward_numbers
    sizes = {"pass": "input gradient", "bytes": moved, "operations": layer.operations}
    return {**_row(layer, dtype), **sizes, **row}


# --- the layer suite ---


def layer_jobs(session: Session, dtype: str, mode: str) -> list[Job]:
    """Forward + backward of every layer beside eager and one mode of torch.compile."""
    return [
        Job(f"{layer.name} {dtype}", partial(_layer, session, layer, dtype, mode))
        for layer in (_fitting(session, layer) for layer in LAYERS)
    ]


def _layer(session: Session, layer: Layer, dtype: str, mode: str) -> Row:
    eager = peers.eager_layer(layer)
    candidates = {
        "fastgen": peers.training_step(peers.fastgen_layer(layer)),
        "eager": peers.training_step(eager),
        mode: peers.training_step(peers.compiled(eager, mode)),
    }
    row = session.measured(
        candidates, lambda: peers.layer_tensors(layer, DTYPES[dtype], session.device)
    )
    moved = DTYPES[dtype].itemsize * layer.training_numbers
    sizes = {"pass": "forward + backward", "bytes": moved, "operations": 3 * layer.operations}
    return {**_row(layer, dtype), **sizes, **row}
