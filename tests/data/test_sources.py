"""The table of sources and what `load` says to what it does not know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgen.data import SOURCES, DataError, Source, Splits, load

Refused = Callable[..., str]


@pytest.mark.parametrize(
    "spec", ["", "imagenet", "imagenet:/tmp", "/no/such/folder", "no.npy", "a\0b"]
)
def test_what_does_not_exist_is_told_with_all_that_does(spec: str, refused: Refused) -> None:
    refused(spec, *SOURCES, "DIR", "folder of pictures", "FILE.npy", "FILE.npz", "does not exist")


def test_a_file_of_another_kind_is_told_so(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    refused(str(tmp_path / "one.png"), "one.png", "no kind of file", "folder of pictures")


@pytest.mark.parametrize("spec", ["mnist", "mnist:", "cifar10", "cifar10:/no/such/folder"])
def test_a_missing_folder_is_asked_for(spec: str, refused: Refused) -> None:
    refused(spec, f"{spec.partition(':')[0]}:DIR", repr(spec))


def test_digits_takes_no_argument(refused: Refused) -> None:
    refused("digits:/tmp", "nothing after its name", "'digits:/tmp'")


OUT_OF_RANGE = [{"image_size": 0}, {"image_size": -3}, {"image_size": 2**14 + 1}, {"channels": 5}]


@pytest.mark.parametrize("options", OUT_OF_RANGE)
def test_options_out_of_range_are_refused(options: dict[str, int], refused: Refused) -> None:
    ((name, value),) = options.items()
    refused("digits", name, "1 ..", f"got {value}", **options)


def test_channels_that_cannot_be_made_are_refused(refused: Refused) -> None:
    refused("digits", "channels=2", "1 channels of digits", channels=2)


def test_names_that_cannot_be_printed_still_make_one_line(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "two\nlines").mkdir()
    refused(str(tmp_path / "two\nlines"), "two lines")
    refused(str(tmp_path / "not\udc80utf8"), "does not exist")
    (tmp_path / "\x1b[31mred").mkdir()
    refused(str(tmp_path / "\x1b[31mred"), "no pictures")
    (tmp_path / "not\udc80utf8").mkdir()
    (tmp_path / "not\udc80utf8" / "a.png").write_bytes(b"")
    refused(str(tmp_path / "not\udc80utf8"), "none of the 1 pictures", r"not\udc80utf8")


def test_a_path_is_as_good_as_a_string(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10, 4, 4), np.uint8))
    assert load(tmp_path / "x.npy").train.image_shape == (1, 4, 4)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "y.npy")


def test_a_source_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def loader(argument: str, image_size: int | None, channels: int | None) -> Splits:
        asked.append((argument, image_size, channels))
        return load("digits")

    monkeypatch.setitem(SOURCES, "mine", Source(loader, "a test", folder=True))
    load("mine:/", image_size=3, channels=1)
    assert asked == [("/", 3, 1)]
    with pytest.raises(DataError, match="mine:DIR"):
        load("unknown")


def test_importing_imports_no_optional_dependency() -> None:
    program = "import sys, fastgen.data; print({'PIL', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("PIL", "Pillow")])
def test_a_missing_dependency_is_told_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, module: str, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    refused("digits", package, 'pip install "fastgen-kernels[train]"')


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", np.zeros((10, 4, 4), np.uint8))
    assert load("~/a.npy").train.image_shape == (1, 4, 4)
