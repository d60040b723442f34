"""Runs a scenario in several processes, as torchrun would start them."""

from __future__ import annotations

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

PATIENCE = 40
"""Seconds after which processes that wait for each other are given up."""

PRELOADED = [
    "fastgen.training.trainer",
    "fastgen.training.process_group",
    "PIL.Image",
    "safetensors.torch",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.utils.tensorboard",
]
"""What would take each process seconds to import."""


class Outcome(NamedTuple):
    """What one process came to: what its scenario returned, or the error that it raised."""

    value: Any
    error: str
    message: str
    seconds: float


def team(scenario: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Outcome]:
    """Call ``scenario(rank, *arguments)`` in each of `count` processes; what each came to."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_run, args=(pipes[rank][1], rank, count, port, scenario, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE
    try:
        return [_result(rank, pipe, end) for rank, (pipe, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()


def _result(rank: int, pipe: Connection, end: float) -> Outcome:
    if not pipe.poll(max(0.0, end - time.monotonic())):
        raise AssertionError(f"process {rank} still waits after {PATIENCE} seconds")
    return Outcome(*pickle.loads(pipe.recv_bytes()))


def _run(
    pipe: Connection,
    rank: int,
    count: int,
    port: int,
    scenario: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    start = time.monotonic()
    outcome: tuple[Any, ...]
    try:
        outcome = (scenario(rank, *arguments), "", "")
    except BaseException as error:
        traceback.print_exc()
        outcome = (None, type(error).__name__, str(error))
    # By value: torch would share the memory of tensors, which goes with the process.
    pipe.send_bytes(pickle.dumps((*outcome, time.monotonic() - start)))
