"""Where the built module and the record of the build go: beside the package's Python sources."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from .module import MODULE, Built

RECORD = "_build.json"


def place(built: Built, package: Path) -> list[Path]:
    """Put the module, if there is one, and the record into the package's folder; their paths.

    What an earlier build left there goes, or a pure-Python wheel would carry an old module. Files
    are renamed into place: a process that has the old module loaded keeps it.
    """
    package.mkdir(parents=True, exist_ok=True)
    if built.module is None:
        (package / MODULE).unlink(missing_ok=True)
    placed = [package / RECORD]
    scratch = package / f"{RECORD}.{os.getpid()}"
    scratch.write_text(json.dumps(built.record(), indent=2) + "\n")
    scratch.replace(placed[0])
    if built.module is not None:
        placed.append(package / built.module.name)
        scratch = package / f"{built.module.name}.{os.getpid()}"
        shutil.copyfile(built.module, scratch)
        scratch.chmod(0o755)
        scratch.replace(placed[1])
    return placed
