"""The architecture, held by tests: floors, light imports, no pickle, docstrings, one stem per op.

The rules are read from the source with `ast`, and each checker is shown a violation that it must
find.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastgen"

# Imports go down this list only. A row's rooms do not import each other. `acceleration` shares the
# second floor with `nn`, whose layers it puts in; `fastgen` is the package's own `__init__`.
FLOORS = (
    ("version", "files"),
    ("kernels",),
    ("ops",),
    ("nn",),
    ("acceleration",),
    ("models", "data", "metrics"),
    ("training",),
    ("bench",),
    ("fastgen",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

HEAVY = (
    "PIL", "matplotlib", "ot", "rich", "safetensors", "scipy", "sklearn", "tensorboard",
    "torchmetrics", "tqdm", "triton", "typer",
)  # fmt: skip

PICKLE_READERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
TORCH_READERS = {"torch.load", "torch.serialization.load", "torch.jit.load"}
NUMPY_READERS = {"numpy.load", "numpy.lib.npyio.load"}


# --- reading the source ---


def sources(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path, root: Path) -> Iterator[tuple[str, str, int]]:
    """(local name, full dotted name, line) of every import, wherever it stands in the file."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{prefix}.{alias.name}", node.lineno


# --- floors ---


def room_of(dotted: str) -> str | None:
    """The room of the package that a dotted name lies in; None outside the package."""
    top, *rest = dotted.split(".")
    if top != "fastgen":
        return None
    return rest[0] if rest and rest[0] in FLOOR else "fastgen"


def climbing_imports(root: Path) -> list[str]:
    found = []
    for path in sources(root / "fastgen"):
        room = room_of(module_name(path, root))
        assert room is not None
        for _, name, line in imported_names(path, root):
            target = room_of(name)
            if target not in (None, room) and FLOOR[target] >= FLOOR[room]:
                found.append(f"{path.relative_to(root)}:{line}: {room} imports {target} ({name})")
    return found


def test_imports_only_go_down_a_floor() -> None:
    assert climbing_imports(ROOT) == []


def test_every_room_has_a_floor() -> None:
    """A new room is a new name in FLOORS: decide where it stands."""
    rooms = {
        path.stem if path.is_file() else path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= FLOOR.keys()


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("ops/a.py", "from fastgen.nn import ConvLeakyReLU2d"),
        ("ops/a.py", "from ..models.gan import GAN"),
        ("ops/a.py", "from .. import nn"),
        ("ops/a.py", "import fastgen.training.trainer as trainer"),
        ("ops/a.py", "from fastgen import backend"),
        ("ops/deep/a.py", "from ...nn import conv"),
        ("nn/a.py", "def build():\n    from fastgen.acceleration import accelerate"),
        ("models/a.py", "if TYPE_CHECKING:\n    from ..data import load"),
        ("data/a.py", "import fastgen.metrics"),
        ("metrics/a.py", "from fastgen.models import GAN"),
        ("training/a.py", "from fastgen.cli import main"),
        ("__init__.py", "from .cli import main"),
    ],
)
def test_the_checker_finds_an_import_that_climbs(tmp_path: Path, file: str, statement: str) -> None:
    path = tmp_path / "fastgen" / file
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert len(climbing_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("ops/a.py", "import torch\nfrom . import checks\nfrom .backend import select"),
        ("ops/__init__.py", "from . import reference\nfrom .philox import philox"),
        ("nn/a.py", "from fastgen.ops import checks\nfrom ..version import __version__"),
        ("acceleration/a.py", "from ..nn import ConvLeakyReLU2d"),
        ("models/a.py", "from fastgen.nn import ConvLeakyReLU2d\nimport fastgen.ops"),
        ("__init__.py", "from . import nn, ops, training\nfrom .ops.backend import backend"),
        ("training/a.py", "from ..models import GAN\nfrom ..version import __version__"),
        ("cli.py", "from .training import Trainer"),
    ],
)
def test_the_checker_allows_an_import_that_descends(
    tmp_path: Path, file: str, statement: str
) -> None:
    path = tmp_path / "fastgen" / file
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert climbing_imports(tmp_path) == []


# --- light imports ---


