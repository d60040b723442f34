"""The build: its parts on made-up input, and what the compilers made of the kernels."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastgen.ops import compiled

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = bool(os.environ.get("FASTGEN_REQUIRE_CUDA_BUILD"))


def part(name: str) -> ModuleType:
    """A module of the build, which is not installed. The root stays off the path: it would make
    our folder `kernels` importable by a name that is another package's."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"build_support.{name}")
    finally:
        sys.path.remove(str(ROOT))


settings, listing, steps = part("settings"), part("listing"), part("steps")
module, budgets, disassembly = part("module"), part("budgets"), part("disassembly")
discover, placing = part("discover"), part("placing")


# ------------------------------------------------------------------------ what the user asks for


def gencodes(text: str) -> list[str]:
    return [a.gencode.removeprefix("-gencode=") for a in settings.parse_architectures(text)]


def test_architectures_become_nvcc_flags() -> None:
    assert gencodes("80;90a;100+PTX") == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_100,code=[sm_100,compute_100]",
    ]
    assert gencodes(" sm_86, 8.9 ;8.9") == [
        "arch=compute_86,code=sm_86",
        "arch=compute_89,code=sm_89",
    ]
    assert gencodes("none") == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FASTGEN_CUDA_ARCHS": "hopper"}, "'hopper'; allowed are entries like 80, 90a"),
        ({"FASTGEN_BUILD": "gpu"}, "one of auto, cpu, cuda, none .got 'gpu'."),
        ({"MAX_JOBS": "0"}, "MAX_JOBS must be a positive whole number .got '0'."),
        ({"FASTGEN_BUILD": "cuda", "FASTGEN_CUDA_ARCHS": "none"}, "needs an architecture"),
    ],
)
def test_wrong_settings_say_what_is_allowed(variables: dict[str, str], message: str) -> None:
    with pytest.raises(settings.BuildError, match=message):
        settings.read_settings(variables)


def test_an_architecture_that_nvcc_does_not_know(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho sm_80; echo sm_90\n")
    nvcc.chmod(0o755)
    cuda = discover.Cuda(nvcc, "12.4.0", tmp_path)

    # Of the default list what is left serves newer devices by PTX; what was named is an error.
    default = discover.usable_architectures(settings.read_settings({}), cuda)
    assert [(a.code, a.ptx) for a in default] == [("80", False), ("90a", True)]
    named = settings.read_settings({"FASTGEN_CUDA_ARCHS": "80;100"})
    with pytest.raises(settings.BuildError, match=r"does not know the architectures 100.*80;90"):
        discover.usable_architectures(named, cuda)


def torch_folder(folder: Path, version: str) -> Path:
    header = folder / "torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (folder / "torch/version.py").write_text(
        f"from typing import Optional\n__version__ = '{version}'\ncuda: Optional[str] = '13.0'\n"
    )
    return folder / "torch"


def test_torch_is_found_without_importing_it(tmp_path: Path) -> None:
    found = discover.find_torch(torch_folder(tmp_path, "2.12.1+cu130"))
    assert (found.version, found.cuda) == ("2.12.1+cu130", "13.0")
    with pytest.raises(settings.BuildError, match=r"torch 2\.10\.0 is older than 2\.11"):
        discover.find_torch(torch_folder(tmp_path / "old", "2.10.0"))
    with pytest.raises(settings.BuildError, match="holds no torch with headers"):
        discover.find_torch(tmp_path / "nothing")


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_oldest_torch_will_do_and_one_without_a_version_will_not(tmp_path: Path) -> None:
    oldest = ".".join(map(str, discover.OLDEST_TORCH)) + ".0"
    assert discover.find_torch(torch_folder(tmp_path, oldest)).version == oldest
    nameless = torch_folder(tmp_path / "nameless", "")
    with pytest.raises(settings.BuildError, match="holds no torch with headers"):
        discover.find_torch(nameless)


def test_a_compiler_is_what_cxx_says_and_has_to_run(tmp_path: Path) -> None:
    chosen = program(tmp_path / "c++", 'echo " made up $1 1.2 "; echo more')
    found = discover.find_compiler(settings.read_settings({"CXX": f"{chosen} -x"}))
    assert found == discover.Compiler((str(chosen), "-x"), "made up -x 1.2")
    for broken, message in (
        (program(tmp_path / "fails", "echo 1.2; exit 1"), "does not run; set CXX"),
        (program(tmp_path / "silent", "exit 0"), "does not run; set CXX"),
        (tmp_path / "nowhere", r"no C\+\+ compiler .*nowhere. was found"),
    ):
        with pytest.raises(settings.BuildError, match=message):
            discover.find_compiler(settings.read_settings({"CXX": str(broken)}))


