"""A trained model from its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from fastgen.models import Model

from .checkpoint import fitting, load_weights, read_latest
from .config import build_model
from .devices import move
from .run_folder import RunFolder, Settings


class LoadedRun(NamedTuple):
    """A model as its run left it.

    Attributes:
        model: with its averaged weights, on the device, in evaluation mode.
        settings: what `config.json` says.
        step: how many steps it was trained.
        complaints: a line about each newer checkpoint that is damaged.
    """

    model: Model
    settings: Settings
    step: int
    complaints: list[str]


def load_run(path: str | Path, *, device: torch.device | str = "cpu") -> LoadedRun:
    """Build the model of a run folder of `fastgen train` and load its newest whole checkpoint.

    Raises:
        ValueError: the folder is missing, holds no run of the command line, or no checkpoint yet.
        DamagedCheckpoint: there are checkpoints, and none is whole.
        ForeignCheckpoint: the newest belongs to another model.
    """
    folder = RunFolder(Path(path))
    settings = folder.settings() if folder.path.is_dir() else None
    if settings is None or "image_shape" not in settings:
        what = "is no folder of a run" if folder.path.exists() else "does not exist"
        raise ValueError(f"{path} {what}: give a folder that `fastgen train` made")
    latest = read_latest(folder.checkpoints)
    if latest is None:
        raise ValueError(f"{path} has no checkpoint yet: train it first")
    place, checkpoint, complaints = latest
    model = build_model(settings)
    # The averages have the names of the weights that they replace.
    weights = {**checkpoint.tensors["model"], **checkpoint.tensors.get("ema", {})}
    with fitting(place):
        load_weights(model, weights)
    return LoadedRun(
        move(model, torch.device(device)).eval(), settings, checkpoint.state["step"], complaints
    )
