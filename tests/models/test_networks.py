from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen.models import (
    VAE,
    WGAN,
    Autoencoder,
    BottomUp,
    Critic,
    Decoder,
    Discriminator,
    Encoder,
    Generator,
    TopDown,
)
from fastgen.models.networks import he_normal_
from fastgen.nn import ConvTransposeLeakyReLU2d

SIZES = [(8, 8), (16, 16), (28, 28), (32, 32), (48, 48), (64, 64), (128, 128), (16, 32)]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.named_parameters()}


def center(h: Tensor) -> Tensor:
    height, width = h.shape[2] * 3 // 8, h.shape[3] * 3 // 8
    return h[:, :, height:-height, width:-width]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_every_size_go_up_and_come_down(size: tuple[int, int], channels: int) -> None:
    shape = (channels, *size)
    images = Generator(5, shape, width=2)(torch.randn(2, 5))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert Discriminator(shape, width=2)(images).shape == (2,)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_bottom_up_is_the_lectures_formula(slope: float) -> None:
    network = BottomUp((3, 32, 16), width=4, negative_slope=slope).double()
    x = torch.randn(3, 3, 32, 16, dtype=torch.float64)
    tensors = weights(network)

    h, expected = x, []
    for stage in range(2):
        h = F.conv2d(h, tensors[f"stages.{stage}.weight"], tensors[f"stages.{stage}.bias"], 2, 1)
        h = torch.where(h > 0, h, slope * h)
        expected.append(h)

    torch.testing.assert_close(network.thought_vectors(x), expected)
    flat = torch.stack([h[:, :, i, j] for i in range(8) for j in range(4)], 1).flatten(1)
    torch.testing.assert_close(network(x), flat)
    assert network.features == flat.shape[1]


def test_top_down_is_the_lectures_formula() -> None:
    network = TopDown(7, (2, 16, 32), width=4, negative_slope=0.1).double()
    z = torch.randn(3, 7, dtype=torch.float64)
    t = weights(network)

    top = F.leaky_relu(z @ t["top.weight"].T + t["top.bias"], 0.1)
    top = top.reshape(3, 4, 8, 8).permute(0, 3, 1, 2)
    middle = F.conv_transpose2d(top, t["stages.0.weight"], t["stages.0.bias"], 2, 1)
    middle = F.leaky_relu(middle, 0.1)
    image = F.conv_transpose2d(middle, t["stages.1.weight"], t["stages.1.bias"], 2, 1).tanh()

    torch.testing.assert_close(network.thought_vectors(z), [top, middle])
    torch.testing.assert_close(network(z), image)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_recordings_of_torch_jit_trace_take_batches_of_any_size() -> None:
    for network, shape in (
        (Generator(5, (1, 16, 16), width=4), (5,)),
        (Critic((1, 16, 16), width=4), (1, 16, 16)),
        (Encoder((1, 16, 16), 5, width=4), (1, 16, 16)),
    ):
        recorded, x = torch.jit.trace(network, torch.randn(2, *shape)), torch.randn(3, *shape)
        torch.testing.assert_close(recorded(x), network(x))


def test_a_linear_output_is_not_bounded() -> None:
    tanh, linear = (
        Decoder(3, (1, 16, 16), width=4),
        Decoder(3, (1, 16, 16), width=4, output="linear"),
    )
    linear.load_state_dict(tanh.state_dict())
    z = 10 * torch.randn(4, 3)
    torch.testing.assert_close(linear(z).tanh(), tanh(z))
    assert linear(z).abs().max() > 1


def test_thought_vectors_are_deepest_last_and_ever_smaller_and_more() -> None:
    up = BottomUp((3, 64, 64), width=4).thought_vectors(torch.randn(2, 3, 64, 64))
    assert [tuple(h.shape) for h in up] == [
        (2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)
    ]  # fmt: skip
    down = TopDown(5, (3, 64, 64), width=4).thought_vectors(torch.randn(2, 5))
    assert [h.shape for h in down] == [h.shape for h in reversed(up)]