def test_a_toolkit_is_where_its_nvcc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, toolkit = tmp_path / "home", tmp_path / "toolkit"
    monkeypatch.setenv("CUDA_HOME", str(home))
    nvcc = program(home / "bin/nvcc", "exit 1")
    with pytest.raises(settings.BuildError, match="nvcc does not run"):
        discover.find_cuda()
    answer = 'case $1 in --version) echo "release 12.8, V12.8.93";; '
    program(nvcc, answer + f"*) echo '#$ TOP={toolkit}/bin/..';; esac")
    with pytest.raises(settings.BuildError, match=r"libcudart_static\.a was not found beside"):
        discover.find_cuda()
    (toolkit / "bin").mkdir(parents=True)
    for folder in ("home/lib", "toolkit/lib64"):  # the nearer one is what nvcc says
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libcudart_static.a").touch()
        expected = discover.Cuda(nvcc, "12.8.93", tmp_path / folder)
        assert discover.find_cuda() == expected


def test_what_is_built_replaces_what_was(tmp_path: Path) -> None:
    built, package = tmp_path / "build" / module.MODULE, tmp_path / "package"
    built.parent.mkdir()
    for contents in ("first", "second"):
        built.write_text(contents)
        placed = placing.place(module.Built(built, {"cuda": "why"}), package)
        assert placed == [package / placing.RECORD, package / module.MODULE]
        assert placed[1].read_text() == contents
        assert os.access(placed[1], os.X_OK)
    assert placing.place(module.Built(None, {"cpu": "no"}), package) == [package / placing.RECORD]
    assert [path.name for path in package.iterdir()] == [placing.RECORD]
    record = json.loads((package / placing.RECORD).read_text())
    assert record == {"module": False, "missing": {"cpu": "no"}}


# ----------------------------------------------------------------------------- the cache of steps


def source_tree(root: Path) -> Path:
    (root / "csrc/ops").mkdir(parents=True)
    (root / "csrc/formulas.h").write_text("int formula();\n")
    (root / "csrc/ops/common.h").write_text('#include "formulas.h"\n')
    (root / "csrc/ops/op.cpp").write_text('#include "ops/common.h"\n#include <vector>\n')
    return root


def test_a_source_depends_on_every_header_it_reaches(tmp_path: Path) -> None:
    root = source_tree(tmp_path)
    found = steps.included(root / "csrc/ops/op.cpp", root / "csrc")
    assert [path.name for path in found] == ["formulas.h", "common.h", "op.cpp"]


def key_of(root: Path, torch: str = "2.13.0", flags: tuple[str, ...] = ()) -> str:
    parts = module.Parts(
        discover.Torch(root / "site/torch", torch, None),
        discover.Headers((root / "site/pybind11",), "3.0"),
        discover.Compiler(("g++",), "g++ 12"),
    )
    maker = module._Maker(root, root / "build", parts, flags, (), False)
    return str(maker.cxx(Path("csrc/ops/op.cpp")).folder.name)


def test_objects_are_reused_exactly_while_nothing_they_depend_on_changes(tmp_path: Path) -> None:
    one, copy = source_tree(tmp_path / "one"), source_tree(tmp_path / "copy")
    key = key_of(one)
    assert key_of(copy) == key, "a copy of the tree compiles nothing again"

    (copy / "csrc/unrelated.h").write_text("int unrelated();\n")
    assert key_of(copy) == key
    (copy / "csrc/formulas.h").write_text("long formula();\n")
    assert key_of(copy) != key, "a header of a header changed"
    assert key_of(one, torch="2.14.0") != key
    assert key_of(one, flags=("-fsanitize=address",)) != key


def step(folder: Path, name: str, command: str, **more: Any) -> Any:
    shell = ("sh", "-c", command, "sh", "{product}", "{folder}")
    return steps.Step(name, folder / f"{name}-0123456789abcdef", "object.o", shell, **more)


