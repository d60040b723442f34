"""Counted work against closed forms and PyTorch's own counter."""

from __future__ import annotations

from functools import partial
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastgen.bench import peers, steps
from fastgen.bench.layers import Layer
from fastgen.bench.passes import BOTH, layer_pass
from fastgen.bench.work import Products, Work, work_per_batch

CPU = torch.device("cpu")
LAYERS = (
    Layer("down", 2, 3, 8, 16, kernel=4, stride=2, padding=1),
    Layer("up", 2, 8, 6, 5, kernel=4, stride=2, padding=1, transposed=True),
    Layer("grouped", 3, 8, 4, 7, kernel=3, padding=1, groups=2),
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_layer_is_counted_as_its_formula_says(layer: Layer) -> None:
    measured = layer_pass(layer, "forward")
    arguments = measured.make(torch.float32, CPU, torch.channels_last)
    with Products() as products:
        measured.eager(*arguments)
    assert products.operations == layer.operations == measured.work.operations
    bias = layer.outputs
    assert products.numbers == layer.forward_numbers + bias
    assert measured.work.numbers == layer.forward_numbers
    shapes = layer.input_shape, layer.weight_shape, layer.output_shape
    assert layer.forward_numbers == sum(map(prod, shapes))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_forward_and_backward_have_three_times_the_operations(layer: Layer) -> None:
    measured = layer_pass(layer, BOTH)
    arguments = measured.make(torch.float32, CPU, torch.channels_last)
    with Products() as products:
        measured.eager(*arguments)
    assert products.operations == 3 * layer.operations == measured.work.operations


def test_a_step_has_the_operations_of_eager_pytorch_and_none_in_vain() -> None:
    """Without a penalty eager PyTorch wastes nothing, so its own counter must agree."""
    step = steps.CPU_STEPS["vae"]._replace(batch=6, size=16, width=4)
    eager = steps.loop("vae", step, "float32", None, CPU)
    with FlopCounterMode(display=False) as counter:
        eager.step(eager.images)
    assert steps.work(step).operations == counter.get_total_flops()


def test_a_penalty_is_counted_without_what_eager_pytorch_computes_in_vain() -> None:
    step = steps.CPU_STEPS["critic"]._replace(batch=6, size=16, width=8)
    eager = steps.loop("critic", step, "float32", None, CPU)
    with Products() as products:
        eager.step(eager.images)
    assert steps.work(step).operations < 0.95 * products.operations


def test_work_is_continued_to_any_batch() -> None:
    layer = LAYERS[0]

    def forward(batch: int) -> object:
        part = layer._replace(batch=batch)
        arguments = peers.layer_tensors(part, torch.float32, CPU, gradients=False)
        return partial(peers.fastgen_layer(part), *arguments[:3])

    wanted = layer._replace(batch=37)
    found = work_per_batch(forward, 37)  # type: ignore[arg-type]
    assert found[:2] == (wanted.operations, wanted.forward_numbers + wanted.outputs)


def test_winograds_method_multiplies_less_where_there_is_a_kernel_for_it() -> None:
    for kernel, stride, channels, share in (
        (3, 1, 32, 16 / 36), (4, 2, 16, 9 / 16), (4, 2, 24, 1), (4, 1, 16, 1), (5, 2, 16, 49 / 100),
        (3, 2, 16, 25 / 36), (5, 1, 16, 1), (6, 2, 16, 1),
    ):  # fmt: skip
        x, w = (
            torch.randn(2, 16, 8, 8, requires_grad=True),
            torch.randn(channels, 16, kernel, kernel),
        )
        with Products() as products:
            y = torch.conv2d(x, w, None, stride, (kernel - 1) // 2)
            torch.autograd.grad(y.sum(), x)
            torch.conv_transpose2d(y, w, None, stride, (kernel - 1) // 2)
        assert products.least_operations == share * products.operations
    with Products() as products:  # a tile that is not full takes as much
        torch.conv2d(torch.randn(1, 16, 3, 3), torch.randn(16, 16, 3, 3), None, 1, 1)
    assert products.least_operations == 2 * 16 * 16 * 4 * 16
    with Products() as products:  # 8 = 3 + 3 + 2: 4 + 4 + 3 points a side
        torch.conv2d(torch.randn(1, 16, 16, 16), torch.randn(16, 16, 4, 4), None, 2, 1)
    assert products.least_operations == 2 * 16 * 16 * 4 * 11**2


def test_the_slower_limit_bounds() -> None:
    work = Work(operations=1000, numbers=10)
    assert work.bound(torch.float32, bandwidth=1.0, rate=100.0) == ("bytes", 40.0)
    assert work.bound(torch.bfloat16, bandwidth=10.0, rate=100.0) == ("operations", 10.0)
