"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

    checkpoints/000500/model.safetensors      the weights
                       ema.safetensors        their averages, where the model has any
                       optimizer.safetensors  what the optimizers remember
                       state.json             step, seconds, optimizer settings, SHA-256 of the
                                              files and of this one's own other content

A checkpoint is written in a folder beside its place, every file and the folder flushed to the disk,
then renamed. So a kill at any instant leaves the last complete one, and what has no dot before its
name is complete. Of several processes, only one may write a checkpoint of the same path at a time.
No pickle is ever written or read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastgen.files import flush_folder, write_flushed

FORMAT = 1
STATE = "state.json"
PARTIAL = ".partial-"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, none can be read, or one belongs to another model.

    Its text is one line that names the path and the reason; what was complete before still is.
    """


class DamagedCheckpoint(CheckpointError):
    """A checkpoint's files are not those that were written."""


class ForeignCheckpoint(CheckpointError, ValueError):
    """A checkpoint is whole and belongs to another model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: named sets of tensors, one file each, and anything JSON can say."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the folder `path`, whole or not at all.

    Raises:
        CheckpointError: there is something at `path`, or the disk is full or refuses otherwise;
            nothing is left behind.
    """
    if path.exists():
        raise CheckpointError(f"{path} is there already: save under another name or delete it")
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        _write_files(partial, checkpoint)
        flush_folder(partial)
        partial.rename(path)
        flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error.strerror or error}; those before it stay"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        DamagedCheckpoint: a file is missing, cut short or changed; the message names it.
    """
    from safetensors.torch import load

    try:
        state = json.loads((path / STATE).read_bytes())
        digests: dict[str, str] = dict(state["sha256"].items())
        version = state["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {STATE} is unreadable") from error
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {version}; this fastgen reads {FORMAT}"
        )
    # Those of earlier versions have none of their own.
    if digests.pop(STATE, own := _own_digest(state)) != own:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {STATE} is not what was written")
    tensors = {}
    for name, digest in digests.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise DamagedCheckpoint(f"checkpoint {path} is damaged: {name} is missing") from error
        if sha256(data).hexdigest() != digest:
            raise DamagedCheckpoint(f"checkpoint {path} is damaged: {name} is not what was written")
        tensors[name.removesuffix(".safetensors")] = load(data)
    return Checkpoint(tensors, state)


@contextmanager
def fitting(path: Path | None) -> Iterator[None]:
    """Inside, a checkpoint that does not fit is named; None: by its reader, another process."""
    try:
        yield
    except ForeignCheckpoint as error:
        where = "the checkpoint" if path is None else f"checkpoint {path}"
        raise ForeignCheckpoint(f"{where} belongs to another model: {error}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        ForeignCheckpoint: they have other names or shapes than the model's.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        title, *differences = str(error).splitlines()
        if not (title.startswith("Error(s) in loading state_dict") and differences):
            raise
        raise ForeignCheckpoint(differences[0].strip().rstrip(".")) from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def read_latest(folder: Path) -> tuple[Path, Checkpoint, list[str]] | None:
    """The newest checkpoint that is whole, and a line about each newer one that is damaged.

    Returns None where there is no checkpoint at all.

    Raises:
        DamagedCheckpoint: there are some and all are damaged.
    """
    complaints: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return path, read_checkpoint(path), complaints
        except DamagedCheckpoint as error:
            complaints.append(str(error))
    if complaints:
        raise DamagedCheckpoint(f"no checkpoint can be read: {'; '.join(complaints)}")
    return None


def discard_damaged(path: Path) -> None:
    """Delete a checkpoint if it cannot be read, so that it can be written again."""
    try:
        read_checkpoint(path)
    except DamagedCheckpoint:
        shutil.rmtree(path)


def discard_partial(folder: Path) -> None:
    """Delete what kills have left in a folder in which nobody else writes checkpoints."""
    for leftover in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def keep_newest(folder: Path, count: int, *, spared: Path | None = None) -> None:
    """Delete all but the newest checkpoints and one that is spared."""
    for path in checkpoints(folder)[:-count]:
        if path == spared:
            continue
        # Renamed first: a kill in the middle must not leave a half under a whole one's name.
        doomed = path.with_name(f"{PARTIAL}{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save

    digests = {}
    for name, tensors in checkpoint.tensors.items():
        # Cloned: safetensors refuses tensors that share memory, such as tied weights.
        data = save({key: _plain(tensor) for key, tensor in tensors.items()})
        write_flushed(folder / f"{name}.safetensors", data)
        digests[f"{name}.safetensors"] = sha256(data).hexdigest()
    state = {"format": FORMAT, **checkpoint.state, "sha256": digests}
    digests[STATE] = _own_digest(state)
    write_flushed(folder / STATE, json.dumps(state, indent=1).encode())


def _own_digest(state: Mapping[str, Any]) -> str:
    """Of all that the state says, and of the files' digests; its own aside."""
    digests = {name: digest for name, digest in state["sha256"].items() if name != STATE}
    return sha256(json.dumps({**state, "sha256": digests}).encode()).hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    # A 0-dim or contiguous tensor on the CPU would otherwise be returned as it is.
    return tensor.detach().cpu().contiguous().clone()