@pytest.mark.parametrize("ninja", [None, discover.find_ninja()], ids=["threads", "ninja"])
def test_steps_run_once_and_keep_what_they_should(tmp_path: Path, ninja: str | None) -> None:
    folder = tmp_path / "with a space"
    command = 'echo "costs $0.02"; echo run >> runs; echo made > "$1"; touch "$2/a.cubin" "$2/b.ii"'
    todo = [step(folder, name, command, keep="*.cubin") for name in ("one", "two", "three")]
    steps.run(todo, tmp_path, 2, ninja)
    steps.run(todo, tmp_path, 2, ninja)
    assert (tmp_path / "runs").read_text().splitlines() == ["run"] * 3
    for done in todo:
        assert done.output.read_text() == "made\n"
        assert done.log == "costs sh.02\n", "the shell of the command, not ours, reads its dollars"
        assert {path.name for path in done.folder.iterdir()} == {"object.o", "log.txt", "a.cubin"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(s.folder.name for s in todo)


@pytest.mark.parametrize("ninja", [None, discover.find_ninja()], ids=["threads", "ninja"])
def test_a_failing_step_is_named_and_leaves_nothing(tmp_path: Path, ninja: str | None) -> None:
    bad = step(tmp_path, "bad.cpp", 'echo partial > "$1"; echo "x.cpp:3: error: no such"; exit 3')
    good = step(tmp_path, "good.cpp", 'echo > "$1"')
    with pytest.raises(steps.StepFailed, match=r"bad\.cpp does not compile") as failure:
        steps.run([good, bad], tmp_path, 1, ninja)
    assert failure.value.step == bad
    assert failure.value.first_line == "x.cpp:3: error: no such"
    assert not bad.done
    assert not list(tmp_path.glob("bad.cpp-*/*"))


def test_old_objects_are_forgotten_and_used_ones_are_not(tmp_path: Path) -> None:
    products = [tmp_path / f"op-{number:016x}" for number in range(8)]
    for age, product in enumerate(products):
        product.mkdir()
        os.utime(product, (1_000_000 - age, 1_000_000 - age))
    used = steps.Step("op", products[-1], "object.o", ())
    steps.forget_old(tmp_path, [used])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {p.name for p in [products[-1], *products[: steps.KEPT - 1]]}


# --------------------------------------------------------------------- what the compiler reports

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_80'
ptxas info    : Function properties for _Z5firstv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]
ptxas info    : Function properties for _Z6calleev
    96 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90a'
ptxas info    : Function properties for _Z5firstv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""


def test_the_listing_of_ptxas_is_read() -> None:
    first, second = listing.parse(LOG, "first.cu")
    assert first == listing.Kernel("_Z5firstv", "first.cu", "80", 32, 1024, 8, 4, 12)
    assert second == listing.Kernel("_Z5firstv", "first.cu", "90a", 40, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("fastgen::cuda::mask(float const*, long)", "mask"),
        ("void fastgen::cuda::(anonymous namespace)::mask<float, 4>(float*)", "mask<float, 4>"),
        ("void fastgen::cuda::_GLOBAL__N__ab12_4_k_cu_0d::mask<(int)3>(int)", "mask<(int)3>"),
        ("void scan<std::pair<int, (Mode)1> >(void (*)(int))", "scan<std::pair<int, (Mode)1> >"),
        ("not_mangled", "not_mangled"),
    ],
)
def test_kernels_have_readable_names(demangled: str, name: str) -> None:
    assert listing.readable(demangled) == name


def test_long_names_are_cut_and_stay_apart() -> None:
    names = {listing.readable(f"void k<{'Deep' * 100}, {last}>(int)") for last in range(5)}
    assert len(names) == 5
    assert all(len(name) <= listing.LONGEST_NAME for name in names)


SASS = """
\t.section\t.text._Z4widev,"ax",@progbits
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;
        /*0020*/                   STG.E.64 desc[UR6][R6.64], R2 ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
\t.section\t.text._Z6narrowv,"ax",@progbits
        /*0010*/              @P0  LDG.E R4, desc[UR6][R4.64] ;
        /*0020*/                   LDGSTS.E.128 [R5], [R4.64] ;
        /*0030*/                   IMAD.MOV.U32 R3, RZ, RZ, RZ ;
"""


def test_machine_code_is_read() -> None:
    wide, narrow = disassembly.summed_up(SASS, "90a")
    assert wide == disassembly.Code("wide", "90a", 128, 64, ("HGMMA",))
    assert narrow == disassembly.Code("narrow", "90a", 128, 0, ())
    assert disassembly.architecture_of(Path("k.compute_100.sm_100.cubin"), "90a") == "100"
    assert disassembly.architecture_of(Path("k.compute_80.cubin"), "90a") == "80"
    assert disassembly.architecture_of(Path("k.cubin"), "90a") == "90a"


def test_every_kind_of_exceeded_budget_is_told() -> None:
    kernel = listing.Kernel("mask", "mask.cu", "80", 40, 64, 0, 0, 0)
    code = disassembly.Code("mask", "80", 64, 128, ())
    entry = {"registers": 32, "shared": 0, "loads": 128, "stores": 128, "matrix": ["HMMA"]}
    held = {"mask.cu": {"mask": {"80": entry}}}

    problems = "\n".join(budgets.exceeded([kernel], [code], held))
    for told in ("registers 40, budget 32", "shared 64, budget 0", "loads of 64 bits, budget 128"):
        assert told in problems
    assert "no HMMA instruction any more" in problems
    assert "stores" not in problems
    assert "registers" not in "\n".join(budgets.exceeded([kernel], [code], held, registers=False))
    spilling = listing.Kernel("mask", "mask.cu", "80", 30, 0, 8, 4, 4)
    assert "8 bytes of stack, spills of 4" in budgets.exceeded([spilling], [code], held)[0]
    (lacking,) = budgets.exceeded([kernel], [code], {})
    assert "has no budget" in lacking
    assert "--budgets" in lacking
    assert not budgets.exceeded([kernel], [code], budgets.measured([kernel], [code]))
    assert budgets.unknown([kernel], {"mask.cu": {"mask": {}, "gone": {}}, "other.cu": {"x": {}}})


