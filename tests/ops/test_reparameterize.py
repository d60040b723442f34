from __future__ import annotations

from functools import partial

import pytest
import torch
from cpu_backends import BACKENDS
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence

from fastgen.ops import reference, reparameterize, reparameterize_kl

SHAPES = [(4, 3), (3, 2, 3, 3), (1, 1), (5, 17)]


def pair(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(2)
    ]


@pytest.mark.parametrize("operation", [reparameterize, reparameterize_kl])
@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_gradients_pass_gradcheck(operation, shape):
    assert gradcheck(partial(operation, seed=3), pair(shape))
    assert gradgradcheck(partial(operation, seed=3), pair(shape))


@pytest.mark.parametrize("leaves", [(0,), (1,), (0, 1)], ids=["mu", "logvar", "both"])
@pytest.mark.parametrize("result", ["z", "kl"])
def test_second_gradients_through_one_result_equal_the_plain_compositions(result, leaves):
    def second(operation):
        given = pair((4, 3))
        asked = [given[leaf] for leaf in leaves]
        output = operation(*given, seed=torch.tensor(5))[result == "kl"]
        first = torch.autograd.grad(output.pow(3).sum(), asked, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), given, allow_unused=True)

    for one, other in zip(
        second(reparameterize_kl), second(reference.reparameterize_kl), strict=True
    ):
        zero = torch.zeros(4, 3, dtype=torch.float64)
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other)


@pytest.mark.parametrize("shape", SHAPES)
def test_third_gradient_equals_the_plain_compositions(shape):
    def third(operation):
        mu, logvar = pair(shape)
        z, kl = operation(mu, logvar, seed=torch.tensor(5))
        value = (z.pow(3).sum() * kl.sum()).sin()
        for leaf in (logvar, mu, logvar):
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            value = gradient.square().sum()
        return value

    torch.testing.assert_close(
        third(reparameterize_kl), third(reference.reparameterize_kl), rtol=1e-9, atol=1e-9
    )


