"""Sets larger than the memory allowed: memory-mapped, and otherwise the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.data import Batches, ImageDataset, Splits, fingerprint, load
from fastgen.data import folder as folder_module
from fastgen.data.storage import fits_in_memory

Refused = Callable[..., str]
Limit = Callable[[int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    return lambda nbytes: monkeypatch.setenv("FASTGEN_DATA_MEMORY", str(nbytes))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_array(place: Path, array: np.ndarray) -> str:
    np.save(place / "a.npy", array)
    return str(place / "a.npy")


def write_folder(place: Path, channels: int = 3) -> str:
    for number, array in enumerate(pixels(12, 8, 8, channels)):
        (place / "pictures" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(array if channels > 1 else array[..., 0])
        picture.save(place / "pictures" / f"{number % 2}" / f"{number}.png")
    (place / "pictures" / "0" / "broken.png").write_bytes(b"")
    return str(place / "pictures")


SOURCES: dict[str, tuple[Callable[[Path], str], dict[str, int]]] = {
    "uint8": (lambda place: write_array(place, pixels(12, 3, 8, 8)), {}),
    "channels last": (lambda place: write_array(place, pixels(12, 8, 9, 3)), {}),
    "gray": (lambda place: write_array(place, pixels(12, 8, 8)), {}),
    "Fortran order": (lambda place: write_array(place, np.asfortranarray(pixels(12, 3, 8, 8))), {}),
    "float": (lambda place: write_array(place, pixels(12, 3, 8, 8) / 255), {}),
    "resized": (lambda place: write_array(place, pixels(12, 3, 8, 11)), {"image_size": 6}),
    "one channel": (lambda place: write_array(place, pixels(12, 3, 8, 8)), {"channels": 1}),
    "folder": (write_folder, {"image_size": 8}),
    "gray folder": (lambda place: write_folder(place, 1), {}),
}


def backing(dataset: ImageDataset) -> np.memmap | None:
    """The file under an array, found through all views of it."""
    array: object = dataset.base
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and not isinstance(array.base, np.ndarray):
            return array
        array = array.base
    return None


def same(some: Splits, others: Splits) -> bool:
    return all(
        fingerprint(a) == fingerprint(b)
        and np.array_equal(a.images, b.images)
        and a.class_names == b.class_names
        and a.skipped == b.skipped
        for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("kind", SOURCES)
def test_memory_mapped_sets_equal_those_in_memory(tmp_path: Path, limit: Limit, kind: str) -> None:
    write, options = SOURCES[kind]
    spec = write(tmp_path)
    in_memory = load(spec, **options)
    limit(100)
    mapped = load(spec, **options)
    again = load(spec, **options)
    assert backing(in_memory.train) is None
    assert same(mapped, in_memory)
    assert same(again, in_memory)
    for splits in (mapped, again):
        file = backing(splits.train)
        assert file is not None
        assert file.mode == "r"
        assert backing(splits.held_out) is not None
        assert splits.train.base is splits.held_out.base

    ours, theirs = (Batches(splits.train, 7, seed=0).batch(2) for splits in (mapped, in_memory))
    assert torch.equal(ours.images, theirs.images)
    assert ours.images.stride() == theirs.images.stride()


@pytest.mark.parametrize("kind", ["uint8", "channels last", "gray", "Fortran order"])
def test_a_file_that_needs_no_conversion_is_mapped_itself(
    tmp_path: Path, limit: Limit, cache: Path, kind: str
) -> None:
    write, options = SOURCES[kind]
    spec = write(tmp_path)
    limit(100)
    file = backing(load(spec, **options).train)
    assert file is not None
    assert file.filename == Path(spec)
    assert not cache.exists()


def test_the_limit_is_in_bytes_and_inclusive(tmp_path: Path, limit: Limit) -> None:
    spec = write_array(tmp_path, pixels(12, 3, 8, 8))
    limit(12 * 3 * 8 * 8)
    assert backing(load(spec).train) is None
    limit(12 * 3 * 8 * 8 - 1)
    assert backing(load(spec).train) is not None


def test_the_limit_is_4_gibibytes_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTGEN_DATA_MEMORY", raising=False)
    assert fits_in_memory(4 * 2**30)
    assert not fits_in_memory(4 * 2**30 + 1)


def test_batches_of_a_mapped_set_do_not_read_the_whole(tmp_path: Path, limit: Limit) -> None:
    # 64 GiB that take no room on disk: a copy of the whole, or of a split, could not be made.
    count, side = 2**16, 1024
    spec = tmp_path / "sparse.npy"
    with open(spec, "wb") as file:
        layout = {"descr": "|u1", "fortran_order": False, "shape": (count, 1, side, side)}
        np.lib.format.write_array_header_1_0(file, layout)
        file.truncate(file.tell() + count * side * side)
    splits = load(str(spec))
    assert len(splits.train) + len(splits.held_out) == count
    assert Batches(splits.train, 2, seed=0).batch(5).images.shape == (2, 1, side, side)
    fingerprint(splits.held_out)


def test_decoded_pictures_are_kept_for_the_next_run(
    tmp_path: Path, limit: Limit, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_folder(tmp_path)
    limit(100)
    first = load(spec)
    kept = sorted(path.name for path in cache.iterdir())
    assert len(kept) == 2  # the pixels, and which files they are of

    def forbidden(*_: object) -> np.ndarray:
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder_module, "decode", forbidden)
    assert same(load(spec), first)
    assert sorted(path.name for path in cache.iterdir()) == kept


@pytest.mark.parametrize("change", ["content", "new file", "image_size", "channels"])
def test_what_changes_the_pixels_is_decoded_anew(
    tmp_path: Path, limit: Limit, cache: Path, change: str
) -> None:
    spec = write_folder(tmp_path)
    limit(100)
    before = load(spec)
    picture = Path(spec) / "0" / "0.png"
    options = {}
    if change == "content":
        status = picture.stat()
        Image.fromarray(pixels(8, 8, 3)[::-1].copy()).save(picture)
        os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "new file":
        Image.fromarray(pixels(8, 8, 3)).save(picture.with_name("new.png"))
    else:
        options = {"image_size": 8} if change == "image_size" else {"channels": 1}
    after = load(spec, **options)
    assert fingerprint(after.train) != fingerprint(before.train)
    assert len(list(cache.iterdir())) == 4
    limit(2**30)
    assert same(after, load(spec, **options))


@pytest.mark.parametrize("harm", ["cut", "emptied", "notes gone", "notes cut"])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, limit: Limit, cache: Path, harm: str) -> None:
    spec = write_folder(tmp_path)
    in_memory = load(spec)
    limit(100)
    load(spec)
    pixels_file, notes_file = next(cache.glob("*.npy")), next(cache.glob("*.json"))
    content = pixels_file.read_bytes()
    if harm == "notes gone":
        notes_file.unlink()
    elif harm == "notes cut":
        notes_file.write_bytes(notes_file.read_bytes()[:-5])
    else:
        pixels_file.unlink()
        pixels_file.write_bytes(content[:-1] if harm == "cut" else b"")
    assert same(load(spec), in_memory)


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, limit: Limit, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_folder(tmp_path)
    in_memory = load(spec)
    limit(100)

    unfinished = set()

    def interrupt(*_: object) -> np.ndarray:
        unfinished.update(cache.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(spec)
    assert [path.name.partition("-")[0] for path in unfinished] == ["unfinished"]
    assert list(cache.iterdir()) == []
    assert same(load(spec), in_memory)


def test_a_cache_that_cannot_be_written_is_told_with_the_remedy(
    tmp_path: Path, limit: Limit, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_folder(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    limit(100)
    refused(spec, "cannot keep", "XDG_CACHE_HOME", "FASTGEN_DATA_MEMORY")


def test_a_full_disk_is_told_before_it_is_filled(
    tmp_path: Path, cache: Path, refused: Refused
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((10**5, 2, 2), np.uint8))
    refused(str(tmp_path / "a.npy"), "are free", "XDG_CACHE_HOME", image_size=2**14)
    assert list(cache.iterdir()) == []


def test_without_a_cache_folder_set_the_home_folder_has_one(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_folder(tmp_path)
    limit(100)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    load(spec)
    assert list((tmp_path / "home" / ".cache" / "fastgen").glob("*.npy"))


@pytest.mark.parametrize("value", ["", "4 GiB", "-1", "1e9"])
def test_a_limit_that_is_no_number_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FASTGEN_DATA_MEMORY", value)
    refused("digits", "FASTGEN_DATA_MEMORY", "number of bytes", repr(value))
