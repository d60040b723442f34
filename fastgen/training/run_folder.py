"""The folder of a run: what lies where, whose it is, and that only one training writes to it.

config.json       the settings, compared when the run is continued
log.jsonl         one line for each log point; TensorBoard events lie beside it
log-after-*.jsonl what it had beyond a step to which `Trainer.load` went back
reals.png         real images, as the model sees them
samples/          what the model drew from fixed noise, one picture for each moment
checkpoints/      whole training states
evaluation.json   the numbers of `fastgen evaluate`
report.html       all of it on one page
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fastgen.files import locked, replace_file
from fastgen.version import __version__

from .text import columns

Settings = Mapping[str, Any]
"""Names and JSON values of everything that the weights depend on."""

GROWING = "steps"
"""The one setting that may change, and only upwards: that is how a finished run goes on."""

FINGERPRINT = "data_fingerprint"
"""The setting that knows the data by its pictures: where it is the same, `data` may have moved."""

KNOWN_FROM_DATA = (FINGERPRINT, "image_shape", "classes")
"""Settings that nobody gives: they follow from the others and from the pictures."""


NO_TEXT = re.compile("[\ud800-\udfff]")
"""What Python reads bytes of a file's name as that are no UTF-8."""


class Difference(NamedTuple):
    """One setting that a run and a caller do not agree on; None where one has no such setting."""

    option: str
    recorded: Any
    given: Any


class FolderInUse(RuntimeError):
    """Another process is training in this run folder.

    Nothing was written to it: the settings and checkpoints there are the other's.
    """


class ConfigMismatch(ValueError):
    """A run folder belongs to another configuration.

    `differences` lists each setting with the run's value and the given one; the text is a table of
    those that can be given. That the pictures themselves have changed is said in words.
    """

    def __init__(self, folder: Path, differences: list[Difference], data: object = None) -> None:
        self.folder, self.differences = folder, differences
        options = {row.option for row in differences}
        changed = FINGERPRINT in options and options.isdisjoint(("data", "image_size"))
        rows = [row for row in differences if row.option not in KNOWN_FROM_DATA]
        parts, remedies = [], []
        if rows or not changed:
            table = difference_table(rows or differences)
            parts.append(f"{folder} holds a run with another configuration:\n{table}")
            remedies.append("give the run's own values")
        if changed:
            parts.append(f"The pictures of {data} are not those that {folder} was trained on.")
            remedies.append("put the former pictures back")
        remedy = " and ".join(remedies).capitalize()
        parts.append(f"{remedy} to continue it, or give another folder to start a new run.")
        super().__init__("\n".join(parts))


def differences(recorded: Settings, given: Settings) -> list[Difference]:
    """Which settings keep a caller from continuing a run.

    The same pictures may lie elsewhere, and there may be more steps.
    """
    moved = recorded.get(FINGERPRINT) == given.get(FINGERPRINT) is not None
    rows = [
        Difference(option, recorded.get(option), given.get(option))
        for option in dict.fromkeys((*recorded, *given))
    ]
    return [
        row
        for row in rows
        if row.recorded != row.given and not _grows(row) and not (moved and row.option == "data")
    ]


def difference_table(rows: list[Difference]) -> str:
    """Differences as an aligned table: option, the run's value, the given one."""
    return columns([("option", "this run", "given"), *rows])


class RunFolder:
    """The paths of a run and its settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.log = path / "log.jsonl"
        self.reals = path / "reals.png"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.html"

    def settings(self) -> dict[str, Any] | None:
        """What `config.json` says; None where there is no run yet.

        Raises:
            ValueError: the file is there and cannot be read.
        """
        if not self.config.exists():
            return None
        try:
            settings: dict[str, Any] = dict(json.loads(self.config.read_text())["settings"].items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.config} is not the configuration of a run") from error
        return settings

    def check(self, settings: Settings) -> None:
        """Make sure that a training with these settings may start or go on here; writes nothing.

        Raises:
            ConfigMismatch: a run with other settings lies here.
            ValueError: there is a file in the way, a folder that is not empty and no run, or a name
                that is no UTF-8.
        """
        if NO_TEXT.search(str(self.path)):  # TensorBoard and the report could not write it
            raise ValueError(f"the name of a run's folder must be UTF-8 (got {str(self.path)!r})")
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: a run needs a folder")
        recorded = self.settings()
        if recorded is None:
            # A hidden file is what a kill during the very first moments left.
            if self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir()):
                raise ValueError(f"{self.path} is not empty and holds no run: give a new folder")
        elif rows := differences(recorded, as_json(settings)):
            raise ConfigMismatch(self.path, rows, settings.get("data"))

    def claim(self, settings: Settings) -> None:
        """Check, then make the folder and write its `config.json`.

        A training does this with the folder `locked`: the settings there may be another's.
        """
        self.check(settings)
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"fastgen": __version__, "settings": dict(settings)}
        replace_file(self.config, json.dumps(content, indent=1).encode())

    def sample(self, step: int, name: str) -> Path:
        """Where a picture of a step goes; `name` is ``"samples"`` or ``"reconstructions"``."""
        suffix = "" if name == "samples" else f"-{name}"
        return self.samples / f"{step:06d}{suffix}.png"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps goes."""
        return self.checkpoints / f"{step:06d}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folder, made if need be; the lock dies with the process.

        Raises:
            FolderInUse: another process is training here.
        """

        def busy() -> None:
            raise FolderInUse(f"another process is training in {self.path}")

        with locked(self.path / ".lock", busy):
            yield


def next_run(folder: Path, settings: Settings) -> Path:
    """The next numbered run in a folder, such as ``runs/0001-wgan-digits``; nothing is made."""
    # Four digits or more: what is not seen here is not counted past.
    found = [re.match(r"\d{4,}(?=-)", path.name, re.ASCII) for path in folder.glob("*")]
    numbers = [int(number[0]) for number in found if number]
    source = NO_TEXT.sub("_", Path(settings["data"].partition(":")[0]).stem)
    return folder / f"{max(numbers, default=0) + 1:04d}-{settings['model']}-{source}"


@contextmanager
def new_run(folder: Path, settings: Settings) -> Iterator[Path]:
    """The next numbered run as an empty folder, so that no other process takes the same number.

    It goes again if nothing is in it at the end.
    """
    made, existed = False, folder.is_dir()
    while not made:
        path = next_run(folder, settings)
        with suppress(FileExistsError):  # another process was faster
            path.mkdir(parents=True)
            made = True
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()
            if not existed:
                folder.rmdir()


def as_json(settings: Settings) -> dict[str, Any]:
    """Settings as they read back from a file, to compare with recorded ones."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _grows(row: Difference) -> bool:
    if row.option != GROWING or None in (row.recorded, row.given):
        return False
    return bool(row.given > row.recorded)
