"""Transforms of `torch.func` and forward mode: every operation beside its plain composition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fastgen
from fastgen import ops
from fastgen.ops import reference

F = torch.func
Loss = Callable[..., Tensor]


def convolved(of: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return of.conv2d_bias_leaky_relu(x, w, b, 1, 1).pow(2).sum()


def transposed(of: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return of.conv_transpose2d_bias_leaky_relu(x, w, b, 2, 1).pow(2).sum()


def bounded(of: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return of.conv_transpose2d_bias_leaky_relu(x, w, b, 2, 1, tanh=True).pow(3).sum()


def activated(of: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return of.bias_leaky_relu(x * w.sum(), b, 0.1).pow(3).sum()


def drawn(of: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return of.reparameterize(x, x * w.sum(), seed=torch.tensor(5)).pow(3).sum() * b.sum()


def diverged(of: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z, kl = of.reparameterize_kl(x, x * w.sum(), seed=torch.tensor(5))
    return z.pow(3).sum() * b.sum() + kl.square().sum()


LOSSES = (convolved, transposed, bounded, activated, drawn, diverged)
ALL = (0, 1, 2)


def by_dual_numbers(loss: Loss, *tensors: Tensor) -> Any:
    """Value, directional derivative, and that of the gradient: forward over reverse."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    with forward_ad.dual_level():
        value = loss(*(forward_ad.make_dual(leaf, leaf.detach()) for leaf in leaves))
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        pairs = [forward_ad.unpack_dual(tensor) for tensor in (value, *gradients)]
        return [(pair.primal.detach(), pair.tangent.detach()) for pair in pairs]


def grad_within_dual_numbers(loss: Loss, x: Tensor, w: Tensor, b: Tensor) -> Any:
    """`torch.func.grad` of, and beside, dual numbers that it did not make."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        found = [F.grad(lambda x: loss(x, w, b))(dual), F.grad(lambda w: loss(dual, w, b))(w)]
        return [tuple(forward_ad.unpack_dual(tensor)) for tensor in found]


def by_vmap_over_a_graph(loss: Loss, *tensors: Tensor) -> Any:
    """Of a graph that was recorded outside of the transform."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    values = torch.stack([loss(*leaves), 2 * loss(*leaves)])

    def gradients(along: Tensor) -> Any:
        return torch.autograd.grad(values, leaves, along, retain_graph=True)

    return F.vmap(gradients)(torch.eye(2, dtype=values.dtype))


def of_each_picture(loss: Loss, x: Tensor, w: Tensor, b: Tensor) -> Any:
    return F.vmap(F.grad(lambda w, x: loss(x[None], w, b)), in_dims=(None, 0))(w, x)


def penalty(loss: Loss, x: Tensor, w: Tensor, b: Tensor) -> Any:
    """The gradient, in the weight, of each picture's squared gradient."""

    def slope(x: Tensor, w: Tensor) -> Tensor:
        return F.grad(lambda x: loss(x[None], w, b))(x).square().sum()

    return F.grad(lambda w: F.vmap(slope, in_dims=(0, None))(x, w).sum())(w)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jvp": lambda loss, *t: F.jvp(loss, t, t),
    "jacfwd": lambda loss, *t: F.jacfwd(loss, ALL)(*t),
    "jacrev": lambda loss, *t: F.jacrev(loss, ALL)(*t),
    "hessian": lambda loss, *t: F.hessian(loss, ALL)(*t),
    "jacrev of jacrev": lambda loss, *t: F.jacrev(F.jacrev(loss, ALL), ALL)(*t),
    "third order": lambda loss, *t: F.jacfwd(F.jacfwd(F.jacrev(loss)))(*t),
    "jvp of grad": lambda loss, *t: F.jvp(F.grad(loss, ALL), t, t),
    "grad of jvp": lambda loss, *t: F.grad(lambda *t: F.jvp(loss, t, t)[1], ALL)(*t),
    "vmap": lambda loss, x, w, b: F.vmap(loss, (0, None, None))(torch.stack([x, -x]), w, b),
    "gradients of each picture": of_each_picture,
    "penalty": penalty,
    "dual numbers": by_dual_numbers,
    "grad within dual numbers": grad_within_dual_numbers,
    "functionalize of grad": lambda loss, *t: F.functionalize(F.grad(loss, ALL))(*t),
    "vmap over a graph": by_vmap_over_a_graph,
}


