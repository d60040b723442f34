"""A generator in ONNX Runtime, exported through torch.onnx."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def onnx_sampler(generator: nn.Module, z: Tensor, threads: int) -> Callable[[], Any]:
    """Draws with the generator, a network of plain torch.nn layers, in float32 on the CPU.

    Returns a function without arguments: ONNX Runtime's images for z, as a NumPy array.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait count as computing, for a clock of processor time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        exported(generator, z), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: z.numpy()}

    return lambda: session.run(None, feed)[0]


def exported(network: nn.Module, example: Tensor) -> bytes:
    """The network as an ONNX model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "network.onnx"
            torch.onnx.export(
                network.eval(), (example,), path, dynamo=True, external_data=False, verbose=False
            )
            return path.read_bytes()
    finally:
        logger.setLevel(level)
