"""The setuptools commands that build and place the compiled module."""

from __future__ import annotations

from pathlib import Path

from setuptools import Distribution
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from .module import build
from .placing import place
from .settings import BuildError, read_settings

ROOT = Path(__file__).resolve().parent.parent


class BuildModule(build_ext):
    """`build_ext` whose one extension is built by `build_support.module`, not by distutils."""

    def run(self) -> None:
        try:
            built = build(ROOT, read_settings())
        except BuildError as problem:
            raise SystemExit(f"fastgen: {problem}") from None
        folder = Path(self.get_ext_fullpath("fastgen._C")).parent
        self.placed = place(built, folder)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "placed", [])]

    def get_output_mapping(self) -> dict[str, str]:
        # Only an editable install asks, to link built files into the tree; ours lie there already.
        return {}


class BuildPackage(build_py):
    """`build_py` that keeps the record where no module is built (`FASTGEN_BUILD=none`)."""

    def run(self) -> None:
        super().run()
        if not self.distribution.has_ext_modules():
            package = ROOT if self.editable_mode else Path(self.build_lib)
            place(build(ROOT, read_settings()), package / "fastgen")


class FastgenDistribution(Distribution):
    """Platform-specific exactly where a compiled module is wanted."""

    def has_ext_modules(self) -> bool:
        try:
            return read_settings().mode != "none"
        except BuildError as problem:
            raise SystemExit(f"fastgen: {problem}") from None
