"""Real networks, written from their papers in the ways that people write them, at toy width.

Each entry of `ARCHITECTURES` makes a network and says the shape of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def flat(maps: Tensor) -> Tensor:
    """One row for each picture, as helpers of many projects make it."""
    return maps.view(len(maps), -1)


def dcgan_discriminator(width: int = 4) -> nn.Module:
    """Radford, Metz, Chintala 2016: strides, batch normalization, LeakyReLU in place."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for channels in (width, 2 * width):
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4, 1, 0, bias=False), nn.Flatten(0))


def dcgan_generator(width: int = 4) -> nn.Module:
    """Its generator: transposed convolutions, batch normalization, ReLU in place, Tanh."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(6, 4 * width, 4, 1, 0, bias=False)]
    for channels in (4 * width, 2 * width):
        layers += [
            nn.BatchNorm2d(channels),
            nn.ReLU(True),
            nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),
        ]
    layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())


class WassersteinCritic(nn.Module):
    """Gulrajani et al. 2017, the critic of 5x5 convolutions; flattened by `view`."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.main = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
        )
        self.output = nn.Linear(4 * 4 * 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.main(x)
        h = h.view(-1, 4 * 4 * 4 * self.width)
        return self.output(h).view(-1)


class PreActivationBlock(nn.Module):
    """The residual block of Gulrajani et al. 2017 (app. F): ReLU before each convolution, averages
    pooled at the end.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.shortcut(x), 2)


class ResidualCritic(nn.Module):
    """Their critic for CIFAR-10: residual blocks, functional ReLU, mean over the map."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(PreActivationBlock(width, width) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.head(F.relu(h).mean(dim=(2, 3))).squeeze(1)


class SpectralCritic(nn.Module):
    """Miyato et al. 2018, table 3: 3x3 and 4x4 convolutions under spectral normalization."""

    def __init__(self, width: int = 4, norm: Callable[[nn.Module], nn.Module] = spectral_norm):
        super().__init__()
        layers: list[nn.Module] = []
        for channels, features in ((3, width), (width, 2 * width)):
            layers += [
                norm(nn.Conv2d(channels, features, 3, 1, 1)),
                nn.LeakyReLU(0.1, inplace=True),
                norm(nn.Conv2d(features, features, 4, 2, 1)),
                nn.LeakyReLU(0.1, inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.head = norm(nn.Linear(2 * width * 8 * 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class VariationalAutoencoder(nn.Module):
    """Kingma, Welling 2014, with convolutions: two heads, a decoder by transposed convolutions."""

    def __init__(self, width: int = 4, latent: int = 5) -> None:
        super().__init__()
        self.width = width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.ReLU(),
        )
        self.mu = nn.Linear(2 * width * 8 * 8, latent)
        self.logvar = nn.Linear(2 * width * 8 * 8, latent)
        self.spread = nn.Linear(latent, 2 * width * 8 * 8)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(width, 3, 4, 2, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        h = h.view(h.size(0), -1)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        h = F.relu(self.spread(z)).view(-1, 2 * self.width, 8, 8)
        h = F.leaky_relu(self.up1(h), 0.1)
        return torch.tanh(self.up2(h))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        z = mu + 0.3 * torch.exp(0.5 * logvar)
        return self.decode(z), mu, logvar


def patch_discriminator(width: int = 4) -> nn.Module:
    """Isola et al. 2017: a score per patch; instance normalization, LeakyReLU in place."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.InstanceNorm2d(2 * width),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(2 * width, 4 * width, 4, 1, 1, bias=False),
        nn.InstanceNorm2d(4 * width),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(4 * width, 1, 4, 1, 1),
    )


class SkipBlock(nn.Module):
    """One level of Isola et al.'s U-Net: down, what is below, up, beside the input. The activations
    in place change what the skip connection hands on.
    """

    def __init__(self, outer: int, inner: int, below: nn.Module | None, outermost: bool = False):
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(outer if not outermost else 3, inner, 4, 2, 1)
        up = nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1)
        middle = [below] if below is not None else []
        if outermost:
            layers = [down, *middle, nn.ReLU(True), up, nn.Tanh()]
        else:
            layers = [
                nn.LeakyReLU(0.2, True), down, *middle, nn.ReLU(True), up, nn.BatchNorm2d(outer)
            ]  # fmt: skip
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.outermost:
            return self.model(x)
        return torch.cat([x, self.model(x)], 1)


def unet_generator(width: int = 4) -> nn.Module:
    block = SkipBlock(2 * width, 2 * width, None)
    block = SkipBlock(width, 2 * width, block)
    return SkipBlock(3, width, block, outermost=True)


class ResidualStyleBlock(nn.Module):
    """Karras et al. 2020 (fig. 7): two convolutions beside a shortcut without bias, scaled."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, features, 3, stride=2, padding=1)
        self.skip = nn.Conv2d(channels, features, 1, stride=2, bias=False)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x) * sqrt(0.5)
        h = self.act(self.conv0(x)) * sqrt(2)
        h = self.act(self.conv1(h)) * sqrt(2)
        return h * sqrt(0.5) + shortcut


class StyleDiscriminator(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.from_rgb = nn.Conv2d(3, width, 1)
        self.blocks = nn.Sequential(
            ResidualStyleBlock(width, 2 * width), ResidualStyleBlock(2 * width, 2 * width)
        )
        self.out = nn.Linear(2 * width * 8 * 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.from_rgb(x), negative_slope=0.2)
        return self.out(self.blocks(h).reshape(len(x), -1))


class Perceptual(nn.Module):
    """Johnson et al. 2016 over VGG: features tapped inside a `Sequential`, also before a ReLU."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, features in ((3, width), (width, 2 * width)):
            layers += [
                nn.Conv2d(channels, features, 3, padding=1),
                nn.ReLU(inplace=False),
                nn.Conv2d(features, features, 3, padding=1),
                nn.ReLU(inplace=False),
                nn.MaxPool2d(2, 2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * 4 * 4, 7), nn.ReLU(True), nn.Dropout(0.0), nn.Linear(7, 3)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        taps, h = [], x
        for name, layer in self.features.named_children():
            h = layer(h)
            if name in ("2", "3", "6"):
                taps.append(h)
        taps.append(self.classifier(F.avg_pool2d(self.features(x), 1).flatten(1)))
        return taps


class BasicBlock(nn.Module):
    """He et al. 2016, with one ReLU in place for all uses and an addition in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out += identity
        return self.relu(out)


def residual_classifier(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.LeakyReLU(0.1),
        BasicBlock(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


class ReflectedBlock(nn.Module):
    """Zhu et al. 2017: reflection padding, instance normalization, a block beside its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def cycle_generator(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 7, padding=3),
        nn.ReLU(True),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        ReflectedBlock(2 * width),
        nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1),
        nn.ReLU(True),
        nn.Conv2d(width, 3, 7, padding=3),
        nn.Tanh(),
    )


class EqualizedConv(nn.Module):
    """Karras et al. 2018 (sec. 4.1): weights scaled at run time, by the functional convolution."""

    def __init__(self, channels: int, features: int, kernel: int, up: bool = False) -> None:
        super().__init__()
        shape = (channels, features) if up else (features, channels)
        self.weight = nn.Parameter(torch.randn(*shape, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(features))
        self.scale = sqrt(2 / (channels * kernel**2))
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return F.conv_transpose2d(x, self.scale * self.weight, self.bias, 2, padding=1)
        return F.conv2d(x, self.scale * self.weight, bias=self.bias, padding=1)


class ProgressiveGenerator(nn.Module):
    """Theirs: pixels normalized to unit length behind each activation."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [EqualizedConv(3, width, 3), EqualizedConv(width, width, 4, up=True)]
        )
        self.to_rgb = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
        return self.to_rgb(x)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "DCGAN discriminator": (dcgan_discriminator, (3, 3, 32, 32)),
    "DCGAN generator": (dcgan_generator, (3, 6, 1, 1)),
    "WGAN-GP critic": (WassersteinCritic, (3, 3, 32, 32)),
    "WGAN-GP residual critic": (ResidualCritic, (3, 3, 16, 16)),
    "SNGAN critic": (SpectralCritic, (3, 3, 32, 32)),
    "VAE": (VariationalAutoencoder, (3, 3, 32, 32)),
    "PatchGAN": (patch_discriminator, (2, 3, 32, 32)),
    "U-Net": (unet_generator, (2, 3, 32, 32)),
    "StyleGAN2 discriminator": (StyleDiscriminator, (2, 3, 32, 32)),
    "VGG features": (Perceptual, (2, 3, 16, 16)),
    "ResNet classifier": (residual_classifier, (3, 3, 16, 16)),
    "CycleGAN generator": (cycle_generator, (2, 3, 16, 16)),
    "progressive generator": (ProgressiveGenerator, (2, 3, 8, 8)),
}