@pytest.mark.parametrize("network", [Discriminator, Critic])
def test_a_score_is_one_number_and_reads_the_features(network: type[Discriminator]) -> None:
    judge = network((1, 16, 16), width=4)
    x = torch.randn(5, 1, 16, 16)
    expected = BottomUp.forward(judge, x) @ judge.head.weight[0] + judge.head.bias
    torch.testing.assert_close(judge(x), expected)
    assert len(judge.thought_vectors(x)) == 2


def test_the_encoder_gives_mean_and_log_variance_or_the_mean_alone() -> None:
    x = torch.randn(5, 1, 16, 16)
    mu, logvar = Encoder((1, 16, 16), 3, width=4)(x)
    assert mu.shape == logvar.shape == (5, 3)
    assert not torch.equal(mu, logvar)
    assert Encoder((1, 16, 16), 3, width=4, stochastic=False)(x).shape == (5, 3)


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.5])
def test_the_first_weights_hand_on_the_mean_square(slope: float) -> None:
    """Away from the borders, where windows lose taps, every stage keeps E h^2 at 1."""
    up = BottomUp((3, 64, 64), width=64, negative_slope=slope)
    for h in up.thought_vectors(torch.randn(8, 3, 64, 64)):
        # E leakyReLU(t)^2 = (1 + slope^2) / 2 E t^2 and E t^2 = 2 / (1 + slope^2) E h^2
        assert center(h).square().mean().item() == pytest.approx(1, rel=0.15)

    down = TopDown(256, (3, 64, 64), width=64, negative_slope=slope)
    for h in down.thought_vectors(torch.randn(8, 256)):
        assert center(h).square().mean().item() == pytest.approx(1, rel=0.2)
    assert all((p == 0).all() for name, p in down.named_parameters() if name.endswith("bias"))


def test_a_transposed_weight_is_scaled_by_what_reaches_a_pixel() -> None:
    layer = ConvTransposeLeakyReLU2d(32, 64, 4, 2, 1, negative_slope=0.2)
    he_normal_(layer)
    expected = (2 / (1.04 * 32 * 4)) ** 0.5
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)


def test_other_modules_keep_their_own_first_weights() -> None:
    norm = nn.BatchNorm2d(3)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    he_normal_(norm)
    torch.testing.assert_close(dict(norm.state_dict()), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_last_changes_nothing_but_the_layout(dtype: torch.dtype) -> None:
    generator = Generator(6, (3, 32, 32), width=4).to(dtype)
    judge = Discriminator((3, 32, 32), width=4).to(dtype)
    z = torch.randn(4, 6, dtype=dtype)
    before = judge(generator(z).contiguous())

    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = generator(z)

    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(judge(images), before)
    torch.testing.assert_close(judge(images.contiguous()), before)


@pytest.mark.parametrize("slope", [-0.1, 1.1])
def test_a_slope_outside_0_to_1_is_refused(slope: float) -> None:
    with pytest.raises(ValueError, match="negative_slope"):
        BottomUp((1, 16, 16), negative_slope=slope)


def test_inputs_of_another_shape_are_refused_by_name() -> None:
    judge = Discriminator((1, 16, 16), width=2)
    for look in (judge, judge.thought_vectors):
        with pytest.raises(
            ValueError, match=r"Discriminator takes images of shape \(N, 1, 16, 16\)"
        ):
            look(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"TopDown takes latents of shape \(N, 5\)"):
        Generator(5, (1, 16, 16), width=2)(torch.zeros(2, 4))
    for network in (VAE, WGAN, Autoencoder):
        with pytest.raises(ValueError, match=r"latent_dim must be at least 1 \(got 0\)"):
            network.for_images((1, 16, 16), latent_dim=0)
    with pytest.raises(ValueError, match="output must be one of tanh, linear"):
        TopDown(5, (1, 16, 16), output="sigmoid")


def test_networks_of_a_width_have_the_parameters_of_their_formula() -> None:
    image_shape, latent, w = (3, 32, 32), 10, 8
    up = sum(p.numel() for p in Discriminator(image_shape, width=w).parameters())
    convolutions = [(3, w), (w, 2 * w), (2 * w, 4 * w)]
    top = 4 * w * 4 * 4
    assert up == sum(16 * prod(c) + c[1] for c in convolutions) + top + 1
    down = sum(p.numel() for p in Generator(latent, image_shape, width=w).parameters())
    assert down == sum(16 * prod(c) + c[0] for c in convolutions) + latent * top + top
