"""Operations from many Python threads, with any number of torch's threads, and after a fork.

Each case runs in a process of its own with a limit, so that a deadlock fails it.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from cpu_backends import BACKENDS

SHARED = """
import sys
import torch
import fastgen

name = sys.argv[1]
torch.manual_seed(0)
x = torch.randn(6, 3, 33, 30).contiguous(memory_format=torch.channels_last)
w, b = torch.randn(33, 3, 4, 4), torch.randn(33)
up = torch.randn(33, 3, 4, 4)
wide = torch.randn(6, 32, 10, 9).contiguous(memory_format=torch.channels_last)
k = torch.randn(48, 32, 4, 4)
mu, logvar = torch.randn(65, 130), torch.randn(65, 130)

def everything(start=0):
    leaves = [t.clone().requires_grad_() for t in (x, w, b, up, mu, logvar, wide, k)]
    image, weight, bias, decoder, mean, spread, many, kernel = leaves
    h = fastgen.ops.conv2d_bias_leaky_relu(image, weight, bias, 2, 1, backend=name)
    h = fastgen.ops.bias_leaky_relu(h, bias, backend=name)
    y = fastgen.ops.conv_transpose2d_bias_leaky_relu(h, decoder, None, 2, 1, backend=name)
    z, kl = fastgen.ops.reparameterize_kl(mean, spread, seed=5, backend=name)
    v = fastgen.ops.conv2d_bias_leaky_relu(many, kernel, None, 2, 1, backend=name)
    slopes = torch.autograd.grad(
        y.square().sum() / 1e6 + v.square().sum() / 1e4, (image, many), create_graph=True
    )
    loss = sum(slope.square().sum() for slope in slopes) + z.square().mean() + kl.mean()
    return [t.detach() for t in (y, v, z, kl, *torch.autograd.grad(loss, leaves))]

def same(first, second, exactly=True):
    for one, other in zip(first, second, strict=True):
        if exactly:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
"""


def run(code: str, name: str) -> None:
    program = SHARED + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", BACKENDS)
def test_eight_python_threads_compute_what_one_does(name):
    run(
        """
        from concurrent.futures import ThreadPoolExecutor

        expected = everything()
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: everything(), range(24)):
                same(found, expected, exactly=False)
        """,
        name,
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_any_number_of_threads_computes_the_same(name):
    run(
        """
        torch.set_num_threads(1)
        expected = everything()
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            same(everything(), expected, exactly=False)
            same(everything(), everything())
        """,
        name,
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_data_loaders_workers_compute_after_a_fork(name):
    run(
        """
        from torch.utils.data import DataLoader, Dataset

        torch.set_num_threads(2)
        expected = everything()

        class Results(Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                return everything()[0]

        loader = DataLoader(
            Results(), batch_size=1, num_workers=2, multiprocessing_context="fork"
        )
        for found in loader:
            same([found[0]], expected[:1], exactly=False)
        same(everything(), expected, exactly=False)
        """,
        name,
    )
