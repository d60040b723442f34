"""The endless stream of batches: complete epochs, pure functions of (seed, index)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.data import Batches, ImageDataset, Splits

COUNTS = st.integers(1, 60)
SIZES = st.integers(1, 130)
SEEDS = st.integers(0, 2**70)
STREAM_OF_10 = [1, 4, 5, 6, 8, 2, 0, 3, 9, 7, 7, 8, 6, 2, 9]


def numbered(count: int, channels: int = 1, height: int = 1, width: int = 1) -> ImageDataset:
    """Image i, of up to 256, is all i."""
    base = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.arange(count, dtype=np.int64)
    return ImageDataset(base.repeat(channels, 1).repeat(height, 2).repeat(width, 3), labels)


def drawn(batches: Batches, indices: range) -> list[int]:
    """The images of these batches, as their labels say."""
    labels = [batches.batch(index).labels for index in indices]
    return [int(label) for batch in labels if batch is not None for label in batch]


@settings(deadline=None)
@given(COUNTS, SIZES, SEEDS)
def test_every_epoch_visits_every_image_exactly_once(count: int, size: int, seed: int) -> None:
    batches = Batches(numbered(count), size, seed=seed)
    epochs = 3
    stream = drawn(batches, range(-(-epochs * count // size)))
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(COUNTS, SIZES, SEEDS, st.lists(st.integers(0, 50), max_size=8))
def test_a_batch_depends_on_seed_and_index_only(
    count: int, size: int, seed: int, detour: list[int]
) -> None:
    dataset = numbered(count)
    wanderer = Batches(dataset, size, seed=seed)
    for index in detour:
        wanderer.batch(index)
    torch.manual_seed(len(detour))
    np.random.seed(len(detour))
    ours, fresh = wanderer.batch(7), Batches(dataset, size, seed=seed).batch(7)
    assert torch.equal(ours.images, fresh.images)
    assert ours.labels is not None
    assert fresh.labels is not None
    assert torch.equal(ours.labels, fresh.labels)


@settings(deadline=None)
@given(COUNTS, SEEDS)
def test_the_stream_does_not_depend_on_how_it_is_cut_into_batches(count: int, seed: int) -> None:
    dataset = numbered(count)
    by_ones = drawn(Batches(dataset, 1, seed=seed), range(35))
    by_sevens = drawn(Batches(dataset, 7, seed=seed), range(5))
    assert by_ones == by_sevens


@settings(deadline=None)
@given(COUNTS, SIZES)
def test_images_belong_to_their_labels(count: int, size: int) -> None:
    batch = Batches(numbered(count), size, seed=3).batch(2)
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    expected = (batch.labels.double() / 127.5 - 1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(batch.images.double(), expected, rtol=0, atol=1.2e-7)


def test_seeds_and_epochs_differ() -> None:
    dataset = numbered(100)
    orders = {tuple(drawn(Batches(dataset, 100, seed=seed), range(1))) for seed in range(50)}
    orders |= {tuple(drawn(Batches(dataset, 100, seed=0), range(k, k + 1))) for k in range(1, 50)}
    orders |= {tuple(drawn(Batches(dataset, 100, seed=2**32), range(k, k + 1))) for k in range(3)}
    assert len(orders) == 102


def test_every_order_is_equally_likely() -> None:
    batches = Batches(numbered(3), 3, seed=5)
    orders = [tuple(drawn(batches, range(k, k + 1))) for k in range(3000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert sum((count - 500) ** 2 / 500 for count in counts) < 20.5  # chi square, 5 d.o.f., 0.1 %


def test_the_stream_is_the_same_on_every_machine_and_version() -> None:
    assert drawn(Batches(numbered(10), 5, seed=0), range(3)) == STREAM_OF_10


def test_a_part_of_a_set_gives_its_own_images() -> None:
    part = numbered(20).select([4, 9, 14])
    images = Batches(part, 6, seed=1).batch(0).images
    bytes_ = ((images + 1) * 127.5).round().flatten().int().tolist()
    assert sorted(bytes_) == [4, 4, 9, 9, 14, 14]


def test_data_without_labels_gives_none() -> None:
    assert Batches(ImageDataset(numbered(3).base), 2, seed=0).batch(0).labels is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("stored", ["NCHW", "NHWC"])
def test_strides_are_those_of_the_layout_asked_for(channels: int, stored: str) -> None:
    dataset = numbered(6, channels, height=4, width=5)
    if stored == "NHWC":
        turned = np.ascontiguousarray(dataset.base.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        dataset = ImageDataset(turned, dataset.labels)
    last = Batches(dataset, 3, seed=0).batch(0).images
    first = Batches(dataset, 3, seed=0, channels_last=False).batch(0).images
    assert last.stride() == (20 * channels, 1, 5 * channels, channels)
    assert first.stride() == (20 * channels, 20, 5, 1)
    assert torch.equal(first, last)


def test_no_batch_shares_memory_with_another_or_with_the_set() -> None:
    dataset = numbered(4)
    batches = Batches(dataset, 4, seed=0)
    first = batches.batch(0)
    kept = first.images.clone()
    first.images.mul_(0)
    assert first.labels is not None
    first.labels.mul_(0)
    assert torch.equal(batches.batch(0).images, kept)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 3]


def test_what_is_no_set_of_images_is_refused() -> None:
    dataset = numbered(4)
    with pytest.raises(TypeError, match=r"ImageDataset \(got Splits; take its .train or .held_out"):
        Batches(Splits(dataset, dataset), 2, seed=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ImageDataset \(got ndarray\)"):
        Batches(dataset.base, 2, seed=0)  # type: ignore[arg-type]


def test_what_is_out_of_range_is_refused() -> None:
    dataset = numbered(4)
    with pytest.raises(ValueError, match=r"batch_size .*0"):
        Batches(dataset, 0, seed=0)
    with pytest.raises(ValueError, match=r"seed .*-1"):
        Batches(dataset, 1, seed=-1)
    with pytest.raises(ValueError, match="empty"):
        Batches(dataset.select([]), 1, seed=0)
    with pytest.raises(ValueError, match=r"index .*-1"):
        Batches(dataset, 1, seed=0).batch(-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_the_gpu_equal_those_on_the_cpu_without_waiting_for_it() -> None:
    dataset = numbered(50, channels=3, height=8, width=8)
    there, here = Batches(dataset, 16, seed=0, device="cuda"), Batches(dataset, 16, seed=0)
    there.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [there.batch(index) for index in range(8)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for index, batch in enumerate(batches):
        expected = here.batch(index)
        assert torch.equal(batch.images.cpu(), expected.images)
        assert batch.images.stride() == expected.images.stride()
        assert batch.labels is not None
        assert expected.labels is not None
        assert torch.equal(batch.labels.cpu(), expected.labels)
