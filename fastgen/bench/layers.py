"""The convolution layers of well-known GANs and VAEs: a fixed list that benchmarks run.

Batch sizes are those of the papers, cut where a layer's tensors would be needlessly large. Every
layer is convolution + bias + activation; normalizations in between are left out.

DCGAN: Radford, Metz, Chintala 2016. WGAN-GP: Gulrajani et al. 2017, residual networks for 32x32.
StyleGAN2: Karras et al. 2020, residual discriminator at 256x256. R3GAN: Huang et al. 2024, grouped
convolutions of 16 channels a group. VAE: a pyramid as in Kingma, Welling 2014, convolutional.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class Layer(NamedTuple):
    """A convolution, or a transposed one, with its activation and its batch.

    `size` is height and width of the input. `tanh` stands in place of leaky ReLU; `negative_slope`
    1 is linear.
    """

    name: str
    batch: int
    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1
    padding: int = 0
    negative_slope: float = 0.2
    transposed: bool = False
    groups: int = 1
    tanh: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.inputs, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        if self.transposed:
            return self.inputs, self.outputs // self.groups, self.kernel, self.kernel
        return self.outputs, self.inputs // self.groups, self.kernel, self.kernel

    @property
    def output_size(self) -> int:
        if self.transposed:
            return (self.size - 1) * self.stride - 2 * self.padding + self.kernel
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.outputs, self.output_size, self.output_size

    @property
    def operations(self) -> int:
        """Multiplications and additions of the convolution, taps on the padding counted too.

        The input gradient and the weight gradient have as many.
        """
        # A weight holds every pair of channels that meets, once for each tap.
        side = self.size if self.transposed else self.output_size
        return 2 * self.batch * side**2 * prod(self.weight_shape)

    @property
    def forward_numbers(self) -> int:
        """How many numbers the forward must move: each input once, each output once."""
        return prod(self.input_shape) + prod(self.weight_shape) + prod(self.output_shape)

    @property
    def training_numbers(self) -> int:
        """How many numbers forward and backward must move.

        Forward: input, weight, output. Backward: the gradient that arrives, output (for the mask),
        input and weight once each; the gradients of input and weight.
        """
        return 3 * self.forward_numbers

    def scaled(self, *, batch: int, channels: int, size: int) -> Layer:
        """The same layer, no larger than this: for trying a benchmark out."""

        def cut(count: int) -> int:
            return count if count <= 4 else min(count, channels)

        groups = 1 if self.groups == 1 else 2
        return self._replace(
            batch=min(self.batch, batch),
            inputs=cut(self.inputs),
            outputs=cut(self.outputs),
            size=max(min(self.size, size), self.kernel),
            groups=groups,
        )


def _down(name: str, batch: int, inputs: int, outputs: int, size: int) -> Layer:
    return Layer(name, batch, inputs, outputs, size, kernel=4, stride=2, padding=1)


def _up(name: str, batch: int, inputs: int, outputs: int, size: int, **more: float | bool) -> Layer:
    shape = dict(kernel=4, stride=2, padding=1, transposed=True)
    return Layer(name, batch, inputs, outputs, size, **{**shape, **more})  # type: ignore[arg-type]


def _same(name: str, batch: int, inputs: int, outputs: int, size: int, slope: float) -> Layer:
    return Layer(name, batch, inputs, outputs, size, kernel=3, padding=1, negative_slope=slope)


LAYERS = (
    _down("dcgan-64 D 1", 128, 3, 64, 64),
    _down("dcgan-64 D 2", 128, 64, 128, 32),
    _down("dcgan-64 D 3", 128, 128, 256, 16),
    _down("dcgan-64 D 4", 128, 256, 512, 8),
    Layer("dcgan-64 D 5", 128, 512, 1, 4, kernel=4, negative_slope=1.0),
    Layer("dcgan-64 G 1", 128, 100, 512, 1, kernel=4, negative_slope=0.0, transposed=True),
    _up("dcgan-64 G 2", 128, 512, 256, 4, negative_slope=0.0),
    _up("dcgan-64 G 3", 128, 256, 128, 8, negative_slope=0.0),
    _up("dcgan-64 G 4", 128, 128, 64, 16, negative_slope=0.0),
    _up("dcgan-64 G 5", 128, 64, 3, 32, tanh=True),
    _down("dcgan-128 D 1", 64, 3, 64, 128),
    _down("dcgan-128 D 2", 64, 64, 128, 64),
    _down("dcgan-128 D 5", 64, 512, 1024, 8),
    _up("dcgan-128 G 2", 64, 1024, 512, 4, negative_slope=0.0),
    _up("dcgan-128 G 5", 64, 128, 64, 32, negative_slope=0.0),
    _up("dcgan-128 G 6", 64, 64, 3, 64, tanh=True),
    _same("wgan-gp-32 D 1", 64, 3, 128, 32, 0.0),
    _same("wgan-gp-32 D 2", 64, 128, 128, 32, 0.0),
    _same("wgan-gp-32 D 3", 64, 128, 128, 16, 0.0),
    _same("wgan-gp-32 D 4", 64, 128, 128, 8, 0.0),
    _same("wgan-gp-32 G out", 64, 128, 3, 32, 1.0),
    Layer("stylegan2-256 from RGB", 8, 3, 64, 256, kernel=1),
    _same("stylegan2-256 D 256", 8, 64, 64, 256, 0.2),
    _same("stylegan2-256 D 128", 16, 128, 128, 128, 0.2),
    _same("stylegan2-256 D 64", 32, 256, 256, 64, 0.2),
    _same("stylegan2-256 D 32", 32, 512, 512, 32, 0.2),
    _same("stylegan2-256 D 16", 64, 512, 512, 16, 0.2),
    _same("stylegan2-256 D 8", 64, 512, 512, 8, 0.2),
    Layer("r3gan 32, grouped", 64, 768, 768, 32, kernel=3, padding=1, groups=48),
    _down("vae-64 E 1", 128, 3, 32, 64),
    _down("vae-64 E 2", 128, 32, 64, 32),
    _down("vae-64 E 3", 128, 64, 128, 16),
    _up("vae-64 D 1", 128, 256, 128, 4),
    _up("vae-64 D 3", 128, 64, 32, 16),
    _up("vae-64 D 4", 128, 32, 3, 32, negative_slope=1.0),
)

EDGES = (
    _down("k4 s2, 64", 128, 3, 64, 64),
    _down("k4 s2, 128", 128, 3, 64, 128),
    _down("k4 s2, 256", 64, 3, 64, 256),
    _same("k3 s1, 64", 128, 3, 64, 64, 0.2),
    _same("k3 s1, 128", 64, 3, 64, 128, 0.2),
    _same("k3 s1, 256", 16, 3, 64, 256, 0.2),
    _down("k4 s2, 64, gray", 256, 1, 64, 64),
    _up("k4 s2 up, 32 to 64", 128, 64, 3, 32, tanh=True),
    _up("k4 s2 up, 64 to 128", 128, 64, 3, 64, tanh=True),
    _up("k4 s2 up, 128 to 256", 64, 64, 3, 128, tanh=True),
)
"""Layers with a picture on one side, for the kernels written for them."""
