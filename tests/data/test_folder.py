"""A folder of pictures."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgen.data import Splits, load

Refused = Callable[..., str]
Whole = Callable[[Splits], tuple[np.ndarray, np.ndarray]]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def fill(folder: Path, count: int = 10, channels: int = 3, size: int = 8) -> list[np.ndarray]:
    """Numbered lossless pictures, in the order in which they are read."""
    arrays = [noise(size, size, channels, seed) for seed in range(count)]
    for number, array in enumerate(arrays):
        write(folder / f"{number:03}.png", array)
    return arrays


def test_pictures_come_in_the_order_of_their_paths_at_any_depth(
    tmp_path: Path, whole: Whole
) -> None:
    names = ["z.png", "a/b/c/d.PNG", "a/z.webp", "a/b.Png", "m.jpeg", "m.JPG", "b/0.png"]
    names += ["b/1.png", "c/0.webp", "c/1.png", "c/2.png"]
    pictures = {}
    for seed, name in enumerate(names):
        array = np.full((8, 8, 3), 20 * seed, np.uint8)
        array[..., 0] = 7
        lossless = {"lossless": True} if name.endswith("webp") else {}
        write(tmp_path / name, array, **lossless)
        pictures[name] = array
    (tmp_path / "notes.txt").write_text("no picture")
    write(tmp_path / ".hidden" / "a.png", noise(8, 8))
    write(tmp_path / "._a.png", noise(8, 8))

    splits = load(str(tmp_path), image_size=8)
    images, labels = whole(splits)
    assert labels is None
    assert splits.train.skipped == ()
    ordered = sorted(names, key=lambda name: name.split("/"))
    expected = np.stack([pictures[name].transpose(2, 0, 1) for name in ordered])
    np.testing.assert_allclose(images.astype(int), expected, atol=2)  # JPEG rounds


@pytest.mark.parametrize("size", [(20, 20), (31, 20), (20, 33), (5, 9)])
def test_the_central_square_is_resized_by_pillows_bicubic_to_64(
    tmp_path: Path, whole: Whole, size: tuple[int, int]
) -> None:
    height, width = size
    side, top, left = min(size), max(0, (height - width) // 2), max(0, (width - height) // 2)
    expected = []
    for seed in range(10):
        array = noise(height, width, 3, seed)
        write(tmp_path / f"{seed}.png", array)
        square = Image.fromarray(array[top : top + side, left : left + side])
        expected.append(np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC)))
    images, _ = whole(load(str(tmp_path)))
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), expected)


def test_gray_if_every_picture_is_and_color_otherwise(tmp_path: Path, whole: Whole) -> None:
    gray = fill(tmp_path, channels=1)
    write(tmp_path / "gray-as-color.png", np.stack([gray[0]] * 3, axis=-1))
    (tmp_path / "broken.png").write_bytes(b"not read, so not color")
    images, _ = whole(load(str(tmp_path), image_size=8))
    assert images.shape == (11, 1, 8, 8)
    np.testing.assert_array_equal(images[:10, 0], gray)

    as_color, _ = whole(load(str(tmp_path), image_size=8, channels=3))
    np.testing.assert_array_equal(as_color, images.repeat(3, axis=1))

    color = write(tmp_path / "zz.png", noise(8, 8))
    images, _ = whole(load(str(tmp_path), image_size=8))
    assert images.shape == (12, 3, 8, 8)
    images, _ = whole(load(str(tmp_path), image_size=8, channels=1))
    np.testing.assert_array_equal(images[-1, 0], np.asarray(Image.open(color).convert("L")))


def test_other_numbers_of_channels_are_refused(tmp_path: Path, refused: Refused) -> None:
    fill(tmp_path)
    refused(str(tmp_path), "1 or 3", "got 4", channels=4)


def test_transparent_pixels_lie_on_white(tmp_path: Path, whole: Whole) -> None:
    fill(tmp_path)
    rgba = noise(8, 8, 4)
    write(tmp_path / "a-alpha.png", rgba)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((2, 3), 0)
    palette.save(tmp_path / "b-palette.png", transparency=0)
    write(tmp_path / "c-gray.png", noise(8, 8, 2))

    images, _ = whole(load(str(tmp_path), image_size=8))
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(images[10].transpose(1, 2, 0), exact, atol=1)
    assert images[11, :, 3, 2].tolist() == [255, 255, 255]
    assert images[11, :, 0, 0].tolist() == [40, 50, 60]
    value, opacity = noise(8, 8, 2).transpose(2, 0, 1) / 255
    exact = 255 * (value * opacity + 1 - opacity)
    np.testing.assert_allclose(images[12], np.stack([exact] * 3), atol=1)


def test_sixteen_bits_keep_their_range(tmp_path: Path, whole: Whole) -> None:
    fill(tmp_path, channels=1)
    deep = np.random.default_rng(3).integers(0, 2**16, (8, 8), dtype=np.uint16)
    write(tmp_path / "a.png", deep)
    images, _ = whole(load(str(tmp_path), image_size=8))
    np.testing.assert_allclose(images[10, 0] * 257.0, deep, atol=129)


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_with_a_transparent_value_lie_on_white(
    tmp_path: Path, whole: Whole, orientation: int
) -> None:
    fill(tmp_path, channels=1)
    deep = np.random.default_rng(3).integers(0, 2**15, (8, 8), dtype=np.uint16)
    deep[2, 3] = deep[5, 5] = 1000
    deep[0, 0] = 1001  # another value, of the same gray in eight bits
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(deep)
    picture.save(tmp_path / "a.png", transparency=1000, exif=exif)
    images, _ = whole(load(str(tmp_path), image_size=8))
    upright = deep if orientation == 1 else np.rot90(deep, -1)
    exact = np.where(upright == 1000, 255, np.rint(upright / 257.0))
    np.testing.assert_array_equal(images[10, 0], exact)


def test_cmyk_and_one_bit_pictures_are_read(tmp_path: Path, whole: Whole) -> None:
    fill(tmp_path)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    Image.new("1", (8, 8), 1).save(tmp_path / "b.png")
    images, _ = whole(load(str(tmp_path), image_size=8))
    np.testing.assert_allclose(images[10, :, 0, 0].astype(int), [255, 0, 0], atol=3)
    assert (images[11] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path: Path, whole: Whole, orientation: int) -> None:
    fill(tmp_path)
    upright = np.zeros((12, 8, 3), np.uint8)
    upright[:6, :, 0], upright[:, :4, 1] = 200, 100
    # How the camera held it: what turning by the EXIF orientation undoes.
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "a.png", np.ascontiguousarray(undo(upright)), exif=exif)
    images, _ = whole(load(str(tmp_path), image_size=8))
    np.testing.assert_array_equal(images[10].transpose(1, 2, 0), upright[2:10])


def test_first_level_folders_are_classes(tmp_path: Path, whole: Whole) -> None:
    for number in range(5):
        write(tmp_path / "zebra" / "deep" / f"{number}.png", noise(8, 8, 3, number))
        write(tmp_path / "ant" / f"{number}.png", noise(8, 8, 3, number))
    splits = load(str(tmp_path))
    _, labels = whole(splits)
    assert splits.train.class_names == ("ant", "zebra")
    assert labels.tolist() == [0] * 5 + [1] * 5

    write(tmp_path / "outside.png", noise(8, 8))
    assert load(str(tmp_path)).train.labels is None


def test_one_folder_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path / "all")
    assert load(str(tmp_path)).train.class_names is None


def damaged_files() -> dict[str, bytes]:
    def encoded(kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(noise(64, 64)).save(buffer, kind)
        return buffer.getvalue()

    png, jpeg, webp = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = b"IHDR" + huge
    bomb = (
        png[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    )
    return {
        "empty.png": b"",
        "text.png": b"this is no picture",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.webp": webp[: len(webp) // 2],
        "flipped.png": png[:100] + bytes(50) + png[150:],
        "bomb.png": bomb,
        "bitmap.png": encoded("BMP"),
        "two\nlines.png": b"",
    }


def test_files_that_cannot_be_read_are_listed_with_the_reason(tmp_path: Path, whole: Whole) -> None:
    arrays = fill(tmp_path)
    damaged = damaged_files()
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load(str(tmp_path), image_size=8)
    images, _ = whole(splits)
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), arrays)

    reasons = {Path(path).name: reason for path, reason in splits.train.skipped}
    assert set(reasons) == {*(name.replace("\n", " ") for name in damaged), "gone.png"}
    assert all(reason and len(reason.splitlines()) == 1 for reason in reasons.values())
    assert "decompression bomb" in reasons["bomb.png"]
    assert "truncated" in reasons["cut.jpg"]
    assert splits.held_out.skipped == splits.train.skipped


def test_files_of_other_kinds_are_counted_by_their_ending(
    tmp_path: Path, whole: Whole, refused: Refused
) -> None:
    arrays = fill(tmp_path)
    assert load(str(tmp_path)).train.left_out == ""
    (tmp_path / "deep").mkdir()
    for name in ("a.bmp", "deep/b.BMP", "c.tif", "notes", ".hidden.bmp", "deep/.DS_Store"):
        (tmp_path / name).touch()
    splits = load(str(tmp_path), image_size=8)
    images, _ = whole(splits)
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), arrays)
    assert (
        splits.train.left_out
        == splits.held_out.left_out
        == (
            "left out 4 files: .bmp 2, .tif 1, without ending 1 (read are .png, .jpg, .jpeg, .webp)"
        )
    )
    assert splits.train.skipped == ()

    for number in range(3, 10):
        (tmp_path / f"{number:03}.png").unlink()
    refused(str(tmp_path), "3 images", "at least 10", "left out 4 files: .bmp 2")
    refused(str(tmp_path / "deep"), "no pictures", "left out 1 file: .bmp 1 (read are")


def test_of_many_endings_the_most_frequent_are_told(tmp_path: Path) -> None:
    fill(tmp_path)
    for number in range(8):
        (tmp_path / f"a.x{number}").touch()
    (tmp_path / "b.x7").touch()
    left_out = load(str(tmp_path)).train.left_out
    assert left_out.startswith(
        "left out 9 files: .x7 2, .x0 1, .x1 1, .x2 1, .x3 1, .x4 1, others 2 ("
    )


def test_folders_that_cannot_be_listed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    fill(tmp_path / "locked")
    list_folder = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    splits = load(str(tmp_path))
    assert len(splits.train) + len(splits.held_out) == 10
    assert splits.train.skipped == ((str(tmp_path / "locked"), "Permission denied"),)


def test_a_large_picture_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(str(tmp_path)).train.skipped == ()


def test_when_none_can_be_read_the_first_reason_is_told(tmp_path: Path, refused: Refused) -> None:
    for name, content in damaged_files().items():
        (tmp_path / name).write_bytes(content)
    refused(str(tmp_path), "none of the 9 pictures", "bitmap.png")


def test_too_few_readable_pictures_are_counted(tmp_path: Path, refused: Refused) -> None:
    fill(tmp_path, 9)
    (tmp_path / "broken.png").write_bytes(b"")
    refused(str(tmp_path), "9 images", "1 more cannot be read", "at least 10")


def test_an_empty_folder_is_told_what_belongs_there(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    refused(str(tmp_path), "no pictures", ".png", ".webp")


def test_what_a_run_drew_is_no_training_data(tmp_path: Path) -> None:
    def count(folder: Path) -> int:
        return sum(map(len, load(folder)))

    for i in range(10):
        write(tmp_path / f"{i}.png", noise(8, 8))
    write(tmp_path / "config.json" / "a.png", noise(8, 8))  # a name alone does not make a run
    run = tmp_path / "runs" / "0001-gan-faces"
    for name in ("reals.png", "samples/000010.png"):
        write(run / name, noise(8, 8))
    assert count(tmp_path) == 13
    for name in ("config.json", "log.jsonl"):
        (run / name).write_text("{}")
    assert count(tmp_path) == 11
    assert load(tmp_path).train.left_out == ""
    for i in range(9):
        write(run / "samples" / f"{i}.png", noise(8, 8))
    assert count(run / "samples") == 10  # asked for by name
    assert count(run) == 11


def test_links_that_lead_back_are_harmless(tmp_path: Path, whole: Whole) -> None:
    folder = tmp_path / "pictures"
    arrays = fill(folder / "b" / "c")
    (folder / "b" / "c" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "again")
    (folder / "z").symlink_to(folder / "b")
    images, _ = whole(load(str(folder), image_size=8))
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), arrays)


def test_a_linked_folder_elsewhere_is_read(tmp_path: Path, whole: Whole) -> None:
    arrays = fill(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere")
    images, _ = whole(load(str(tmp_path / "here"), image_size=8))
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), arrays)


def test_the_spelling_of_the_path_does_not_matter(
    tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    expected, _ = whole(load(str(tmp_path)))
    for spec in (".", "./", f"{tmp_path}{os.sep}"):
        images, _ = whole(load(spec))
        np.testing.assert_array_equal(images, expected)
