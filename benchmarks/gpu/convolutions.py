"""Convolution layers: the image-edge kernels pass by pass, and whole layers forward + backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastgen.bench import peers
from fastgen.bench.layers import EDGES, LAYERS, Layer
from fastgen.bench.passes import BOTH, layer_pass

from .session import DTYPES, Job, Row, Session, pass_row


def _fitting(session: Session, layer: Layer) -> Layer:
    return layer.scaled(batch=2, channels=8, size=8) if session.tiny else layer


def _row(layer: Layer, dtype: str) -> Row:
    return {
        "name": layer.name, "dtype": dtype, "input": list(layer.input_shape),
        "weight": list(layer.weight_shape), "stride": layer.stride, "padding": layer.padding,
        "groups": layer.groups, "transposed": layer.transposed,
        "activation": "tanh" if layer.tanh else layer.negative_slope,
    }  # fmt: skip


def edge_jobs(session: Session) -> list[Job]:
    """Forward with bias and activation, and the input gradient of the linear part."""
    return [
        Job(f"{layer.name} {name} {dtype}", partial(_edge, session, layer, dtype, name))
        for layer in (_fitting(session, edge) for edge in EDGES)
        for dtype in DTYPES
        for name in ("forward", "input gradient")
    ]


def _edge(session: Session, layer: Layer, dtype: str, name: str) -> Row:
    measured = layer_pass(layer, name)
    candidates: dict[str, Callable[..., Any]] = {
        "fastgen": measured.fastgen("auto", session.device),
        "eager": measured.eager,
    }
    if name == "forward":
        candidates["compile"] = peers.compiled(measured.eager)
    return {**_row(layer, dtype), **pass_row(session, measured, dtype, candidates)}


def layer_jobs(session: Session, dtype: str, mode: str) -> list[Job]:
    """Forward + backward of every layer beside eager and one mode of torch.compile."""
    return [
        Job(f"{layer.name} {dtype}", partial(_layer, session, layer, dtype, mode))
        for layer in (_fitting(session, layer) for layer in LAYERS)
    ]


def _layer(session: Session, layer: Layer, dtype: str, mode: str) -> Row:
    measured = layer_pass(layer, BOTH)
    candidates = {
        "fastgen": measured.fastgen("auto", session.device),
        "eager": measured.eager,
        mode: peers.training_step(peers.compiled(peers.eager_layer(layer), mode)),
    }
    return {**_row(layer, dtype), **pass_row(session, measured, dtype, candidates)}