def test_the_budget_file_survives_a_round_trip(tmp_path: Path) -> None:
    kernel = listing.Kernel('k<"a">', "k.cu", "90a", 40, 64, 0, 0, 0)
    code = disassembly.Code(kernel.name, "90a", 128, 128, ("HGMMA",))
    held = budgets.measured([kernel], [code])
    budgets.write(tmp_path, "13.0", held)
    assert budgets.read(tmp_path) == ("13.0", held)


# ------------------------------------------------------------------------------ the module we have


@pytest.fixture(scope="module")
def built() -> Any:
    """The module as the sources stand, from the cache of objects that the installation filled."""
    chosen = settings.read_settings({**os.environ, "FASTGEN_BUILD": "auto"})
    outcome = module.build(ROOT, chosen)
    left_out = outcome.missing.get("cuda") or outcome.missing.get("cutlass")
    if left_out is None:
        return outcome
    if REQUIRED:
        pytest.fail(f"FASTGEN_REQUIRE_CUDA_BUILD is set and a part was not built: {left_out}")
    pytest.skip(left_out)


def test_the_installed_module_is_built_from_these_sources(built: Any) -> None:
    assert compiled.build_information().get("cuda"), compiled.missing("cuda")
    assert compiled.cuda_kernels() == [kernel.as_dict() for kernel in built.kernels], (
        "the installed module is older than the sources; run python -m build_support"
    )
    assert compiled.has_cutlass() == any("_sm90" in kernel.source for kernel in built.kernels)


def test_what_is_missing_is_a_constant_to_the_compiler() -> None:
    """`auto` asks within a compiled step, maybe for the first time; loading cannot be traced."""
    code = (
        "import torch; from fastgen.ops import compiled\n"
        "def step(x): return x * 2 if compiled.missing('cuda') is None else x * 3\n"
        "one = torch.ones(())\n"
        "traced = torch.compile(step, fullgraph=True, backend='eager')(one)\n"
        "assert traced == step(one)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_every_kernel_is_compiled_for_every_architecture(built: Any) -> None:
    default = {a.code for a in settings.parse_architectures(settings.DEFAULT_ARCHITECTURES)}
    architectures: dict[tuple[str, str], list[str]] = {}
    for kernel in built.kernels:
        architectures.setdefault((kernel.source, kernel.name), []).append(kernel.architecture)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc/cuda").glob("*.cu")}
    assert {source for source, _ in architectures} == sources
    for (source, name), found in architectures.items():
        assert len(found) == len(set(found)), f"two kernels of {source} share the name {name}"
        assert set(found) == ({"90a"} if "_sm90" in source else default), (source, name)


def test_kernels_keep_their_budgets(built: Any) -> None:
    try:
        codes = disassembly.disassemble(built.cubins, jobs=1)
    except settings.BuildError as problem:
        if REQUIRED:
            raise
        pytest.skip(str(problem))
    release, held = budgets.read(ROOT)
    same_compiler = discover.find_cuda().version.startswith(f"{release}.")
    problems = budgets.exceeded(built.kernels, codes, held, registers=same_compiler)
    problems += budgets.unknown(built.kernels, held)
    assert not problems, "\n".join(problems)


def test_hopper_kernels_use_hopper_matrix_instructions(built: Any) -> None:
    hopper = [path for path in built.cubins if "_sm90" in path.name]
    if not hopper:
        pytest.skip("csrc/cuda has no Hopper kernels")
    codes = disassembly.disassemble(hopper, jobs=1)
    assert all("HGMMA" in code.matrix for code in codes if "conv" in code.name), codes


def test_the_cuda_runtime_inside_is_not_visible_from_outside(built: Any) -> None:
    """Torch brings a CUDA runtime of its own; neither may answer the other's calls."""
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", built.module], capture_output=True, text=True, check=True
    ).stdout
    assert "PyInit__C" in exported
    assert "cudaLaunchKernel" not in exported
    # Nothing of the driver is linked either: the module loads where there is none.
    needed = subprocess.run(
        ["nm", "-D", "--undefined-only", built.module], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not [name for name in needed if name.startswith("cu") and name[2:3].isupper()]
