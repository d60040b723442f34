"""Build `fastgen._C` in place, beside the Python sources: `python -m build_support`.

The way out where pip or setuptools is too old or has no network. The variables of
build_support/settings.py apply; `--kernels` prints what the CUDA compiler made of each kernel.
`--budgets` writes what they use now into the budget file of the tests.
`--into FOLDER` leaves the tree as it is: a copy of the package goes there, the module beside it.
`--pure` builds nothing: it says in one line why the last build was pure Python, if it was, because
pip hides what a build prints.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from . import budgets
from .disassembly import disassemble
from .discover import find_cuda
from .listing import Kernel
from .module import Built, build
from .placing import RECORD, place
from .settings import BuildError, read_settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m build_support", description=__doc__)
    parser.add_argument("--kernels", action="store_true", help="print the table of CUDA kernels")
    parser.add_argument("--budgets", action="store_true", help=f"write {budgets.FILE}")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="place a copy of the package")
    parser.add_argument("--pure", action="store_true", help="only say why the last build is pure")
    options = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    if options.pure:
        record = json.loads((root / "fastgen" / RECORD).read_text())
        if not record["module"]:
            print(f"fastgen: pure Python, without compiled kernels: {record['missing']['cpu']}")
        return
    try:
        settings = read_settings()
        built = build(root, settings)
        package = root / "fastgen"
        if options.into:
            package = copied(package, options.into)
        place(built, package)
        for part, reason in built.missing.items():
            print(f"without {part}: {reason}")
        if options.kernels:
            print_kernels(built.kernels)
        if options.budgets:
            write_budgets(root, built, settings.jobs)
    except BuildError as problem:
        sys.exit(f"fastgen: {problem}")


def copied(package: Path, folder: Path) -> Path:
    """A fresh copy of the package's Python files in `folder`; its path."""
    target = folder / package.name
    shutil.rmtree(target, ignore_errors=True)
    built = shutil.ignore_patterns("__pycache__", "*.so", RECORD)
    shutil.copytree(package, target, ignore=built)
    return target


def print_kernels(kernels: Sequence[Kernel]) -> None:
    print(f"{'registers':>9} {'shared':>7} {'stack':>6} {'spills':>7}  architecture, kernel")
    for k in kernels:
        spills = k.spill_stores + k.spill_loads
        print(
            f"{k.registers:9} {k.shared_bytes:7} {k.stack_bytes:6} {spills:7}  "
            f"sm_{k.architecture:5} {k.name}"
        )


def write_budgets(root: Path, built: Built, jobs: int) -> None:
    if "cuda" in built.missing or "cutlass" in built.missing:
        raise BuildError("budgets are written from a build of everything, CUDA and CUTLASS")
    release = ".".join(find_cuda().version.split(".")[:2])
    budgets.write(root, release, budgets.measured(built.kernels, disassemble(built.cubins, jobs)))


if __name__ == "__main__":
    main()