def heavy_modules_of(statement: str) -> set[str]:
    """What a statement loads of HEAVY beyond what torch itself loads, in a fresh interpreter."""
    script = (
        "import json, sys, torch\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout)) & set(HEAVY)


@pytest.mark.parametrize(
    "statement",
    ["import fastgen", "import fastgen.models, fastgen.data, fastgen.metrics"],
)
def test_importing_the_library_loads_nothing_heavy(statement: str) -> None:
    assert heavy_modules_of(statement) == set()


def test_the_checker_finds_a_heavy_import() -> None:
    assert heavy_modules_of("import safetensors.torch") == {"safetensors"}


# --- no pickle ---


def pickle_readers(path: Path, root: Path) -> list[str]:
    """Every way in which a file could read a pickle."""
    imports = list(imported_names(path, root))
    # `import torch.nn` binds torch; every other import binds what it names.
    full_name = {
        local: local if name.startswith(f"{local}.") else name for local, name, _ in imports
    }
    tree = ast.parse(path.read_text("utf-8"))

    def resolve(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{resolve(node.value)}.{node.attr}"
        return full_name.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    lines = {line for _, name, line in imports if name.split(".")[0] in PICKLE_READERS}
    refused = {id(call.func) for call in ast.walk(tree) if refuses_pickle(call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = resolve(node)
            if name in TORCH_READERS or (name in NUMPY_READERS and id(node) not in refused):
                lines.add(node.lineno)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not is_false(node):
            lines.add(node.value.lineno)
    return [f"{path.relative_to(root)}:{line}" for line in sorted(lines)]


def refuses_pickle(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and any(
        keyword.arg == "allow_pickle" and is_false(keyword) for keyword in node.keywords
    )


def is_false(keyword: ast.keyword) -> bool:
    return isinstance(keyword.value, ast.Constant) and keyword.value.value is False


def test_no_file_of_the_package_can_read_a_pickle() -> None:
    found = [place for path in sources(PACKAGE) for place in pickle_readers(path, ROOT)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as read",
        "def f(p):\n    import joblib",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=True)",
        "from torch import load\nload(path)",
        "import torch.nn\nreader = torch.load",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from numpy import load as read\nread(path)",
        "import numpy as np\nreader = np.load",
        "import numpy as np\nnp.load(path, **options)",
        "from numpy.lib.format import read_array\nread_array(file, allow_pickle=flag)",
    ],
)
def test_the_checker_finds_a_pickle_reader(tmp_path: Path, source: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(source)
    assert len(pickle_readers(path, tmp_path)) == 1


def test_the_checker_allows_readers_without_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "import json\nimport numpy as np\nfrom safetensors.torch import load\n"
        "np.load(path, allow_pickle=False)\njson.load(file)\nload(data)\nmodel.load(path)\n"
    )
    assert pickle_readers(path, tmp_path) == []


# --- docstrings, stems, files ---


def exported() -> list[tuple[str, object]]:
    """(dotted name, object) of every function and class of ours in an `__all__`, each once."""
    found = {}
    for path in sources(PACKAGE):
        if path.name == "__main__.py":  # importing it runs the command line
            continue
        module = importlib.import_module(module_name(path, ROOT))
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            ours = getattr(thing, "__module__", "").split(".")[0] == "fastgen"
            if ours and (inspect.isfunction(thing) or inspect.isclass(thing)):
                found[id(thing)] = (f"{module.__name__}.{name}", thing)
    return list(found.values())


def test_every_exported_name_has_a_docstring_that_teaches() -> None:
    things = exported()
    brief = [name for name, thing in things if len((thing.__doc__ or "").strip().splitlines()) < 2]
    assert brief == []
    assert len(things) >= 20


def operation_stems(ops: Path) -> set[str]:
    """Files that define a public function of their own name with an argument `backend`."""
    stems = set()
    for path in ops.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == path.stem:
                arguments = [*node.args.args, *node.args.kwonlyargs]
                if any(argument.arg == "backend" for argument in arguments):
                    stems.add(path.stem)
    return stems


def test_every_operation_has_a_test_file_of_its_stem() -> None:
    stems = operation_stems(PACKAGE / "ops")
    assert stems >= {
        "bias_leaky_relu",
        "conv2d_bias_leaky_relu",
        "conv_transpose2d_bias_leaky_relu",
        "reparameterize",
    }
    assert [s for s in sorted(stems) if not (ROOT / f"tests/ops/test_{s}.py").is_file()] == []


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_test_folder_mirrors_a_source_folder() -> None:
    """tests/a/b belongs to fastgen/a/b or a/b; but for oracles, which cross all rooms, and
    emulation, which stands in for a device."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")}
    strays = [
        str(folder)
        for folder in sorted(folders - {Path("oracles"), Path("emulation")})
        if not (PACKAGE / folder).is_dir() and not (ROOT / folder).is_dir()
    ]
    assert strays == []


# --- names in docs/lecture.md and docs/gradients.md ---


def missing_names(text: str) -> list[str]:
    """Tests `path::name` and names `fastgen.…` in backquotes that do not exist."""
    quoted = re.findall(r"`([^`\n]+)`", text)
    tests = [name for name in quoted if "::" in name]
    names = [name for name in quoted if re.fullmatch(r"fastgen(\.\w+)+", name)]
    return [name for name in tests if not is_a_test(name)] + [
        name for name in names if not name_exists(name)
    ]


def is_a_test(name: str) -> bool:
    path, _, function = name.partition("::")
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)


def name_exists(name: str) -> bool:
    """Whether the dotted name leads to something: sub-modules are imported, attributes read."""
    thing: object = importlib.import_module("fastgen")
    path = "fastgen"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(thing, part):
            try:
                thing = importlib.import_module(path)
            except ModuleNotFoundError:
                return False
        else:
            thing = getattr(thing, part)
    return True


def test_every_class_function_and_test_named_for_the_lecture_exists() -> None:
    text = (ROOT / "docs" / "lecture.md").read_text("utf-8")
    assert missing_names(text) == []
    assert text.count("::test_") >= 20
    assert len(re.findall(r"`fastgen\.\w", text)) >= 20


def test_every_function_and_test_named_for_gradients_exists() -> None:
    text = (ROOT / "docs" / "gradients.md").read_text("utf-8")
    assert missing_names(text) == []
    assert [
        name for name in re.findall(r"`(tests/[\w/.]+)`", text) if not (ROOT / name).exists()
    ] == []
    assert text.count("::test_") >= 2
    assert len(re.findall(r"`fastgen\.\w", text)) >= 5


def test_the_checker_finds_a_name_that_does_not_exist() -> None:
    absent = [
        "tests/test_house.py::test_that_is_not_there",
        "tests/nowhere/test_house.py::test_the_package_is_marked_as_typed",
        "fastgen.models.GAN.no_such_method",
        "fastgen.no_such_room.GAN",
    ]
    present = ["tests/test_house.py::test_the_package_is_marked_as_typed", "fastgen.models.GAN"]
    assert missing_names(" ".join(f"`{name}`" for name in [*absent, *present])) == absent
