"""The trainer and what a run leaves behind: checkpoints, a log, pictures, a report, numbers.

    Trainer           runs a model's phases; every step is a function of (seed, step)
    Interrupted       a signal stopped the training after a whole step
    NonFiniteLoss     a loss or a gradient was NaN or infinite; says where it came from
    ConfigMismatch    a run folder belongs to another configuration
    CheckpointError   a checkpoint could not be written, or none can be read
    CaptureError      a step that had to run in a CUDA graph cannot
    ProcessesError    several processes cannot train together
    FolderInUse       another process is training in the run folder
    OtherProcessFailed  another process of a training failed, and says why
    evaluate          a trained model's numbers: errors, likelihoods, distances from real images
    EvaluationError   there is no way to measure this model on this data
    load_run          the model of a run folder, with its averaged weights

Names are imported when they are used, so that reading the options of the command line costs no
import of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import CheckpointError
    from .evaluation import EvaluationError, evaluate
    from .finite import NonFiniteLoss
    from .graphs import CaptureError
    from .interrupt import Interrupted
    from .loading import load_run
    from .processes import OtherProcessFailed, ProcessesError
    from .run_folder import ConfigMismatch, FolderInUse
    from .trainer import Trainer

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigMismatch",
    "EvaluationError",
    "FolderInUse",
    "Interrupted",
    "NonFiniteLoss",
    "OtherProcessFailed",
    "ProcessesError",
    "Trainer",
    "evaluate",
    "load_run",
]

_MODULES = {
    "CaptureError": "graphs",
    "CheckpointError": "checkpoint",
    "ConfigMismatch": "run_folder",
    "EvaluationError": "evaluation",
    "FolderInUse": "run_folder",
    "Interrupted": "interrupt",
    "NonFiniteLoss": "finite",
    "OtherProcessFailed": "processes",
    "ProcessesError": "processes",
    "Trainer": "trainer",
    "evaluate": "evaluation",
    "load_run": "loading",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