def operands(loss: Loss, dtype: torch.dtype, channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    kernel = 4 if loss in (transposed, bounded) else 3
    x = torch.randn(2, channels, 3, 3, dtype=dtype)
    w = torch.randn(channels, channels, kernel, kernel, dtype=dtype) / (4 * channels)
    return x, w, torch.randn(channels, dtype=dtype)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_transform_gives_what_it_gives_of_the_plain_composition(loss: Loss, name: str) -> None:
    tensors = operands(loss, torch.float64)
    run = TRANSFORMS[name]
    expected = run(lambda *t: loss(reference, *t), *tensors)
    torch.testing.assert_close(run(lambda *t: loss(ops, *t), *tensors), expected)


@pytest.mark.parametrize("name", ["jvp of grad", "jacrev", "vmap", "vmap over a graph", "penalty"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_transform_of_what_compiled_kernels_compute_otherwise(loss: Loss, name: str) -> None:
    tensors = operands(loss, torch.float32, channels=16)
    run = TRANSFORMS[name]
    expected = run(lambda *t: loss(reference, *t), *(tensor.double() for tensor in tensors))
    got = run(lambda *t: loss(ops, *t), *tensors)
    torch.testing.assert_close(got, expected, check_dtype=False, rtol=1e-4, atol=1e-4)


def test_vmap_over_a_graph_records_gradients_of_gradients_whose_rows_are_cut_off() -> None:
    x, w, _ = operands(convolved, torch.float64)

    def second(of: Any) -> Any:
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        y = of.conv_transpose2d_bias_leaky_relu(
            *leaves, None, 2, padding=1, output_padding=2, dilation=3
        )
        along = torch.stack([y.detach(), y.detach().cos()])
        first = F.vmap(lambda v: torch.autograd.grad(y, leaves, v, create_graph=True))(along)
        return torch.autograd.grad(sum(g.pow(3).sum() for g in first), leaves)

    torch.testing.assert_close(second(ops), second(reference))


@pytest.mark.parametrize("name", ["jvp", "vmap", "jacrev", "dual numbers"])
def test_a_backend_that_is_named_is_refused_not_replaced(name: str) -> None:
    tensors = operands(convolved, torch.float32)
    backend = "cpp" if fastgen.ops.backend.BACKENDS["cpp"].missing() is None else "triton"

    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.conv2d_bias_leaky_relu(x, w, b, 1, 1, backend=backend).square().sum()

    with pytest.raises(ops.BackendUnavailable, match="use backend='torch'"):
        TRANSFORMS[name](loss, *tensors)


def test_noise_under_vmap_follows_its_randomness() -> None:
    mu = torch.zeros(3, 4)

    def draw(mu: Tensor) -> Tensor:
        return ops.reparameterize(mu, mu)

    with pytest.raises(RuntimeError, match="randomness"):
        F.vmap(draw)(mu)
    same = F.vmap(draw, randomness="same")(mu)
    assert (same == same[0]).all()
    different = F.vmap(draw, randomness="different")(mu)
    assert len({tuple(row) for row in different.tolist()}) == 3
    torch.manual_seed(7)
    eager = draw(mu)
    torch.manual_seed(7)
    torch.testing.assert_close(F.jvp(draw, (mu,), (mu,))[0], eager)


def test_a_seed_for_each_of_a_batch() -> None:
    mu, seeds = torch.zeros(3, 4), torch.tensor([1, 2, 3])
    drawn = F.vmap(lambda mu, seed: ops.reparameterize(mu, mu, seed=seed))(mu, seeds)
    torch.testing.assert_close(drawn[1], ops.reparameterize(mu[1], mu[1], seed=2))


class Block(nn.Module):
    """A forward of its own, with activations in place and as functions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.second(self.activation(self.first(x))))


def networks(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True), Block(16), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1),
    ).to(dtype).eval()  # fmt: skip
    ours = copy.deepcopy(plain)
    fastgen.accelerate(ours, verbose=False, fold_batchnorm=True)
    return plain, ours


def scored(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    return F.functional_call(network, weights, (images,)).square().sum()


def gradients_of_each_image(network: nn.Module, weights: Any, images: Tensor) -> Any:
    def loss(weights: Any, image: Tensor) -> Tensor:
        return scored(network, weights, image[None])

    return F.vmap(F.grad(loss), in_dims=(None, 0))(weights, images)


def ensemble(network: nn.Module, weights: Any, images: Tensor) -> Any:
    pairs = {name: torch.stack([w, 1.1 * w]).detach() for name, w in weights.items()}
    with torch.no_grad():
        return F.vmap(lambda w: F.functional_call(network, w, (images,)))(pairs)


def along_the_weights(network: nn.Module, weights: Any, images: Tensor) -> Any:
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(w.detach(), w.detach()) for name, w in weights.items()}
        return tuple(forward_ad.unpack_dual(scored(network, duals, images)))


OF_NETWORKS: dict[str, Callable[..., Any]] = {
    "Hessian": lambda n, w, x: F.hessian(lambda x: scored(n, w, x))(x[:1]),
    "Jacobian": lambda n, w, x: F.jacrev(lambda x: F.functional_call(n, w, (x,)))(x),
    "product with a Hessian": lambda n, w, x: F.jvp(F.grad(lambda x: scored(n, w, x)), (x,), (x,)),
    "gradients of each image": gradients_of_each_image,
    "ensemble": ensemble,
    "along the weights": along_the_weights,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of PyTorch's own pooling
@pytest.mark.parametrize("name", OF_NETWORKS)
def test_an_accelerated_network_is_transformed_as_the_original(name: str) -> None:
    plain, ours = networks(torch.float64)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    run = OF_NETWORKS[name]
    expected = run(plain, dict(plain.named_parameters()), images)
    torch.testing.assert_close(run(ours, dict(ours.named_parameters()), images), expected)


def test_vmap_over_the_gradients_of_an_accelerated_pooling_in_channels_last() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 2, 3)).double()
    ours = copy.deepcopy(plain)
    fastgen.accelerate(ours, verbose=False, channels_last=True)
    images = torch.randn(2, 3, 10, 10, dtype=torch.float64)

    def second(network: nn.Module) -> Any:
        leaf = images.clone().requires_grad_()
        scores = network(leaf).pow(3).sum()
        (slope,) = torch.autograd.grad(scores, leaf, create_graph=True)
        along = torch.stack([slope.detach(), slope.detach().cos()])
        weight = next(network.parameters())
        return F.vmap(lambda v: torch.autograd.grad(slope, weight, v, retain_graph=True))(along)

    torch.testing.assert_close(second(ours), second(plain))
