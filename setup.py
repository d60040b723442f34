"""Build entry point: pyproject.toml declares the package, build_support/ builds `fastgen._C`."""

import sys
from pathlib import Path

from setuptools import Extension, setup

# Build front ends do not put the folder of setup.py on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_support.commands import BuildModule, BuildPackage, FastgenDistribution

setup(
    license="Apache-2.0",
    distclass=FastgenDistribution,
    # The sources are found by build_support; this names what is built and where it goes.
    ext_modules=[Extension("fastgen._C", sources=[])],
    cmdclass={"build_ext": BuildModule, "build_py": BuildPackage},
)