def test_kl_equals_torchs_distributions_and_the_known_value():
    mu, logvar = pair((6, 11))
    _, kl = reparameterize_kl(mu, logvar, seed=0)
    exact = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl, exact)
    one = torch.ones(1, 1)
    _, kl = reparameterize_kl(one, 2 * torch.log(one / 2), seed=0)
    assert kl.item() == pytest.approx(0.818147, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_keeps_its_digits_near_the_prior(backend):
    logvar = torch.full((1, 1000), 1e-4)
    _, kl = reparameterize_kl(torch.zeros_like(logvar), logvar, seed=0, backend=backend)
    exact = 0.5 * 1000 * (torch.expm1(logvar.double()[0, 0]) - logvar.double()[0, 0])
    assert kl.item() == pytest.approx(exact.item(), rel=1e-2)  # exp(l) - 1 - l gives 0 in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_are_rounded_once(dtype):
    mu, logvar = (t.detach() for t in pair((33, 7), dtype))
    z, kl = reparameterize_kl(mu, logvar, seed=9)
    exact_z, exact_kl = reference.reparameterize_kl(
        mu.double(), logvar.double(), seed=torch.tensor(9)
    )
    assert z.dtype == dtype
    assert kl.dtype == torch.float32
    slack = torch.finfo(dtype).eps
    assert ((z.double() - exact_z).abs() <= slack * exact_z.abs() + 1e-6).all()
    torch.testing.assert_close(kl.double(), exact_kl, rtol=1e-6, atol=1e-6)


COMPOSED = {
    "vmap": lambda draw, *pair: torch.func.vmap(draw)(*(t[None] for t in pair)),
    "jvp": lambda draw, *pair: torch.func.jvp(draw, pair, pair)[0],
    "trace": lambda draw, *pair: torch.jit.trace(lambda *t: draw(*t), pair)(*pair),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", COMPOSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_no_function_is_taken_through_is_as_wide_and_as_near(dtype, way):
    draw = partial(reparameterize_kl, seed=torch.tensor(9))
    mu, logvar = torch.randn(1000).to(dtype)[None], torch.full((1, 1000), 1e-3, dtype=dtype)
    for pair in ((mu, logvar), (torch.zeros_like(mu), logvar)):
        z, kl = (t.squeeze(0) for t in COMPOSED[way](draw, *pair))
        exact_z, exact_kl = draw(*pair)
        assert (z.dtype, kl.dtype) == (exact_z.dtype, exact_kl.dtype)
        slack = torch.finfo(dtype).eps
        torch.testing.assert_close(z.view_as(exact_z), exact_z, rtol=slack, atol=1e-6)
        torch.testing.assert_close(kl.view_as(exact_kl), exact_kl, rtol=1e-3, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_the_divergence_keep_their_digits_near_zero(create_graph, backend):
    mu = torch.zeros(3, 4, requires_grad=True)
    logvar = torch.full((3, 4), 1e-6, requires_grad=True)
    _, kl = reparameterize_kl(mu, logvar, seed=0, backend=backend)
    _, gradient = torch.autograd.grad(kl.sum(), [mu, logvar], create_graph=create_graph)
    torch.testing.assert_close(gradient, torch.full((3, 4), 5e-7), rtol=1e-5, atol=0)


def test_the_same_seed_gives_the_same_numbers_whatever_the_layout():
    mu, logvar = (t.detach() for t in pair((3, 4, 5, 6)))
    plain = reparameterize(mu, logvar, seed=1)
    layouts = [
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        lambda t: torch.stack((t, t), -1)[..., 0],
    ]
    for change in layouts:
        changed = reparameterize(change(mu), change(logvar), seed=1)
        assert torch.equal(changed, plain)
    last = reparameterize(mu.contiguous(memory_format=torch.channels_last), logvar, seed=1)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_noise_is_the_same_in_the_backward():
    mu, logvar = pair((50, 3))
    z = reparameterize(mu, logvar, seed=4)
    (gradient,) = torch.autograd.grad(z.sum(), logvar)
    torch.testing.assert_close(gradient, (z - mu) / 2)


def test_seed_comes_from_the_default_generator_or_the_given_one():
    mu = torch.zeros(8, 8)
    torch.manual_seed(1)
    first, second = reparameterize(mu, mu), reparameterize(mu, mu)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(reparameterize(mu, mu), first)
    generator = torch.Generator().manual_seed(2)
    state = torch.get_rng_state()
    third = reparameterize(mu, mu, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(reparameterize(mu, mu, generator=torch.Generator().manual_seed(2)), third)
    assert torch.equal(reparameterize(mu, mu, seed=3), reparameterize(mu, mu, seed=torch.tensor(3)))


@pytest.mark.parametrize("operation", [reparameterize, reparameterize_kl])
def test_noise_is_never_saved(operation):
    mu, logvar = pair((64, 32), torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        operation(mu, logvar)
    allowed = {mu.data_ptr(), logvar.data_ptr()}
    assert all(t.data_ptr() in allowed or t.numel() == 1 for t in saved)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (3,)])
def test_empty_and_one_dimensional_latents_work(shape):
    mu, logvar = pair(shape)
    z, kl = reparameterize_kl(mu, logvar, seed=0)
    assert z.shape == shape
    assert kl.shape == shape[:1]
    (z.sum() + kl.sum()).backward()
    assert mu.grad.shape == shape


def test_compiles_without_a_graph_break_and_equals_eager():
    torch.compiler.reset()
    mu, logvar = pair((4, 6), torch.float32)
    seed = torch.tensor(12)

    def run(f):
        z, kl = f(mu, logvar, seed=seed)
        return z, kl, *torch.autograd.grad(z.square().sum() + kl.sum(), (mu, logvar))

    compiled = torch.compile(reparameterize_kl, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled), run(reparameterize_kl), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": True}, TypeError, "seed must be an integer"),
        ({"seed": 2**63}, ValueError, "seed must lie in"),
        ({"seed": torch.tensor([1])}, ValueError, "seed must be a 0-dim int64 tensor"),
        ({"seed": torch.tensor(1.0)}, ValueError, "seed must be a 0-dim int64 tensor"),
        (
            {"seed": torch.tensor(1, device="meta")},
            ValueError,
            "seed must be on the device of mu, cpu",
        ),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed or generator, not both"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, error, message):
    mu, logvar = pair((2, 2))
    with pytest.raises(error, match=message):
        reparameterize(mu, logvar, **options)
    with pytest.raises(ValueError, match=r"mu must have shape \(N, ...\)"):
        reparameterize_kl(mu[0, 0], logvar[0, 0])
    with pytest.raises(ValueError, match="logvar must have the shape of mu"):
        reparameterize(mu, logvar[:1])
    with pytest.raises(TypeError, match="logvar must have the dtype of mu"):
        reparameterize(mu, logvar.float())
