"""What a trainer relies on: each phase moves its own parameters and no others, in every model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.models import (
    GAN,
    R1,
    R2,
    REGULARIZERS,
    VAE,
    WGAN,
    Autoencoder,
    Classifier,
    GradientPenalty,
    Losses,
    Model,
    Phase,
)
from fastgen.models.adversarial_losses import GAMES
from fastgen.models.phase import trainable

SHAPE = (1, 8, 8)

MODELS: dict[str, Callable[[], Model]] = {
    "classifier": lambda: Classifier.for_images(SHAPE, 4, width=2),
    "autoencoder": lambda: Autoencoder.for_images(SHAPE, latent_dim=3, width=2),
}
for loss in GAMES:
    for r1, r2 in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.2)]:
        MODELS[f"gan-{loss}-{r1}-{r2}"] = partial(
            GAN.for_images, SHAPE, latent_dim=3, width=2, loss=loss, r1=r1, r2=r2
        )
for name, regularizer in REGULARIZERS.items():
    MODELS[f"wgan-{name}"] = partial(
        WGAN.for_images, SHAPE, latent_dim=3, width=2, regularizer=regularizer()
    )
MODELS["wgan-r1"] = partial(WGAN.for_images, SHAPE, latent_dim=3, width=2, regularizer=R1(1.0))
MODELS["wgan-r2"] = partial(WGAN.for_images, SHAPE, latent_dim=3, width=2, regularizer=R2(1.0))
for sigma in ("learned", "optimal", 0.3):
    for tau in ("amortized", "learned", 0.2):
        MODELS[f"vae-{sigma}-{tau}"] = partial(
            VAE.for_images, SHAPE, latent_dim=3, width=2, sigma=sigma, tau=tau
        )


def batch(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, *SHAPE) * 2 - 1, torch.arange(n) % 4


def descend(phase: Phase, lr: float = 0.1) -> Losses:
    losses = phase.loss(*batch())
    gradients = torch.autograd.grad(losses["loss"], phase.parameters)
    with torch.no_grad():
        for parameter, gradient in zip(phase.parameters, gradients, strict=True):
            parameter.sub_(lr * gradient)
    if phase.after_step is not None:
        phase.after_step()
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_each_phase_moves_its_own_parameters_and_only_those(name: str) -> None:
    model = MODELS[name]()
    for phase in model.phases():
        own = {id(parameter) for parameter in phase.parameters}
        before = {key: parameter.clone() for key, parameter in model.named_parameters()}
        descend(phase)
        for key, parameter in model.named_parameters():
            assert parameter.grad is None
            if id(parameter) not in own:
                assert torch.equal(parameter, before[key]), key
        moved = [key for key, p in model.named_parameters() if not torch.equal(p, before[key])]
        assert moved


@pytest.mark.parametrize("name", MODELS)
def test_the_phases_own_every_parameter_exactly_once(name: str) -> None:
    model = MODELS[name]()
    owned = Counter(id(p) for phase in model.phases() for p in phase.parameters)
    assert owned == Counter(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_width_is_that_of_every_network(name: str) -> None:
    layers = [m for m in MODELS[name]().modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    widths = {m.out_channels if isinstance(m, nn.Conv2d) else m.in_channels for m in layers}
    assert widths == {2}


@pytest.mark.parametrize("name", MODELS)
def test_every_loss_is_a_finite_number_and_only_loss_has_a_graph(name: str) -> None:
    for phase in MODELS[name]().phases():
        losses = phase.loss(*batch())
        assert losses["loss"].requires_grad
        for entry, value in losses.items():
            assert value.shape == (), entry
            assert value.dtype == torch.float32, entry
            assert value.isfinite(), entry
            assert entry == "loss" or not value.requires_grad, entry


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_float32_under_autocast_and_close_to_those_without(name: str) -> None:
    model = MODELS[name]()
    for phase in model.phases():
        torch.manual_seed(1)
        exact = phase.loss(*batch())
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = phase.loss(*batch())
            gradients = torch.autograd.grad(losses["loss"], phase.parameters)
        assert {value.dtype for value in losses.values()} == {torch.float32}
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        torch.testing.assert_close(losses["loss"], exact["loss"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_half_precision_have_losses_in_float32_close_to_those_of_whole_ones(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.randn
    monkeypatch.setattr(  # the same noise for both
        torch, "randn", lambda *a, **k: draw(*a, **{**k, "dtype": None}).to(k.get("dtype"))
    )
    model = MODELS[name]().to(dtype)
    whole = deepcopy(model).float()
    for phase, exact_phase in zip(model.phases(), whole.phases(), strict=True):
        images, labels = batch()
        torch.manual_seed(1)
        exact = exact_phase.loss(images, labels)["loss"]
        for given in (images, images.to(dtype)):  # float32, as a trainer's are, and the model's own
            torch.manual_seed(1)
            losses = phase.loss(given, labels)
            gradients = torch.autograd.grad(losses["loss"], phase.parameters)
            assert {value.dtype for value in losses.values()} == {torch.float32}
            assert {gradient.dtype for gradient in gradients} == {dtype}
            torch.testing.assert_close(losses["loss"], exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_pictures_and_verdicts_of_half_precision_weights_are_float32(name: str) -> None:
    model: Any = MODELS[name]().bfloat16()
    x, _ = batch()
    made = {
        "sample": lambda: model.sample(2),
        "reconstruct": lambda: model.reconstruct(x),
        "log_likelihood": lambda: model.log_likelihood(x, 3),
        "probabilities": lambda: model.probabilities(x),
        "value": lambda: model.value(x, model.latent(len(x))),
    }
    results = [make() for method, make in made.items() if hasattr(model, method)]
    assert results
    assert {result.dtype for result in results} == {torch.float32}
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("name", [name for name in MODELS if "gan" in name])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_other_network_sees_images_in_the_precision_they_were_made_in(
    name: str, autocast: bool
) -> None:
    model: Any = MODELS[name]()
    judge = model.critic if isinstance(model, WGAN) else model.discriminator
    seen = []
    judge.register_forward_pre_hook(lambda _, images: seen.append(images[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for phase in model.phases():
            seen.clear()
            phase.loss(*batch())["loss"].backward()
            assert (torch.bfloat16 in seen) == autocast
            assert autocast or set(seen) == {torch.float32}


# Spectral normalization turns autocast off, which a device without memory does not know.
@pytest.mark.parametrize("name", [n for n in MODELS if "gan" in n and "spectral" not in n])
def test_losses_have_a_shape_without_memory(name: str) -> None:
    model = MODELS[name]().to("meta")
    for phase in model.phases():
        images, labels = batch()
        assert phase.loss(images.to("meta"), labels)["loss"].is_meta


@pytest.mark.parametrize("name", MODELS)
def test_a_phase_draws_its_noise_from_the_default_generator(name: str) -> None:
    model = MODELS[name]().eval()
    for phase in model.phases():
        values = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            images, labels = torch.linspace(-1, 1, 320).view(5, *SHAPE), torch.arange(5) % 4
            values.append(phase.loss(images, labels)["loss"].item())
        assert values[0] == values[1]
        noisy = phase.name not in ("classifier", "autoencoder")
        assert (values[0] != values[2]) == noisy


def test_phases_come_in_the_order_of_the_step() -> None:
    names = {key: [(p.name, p.repeats) for p in make().phases()] for key, make in MODELS.items()}
    assert names["classifier"] == [("classifier", 1)]
    assert names["autoencoder"] == [("autoencoder", 1)]
    assert names["vae-learned-amortized"] == [("vae", 1)]
    assert names["gan-minimax-0.0-0.0"] == [("discriminator", 1), ("generator", 1)]
    assert names["wgan-gradient_penalty"] == [("critic", 5), ("generator", 1)]


def test_what_does_not_require_a_gradient_stays_out_of_a_phase() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    first.bias.requires_grad_(False)
    shared = nn.Sequential(first, second)
    assert [id(p) for p in trainable(shared, second)] == [
        id(p) for p in (first.weight, second.weight, second.bias)
    ]


class CountWeightGradients(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts convolutions' weight gradients as they run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.convolution_backward.default:
            self.count += bool(args[-1][1])
        self.count += function.name().endswith("conv2d_weight_gradient")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("model", "phase", "expected"),
    [
        # Three stages on each side. Both batches are seen as one, but for a discriminator with a
        # penalty; a penalty adds one more.
        (partial(GAN.for_images, loss="non_saturating"), "discriminator", 3),
        (partial(GAN.for_images, loss="non_saturating", r1=1.0), "discriminator", 9),
        (partial(GAN.for_images, loss="relativistic", r1=1.0, r2=1.0), "discriminator", 12),
        (partial(GAN.for_images, loss="non_saturating"), "generator", 3),
        (partial(GAN.for_images, loss="relativistic"), "generator", 3),
        (partial(WGAN.for_images, regularizer=None), "critic", 3),
        (partial(WGAN.for_images, regularizer=GradientPenalty(10.0)), "critic", 6),
        (partial(WGAN.for_images, regularizer=GradientPenalty(10.0)), "generator", 3),
    ],
)
def test_no_weight_gradient_of_the_other_network_is_computed(
    model: Callable[..., Model], phase: str, expected: int
) -> None:
    built = model((3, 32, 32), latent_dim=3, width=4)
    (chosen,) = [p for p in built.phases() if p.name == phase]
    with CountWeightGradients() as counter:
        losses = chosen.loss(torch.rand(2, 3, 32, 32), None)
        torch.autograd.grad(losses["loss"], chosen.parameters)
    assert counter.count == expected


def test_a_user_who_calls_backward_on_the_judges_loss_leaves_the_generator_alone() -> None:
    gan = GAN.for_images(SHAPE, latent_dim=3, width=2, r1=1.0, r2=1.0)
    wgan = WGAN.for_images(SHAPE, latent_dim=3, width=2)
    images, _ = batch()
    gan.discriminator_loss(images, gan.latent(5)).backward()  # type: ignore[no-untyped-call]
    wgan.critic_loss(images, wgan.latent(5)).backward()  # type: ignore[no-untyped-call]
    for generator in (gan.generator, wgan.generator):
        assert all(parameter.grad is None for parameter in generator.parameters())
