"""The table of measured choices on disk: one JSON file per device and set of versions."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastgen.files import cache_folder, locked, replace_file
from fastgen.version import __version__

FORMAT = 1  # of the file; another format is measured again


@dataclass(frozen=True)
class Route:
    """What runs, and how long every candidate took when it was measured, in seconds."""

    choice: str
    seconds: dict[str, float]

    def margin(self) -> float:
        """The time of the best other candidate over that of the choice."""
        others = [s for name, s in self.seconds.items() if name != self.choice]
        return min(others, default=self.seconds[self.choice]) / self.seconds[self.choice]


class RouteTable:
    """Choices by the words for a call, shared by all processes with one device and versions.

    A file that cannot be read, or holds something else, counts as empty; one that cannot be
    written costs a measurement in the next process and nothing else. Writers take a lock, read
    what others wrote meanwhile and replace the file at once.
    """

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path = path
        self.environment = environment
        self.routes = self._read()

    def get(self, call: str) -> Route | None:
        return self.routes.get(call)

    def put(self, call: str, route: Route) -> None:
        self.routes[call] = route
        with suppress(OSError), locked(self.path.parent / ".lock"):
            self.routes = {**self._read(), **self.routes}
            entries = {
                name: {"choice": kept.choice, "seconds": kept.seconds}
                for name, kept in sorted(self.routes.items())
            }
            content = {"format": FORMAT, "environment": self.environment, "routes": entries}
            replace_file(self.path, json.dumps(content, indent=1).encode())

    def _read(self) -> dict[str, Route]:
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if content["format"] != FORMAT or content["environment"] != self.environment:
                return {}
            return {name: _route(entry) for name, entry in content["routes"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}


def _route(entry: Any) -> Route:
    seconds = {str(name): float(value) for name, value in entry["seconds"].items()}
    if entry["choice"] not in seconds or not all(value > 0 for value in seconds.values()):
        raise ValueError(f"not a route: {entry}")
    return Route(entry["choice"], seconds)


def folder() -> Path:
    """Where tables lie: `FASTGEN_CACHE`, else the user's cache folder for fastgen."""
    if "FASTGEN_CACHE" in os.environ:
        return Path(os.environ["FASTGEN_CACHE"]) / "routes"
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"]) / "fastgen" / "routes"
    return cache_folder() / "routes"


@functools.cache
def table_of(device: torch.device) -> RouteTable:
    """The table of a device with the versions of now."""
    environment = environment_of(device)
    name = re.sub(r"[^A-Za-z0-9.+-]+", "-", "_".join(environment.values()))
    return RouteTable(folder() / f"{name}.json", environment)


def environment_of(device: torch.device) -> dict[str, str]:
    """Everything that a measured time depends on beside the call."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "driver": _driver(),
        "torch": torch.__version__,
        "triton": _version_of("triton"),
        "fastgen": __version__,
    }


def _driver() -> str:
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text("utf-8")
        if found := re.search(r"\s(\d+(\.\d+)+)\s", text):
            return found.group(1)
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    return str(ask()) if ask is not None else "none"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
