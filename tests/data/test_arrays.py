"""NumPy files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgen.data import Batches, Splits, load

Refused = Callable[..., str]
Whole = Callable[[Splits], tuple[np.ndarray, np.ndarray]]


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: bool) -> str:
    np.save(path, array, **options)
    return str(path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_may_come_first_or_last(tmp_path: Path, whole: Whole, channels: int) -> None:
    images = pixels(12, channels, 5, 7)
    for name, array in (("first", images), ("last", images.transpose(0, 2, 3, 1))):
        loaded, labels = whole(load(save(tmp_path / f"{name}.npy", array)))
        np.testing.assert_array_equal(loaded, images)
        assert labels is None


def test_three_dimensions_are_gray_pictures(tmp_path: Path, whole: Whole) -> None:
    images = pixels(12, 5, 7)
    loaded, _ = whole(load(save(tmp_path / "a.NPY.npy", images)))
    np.testing.assert_array_equal(loaded, images[:, None])


def test_a_file_of_npy_version_2_is_read(tmp_path: Path, whole: Whole) -> None:
    images = pixels(12, 1, 5, 7)
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, images, version=(2, 0))
    loaded, _ = whole(load(str(tmp_path / "a.npy")))
    np.testing.assert_array_equal(loaded, images)


def test_where_both_could_be_channels_the_first_are(tmp_path: Path) -> None:
    assert load(save(tmp_path / "a.npy", pixels(10, 3, 9, 4))).train.image_shape == (3, 9, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_floats_of_either_range_give_the_bytes_they_were_made_of(
    tmp_path: Path, whole: Whole, dtype: str, low: float
) -> None:
    images = pixels(12, 1, 5, 7)
    images[0, 0, 0, :2] = 0, 255
    floats = (low + images * ((1 - low) / 255)).astype(dtype)
    loaded, _ = whole(load(save(tmp_path / "a.npy", floats)))
    np.testing.assert_array_equal(loaded, images)


def test_bytes_that_the_batches_made_floats_come_back(tmp_path: Path, whole: Whole) -> None:
    images = pixels(16, 3, 4, 4)
    source = load(save(tmp_path / "a.npy", images)).train
    batches = Batches(source, len(source), seed=0)
    floats = batches.batch(0).images.numpy()
    loaded, _ = whole(load(save(tmp_path / "b.npy", floats)))
    np.testing.assert_array_equal(loaded, source.gather(batches.positions(0)))


def test_a_rounding_error_outside_the_range_does_not_decide(tmp_path: Path, whole: Whole) -> None:
    images = np.linspace(0, 1, 640, dtype=np.float32).reshape(10, 8, 8)
    images[0, 0, 0], images[-1, -1, -1] = -1e-6, 1 + 1e-6
    loaded, _ = whole(load(save(tmp_path / "a.npy", images)))
    np.testing.assert_array_equal(loaded.flatten(), np.rint(np.linspace(0, 255, 640)))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (255.0, ["[0, 255]", "[0, 1] and [-1, 1]", "uint8"]),
        (-1.5, ["[-1.5, 0]"]),
        (np.nan, ["NaN or infinity"]),
        (np.inf, ["NaN or infinity"]),
    ],
)
def test_floats_out_of_range_are_told_with_the_range(
    tmp_path: Path, refused: Refused, value: float, words: list[str]
) -> None:
    images = np.zeros((12, 4, 4), np.float32)
    images[5, 1, 2] = value
    refused(save(tmp_path / "a.npy", images), "a.npy", *words)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8, bool, np.complex64, "U3"])
def test_other_dtypes_are_refused(tmp_path: Path, refused: Refused, dtype: str) -> None:
    refused(save(tmp_path / "a.npy", np.zeros((12, 4, 4), dtype)), "uint8 or floating-point")


@pytest.mark.parametrize("shape", [(12,), (12, 16), (12, 5, 8, 8), (12, 1, 4, 4, 1), (0, 4, 4), ()])
def test_other_shapes_are_refused(tmp_path: Path, refused: Refused, shape: tuple[int]) -> None:
    refused(save(tmp_path / "a.npy", np.zeros(shape, np.uint8)), "(N, C, H, W)", str(shape))


def test_too_few_images_are_counted(tmp_path: Path, refused: Refused) -> None:
    refused(save(tmp_path / "a.npy", pixels(9, 4, 4)), "9 images", "at least 10")


@pytest.mark.parametrize(("height", "width"), [(9, 14), (14, 9)])
def test_image_size_takes_the_central_square_and_resizes_by_pillows_bicubic(
    tmp_path: Path, whole: Whole, height: int, width: int
) -> None:
    images = pixels(10, 3, height, width)
    squares = images[:, :, 2:11] if height > width else images[:, :, :, 2:11]
    loaded, _ = whole(load(save(tmp_path / "a.npy", images), image_size=6))
    assert loaded.shape == (10, 3, 6, 6)
    for row in range(10):
        picture = Image.fromarray(squares[row].transpose(1, 2, 0))
        expected = np.asarray(picture.resize((6, 6), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(loaded[row].transpose(1, 2, 0), expected)


def test_channels_become_gray_as_pillow_does_it_and_color_by_repetition(
    tmp_path: Path, whole: Whole
) -> None:
    color = pixels(10, 16, 16, 3)
    gray, _ = whole(load(save(tmp_path / "color.npy", color), channels=1))
    for row in range(10):
        expected = np.asarray(Image.fromarray(color[row]).convert("L"))
        np.testing.assert_array_equal(gray[row, 0], expected)

    repeated, _ = whole(load(save(tmp_path / "gray.npy", gray), channels=3))
    np.testing.assert_array_equal(repeated, np.concatenate([gray] * 3, axis=1))


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("whatever", "y")])
@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_archives_name_images_and_labels(
    tmp_path: Path, whole: Whole, names: tuple[str, str], saver: Callable[..., None]
) -> None:
    images, labels = pixels(20, 4, 4), np.arange(20) % 3
    saver(tmp_path / "a.npz", **dict(zip(names, (images, labels), strict=True)))
    splits = load(str(tmp_path / "a.npz"))
    loaded, loaded_labels = whole(splits)
    np.testing.assert_array_equal(loaded[:, 0], images)
    np.testing.assert_array_equal(loaded_labels, labels)
    assert splits.train.class_names == ("0", "1", "2")


def test_an_archive_of_one_array_needs_no_name(tmp_path: Path, whole: Whole) -> None:
    images = pixels(20, 4, 4)
    np.savez(tmp_path / "a.npz", images)
    loaded, labels = whole(load(str(tmp_path / "a.npz")))
    np.testing.assert_array_equal(loaded[:, 0], images)
    assert labels is None


@pytest.mark.parametrize(
    "values", [np.array([7, 3, 40]), np.array(["cat", "ant", "dog"]), np.array([[7], [3], [40]])]
)
def test_labels_become_the_places_of_their_sorted_values(
    tmp_path: Path, whole: Whole, values: np.ndarray
) -> None:
    labels = values[np.arange(20) % 3]
    np.savez(tmp_path / "a.npz", images=pixels(20, 4, 4), labels=labels)
    splits = load(str(tmp_path / "a.npz"))
    _, loaded = whole(splits)
    names = splits.train.class_names
    assert names is not None
    assert [names[label] for label in loaded] == [str(label) for label in labels.flatten()]
    assert sorted(values.flatten().tolist()) == [type(values.flat[0].item())(n) for n in names]


@pytest.mark.parametrize(
    "labels", [np.zeros(19, int), np.zeros(20), np.zeros((20, 2), int), np.array(3)]
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, refused: Refused, labels: np.ndarray
) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(20, 4, 4), labels=labels)
    refused(str(tmp_path / "a.npz"), "labels of", "(20,)", str(labels.dtype))


def test_an_archive_without_clear_images_lists_what_it_has(
    tmp_path: Path, refused: Refused
) -> None:
    np.savez(tmp_path / "a.npz", train=pixels(20, 4, 4), test=pixels(20, 4, 4))
    refused(str(tmp_path / "a.npz"), "test, train", "'images'", "'labels'")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path, str]]:
        return Path.write_text, (self.trace, "ran")


@pytest.mark.parametrize("member", ["npy", "images", "labels"])
def test_no_pickle_is_ever_loaded(tmp_path: Path, refused: Refused, member: str) -> None:
    objects = np.array([Bomb(tmp_path / "trace")] * 12, dtype=object)
    if member == "npy":
        spec = save(tmp_path / "a.npy", objects, allow_pickle=True)
    else:
        arrays = {"images": pixels(12, 4, 4), member: objects}
        spec = str(tmp_path / "a.npz")
        np.savez(spec, **arrays)
    refused(spec, "Python objects", "never loaded")
    assert not (tmp_path / "trace").exists()


def test_a_bare_pickle_under_another_name_is_no_array(tmp_path: Path, refused: Refused) -> None:
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
        refused(str(tmp_path / name), f"cannot read {tmp_path / name}")
    assert not (tmp_path / "trace").exists()


def test_a_table_is_refused(tmp_path: Path, refused: Refused) -> None:
    refused(save(tmp_path / "a.npy", np.zeros(12, [("a", "f4"), ("é", "u1")])), "a.npy")
    refused(save(tmp_path / "b.npy", np.zeros((12, 4, 4), [("a", "f4")])), "uint8 or floating")


def test_an_archive_larger_than_the_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 100, 100), np.uint8))
    monkeypatch.setenv("FASTGEN_DATA_MEMORY", "999999")
    refused(str(tmp_path / "a.npz"), "1000000 bytes", "FASTGEN_DATA_MEMORY", ".npy")


def test_a_file_that_goes_on_behind_its_array_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "images.npy"
    np.save(path, pixels(5, 4, 4))
    with open(path, "ab") as file:
        file.write(b"more")
    refused(str(path), "must end with its array", "stands for 208 bytes, got 212")
