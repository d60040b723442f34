"""What a layer costs the host beside its kernels: counted Python calls and questions. No clock."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from called import Operators, functions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

import fastgen
from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d
from fastgen.ops import backend, checks, gradients, layer_calls, routing
from fastgen.ops.backend import BACKENDS
from fastgen.ops.gradients import returning

PACKAGE = str(Path(fastgen.__file__).resolve().parent / "ops")
X = torch.randn(2, 4, 6, 6)
LAYERS = {
    "conv": lambda: ConvLeakyReLU2d(4, 5, 3, padding=1),
    "transposed": lambda: ConvTransposeLeakyReLU2d(4, 5, 4, 2, 1),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_a_forward_and_a_backward_are_few_calls(layer):
    x = X.clone().requires_grad_()

    def both():
        layer(x).sum().backward()

    calls = functions(both, PACKAGE)
    assert sum(calls.values()) <= 56
    # Nothing is differentiated any more, so no Function but the layer's own is applied.
    assert calls["Layer.forward"] == calls["Layer.backward"] == 1
    assert calls["applier.<locals>.apply"] == 0
    # What was found once is not looked for again.
    assert calls["check"] == calls["pair"] == calls["Router.run"] == 0
    assert calls["NarrowedConvolution.find"] == 0


def test_without_gradients_no_function_is_applied(layer):
    with torch.no_grad():
        assert functions(lambda: layer(X), PACKAGE)["Layer.forward"] == 0


@pytest.mark.parametrize("told", [False, True])
def test_leaves_that_are_told_of_are_not_asked_about(layer, told, monkeypatch):
    ask, answers = gradients._engine_will_execute, Counter()

    def noting(node):
        try:
            answer = ask(node)
        except RuntimeError:
            answers["error"] += 1
            raise
        answers[answer] += 1
        return answer

    monkeypatch.setattr(gradients, "_engine_will_execute", noting)
    x = X.clone().requires_grad_()
    leaves = [x, layer.weight, layer.bias]
    plain = torch.autograd.grad(layer(x).square().sum(), leaves)
    assert answers["error"] == 3
    answers.clear()
    with returning(leaves if told else []):
        again = torch.autograd.grad(layer(x).square().sum(), leaves)
    assert answers["error"] == (0 if told else 3)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)
    assert not gradients._returned


def test_leaves_that_are_told_of_leave_others_unasked_for(layer):
    x = X.clone().requires_grad_()
    with returning([layer.weight]):
        calls = functions(lambda: torch.autograd.grad(layer(x).sum(), layer.weight), PACKAGE)
    names = " ".join(calls)
    assert "input_gradient" not in names
    assert "weight_gradient" in names


def test_an_argument_that_equals_a_good_one_is_still_refused():
    x, weight = X, torch.randn(5, 4, 3, 3)
    fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, 1, 1)
    with pytest.raises(TypeError, match="stride"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, True, 1)
    with pytest.raises(TypeError, match="stride"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, (1.0, 1), 1)
    with pytest.raises(TypeError, match="groups"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, 1, 1, 1, True)
    with pytest.raises(TypeError, match="weight"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight.tolist(), None, 1, 1)
    with pytest.raises(TypeError, match="dtype"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight.double(), None, 1, 1)
    with pytest.raises(TypeError):
        checks.pair("stride", (True, 1), least=1)


MISFITS = {
    "input of another dtype": lambda x, w, b: (x.double(), w, b),
    "weight of another dtype": lambda x, w, b: (x, w.double(), b),
    "bias of another dtype": lambda x, w, b: (x, w, b.double()),
    "input of fewer channels": lambda x, w, b: (x[:, :3], w, b),
    "weight of fewer channels": lambda x, w, b: (x, w[:, :3], b),
    "bias of fewer channels": lambda x, w, b: (x, w, b[:4]),
    "bias of one number": lambda x, w, b: (x, w, b[:1]),
    "input elsewhere": lambda x, w, b: (x.to("meta"), w, b),
    "weight elsewhere": lambda x, w, b: (x, w.to("meta"), b),
    "bias elsewhere": lambda x, w, b: (x, w, b.to("meta")),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_tensors_that_do_not_fit_are_refused_after_others_that_did(misfit):
    good = X, torch.randn(5, 4, 3, 3), torch.randn(5)
    refusals = []
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)) as refused:
            fastgen.ops.conv2d_bias_leaky_relu(*misfit(*good), 1, 1)
        refusals.append(str(refused.value))
        fastgen.ops.conv2d_bias_leaky_relu(*good, 1, 1)
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize("channels", [4, 32])
def test_calls_that_differ_in_layouts_alone_have_their_own_results_and_layouts(channels):
    shapes = (2, channels, 8, 8), (channels, channels, 3, 3)
    last = torch.channels_last
    bias = torch.randn(channels, 2).T
    for _ in range(2):
        for formats in itertools.product((torch.contiguous_format, last), repeat=2):
            x, w = (
                torch.randn(s).to(memory_format=f) for s, f in zip(shapes, formats, strict=True)
            )
            for b in (bias[0], bias[0].contiguous()):
                y = fastgen.ops.conv2d_bias_leaky_relu(x, w, b, 1, 1)
                expected = F.leaky_relu(F.conv2d(x, w, b, 1, 1), 0.2)
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
                assert y.is_contiguous(memory_format=last) == (last in formats)


def noting_router(monkeypatch, automatic):
    """A router that knows nothing yet, for "auto", and the passes that it chooses a way for."""
    router = routing.ConvolutionRouter("conv2d_bias_leaky_relu")
    monkeypatch.setitem(backend.KERNELS, ("conv2d_bias_leaky_relu", backend.AUTO), router)
    monkeypatch.setattr(backend, "_automatic", automatic)
    chosen, choose = [], routing.Router._choose

    def noting(self, pass_, arguments):
        chosen.append(pass_)
        return choose(self, pass_, arguments)

    monkeypatch.setattr(routing.Router, "_choose", noting)
    return router, chosen


def test_narrowed_kernels_choose_by_layout_and_forget_with_their_router(monkeypatch):
    router, chosen = noting_router(monkeypatch, {"cpu": frozenset({"cpp", "torch"})})
    layer = LAYERS["conv"]()
    x = X.clone().requires_grad_()
    last = X.contiguous(memory_format=torch.channels_last).requires_grad_()
    shifted = torch.randn(X.numel() + 1)[1:].view(X.shape)
    for _ in range(2):
        layer(x).backward(torch.ones(2, 5, 6, 6))
    first = ["forward", "mask_sum", "input_gradient", "weight_gradient"]
    assert chosen == first
    layer(last)
    layer(shifted)
    assert chosen == [*first, "forward", "forward"]
    held = layer(x)
    router.forget()
    held.backward(torch.ones(2, 5, 6, 6))
    assert chosen == [*first, "forward", "forward", *first[1:]]
    layer(x)
    chosen.clear()
    torch.use_deterministic_algorithms(True)
    try:
        layer(x)
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.backends.mkldnn.flags(enabled=False):
        layer(x)
    assert chosen == ["forward"] * 2
    layer(x)
    assert chosen == ["forward"] * 2


def test_sizes_that_are_symbols_are_traced_and_not_remembered():
    router = backend.KERNELS["conv2d_bias_leaky_relu", backend.AUTO]

    def gradients(x, weight, bias):
        output = fastgen.ops.conv2d_bias_leaky_relu(x, weight, bias, 1, 1)
        return output, *torch.autograd.grad(output.square().sum(), (x, weight, bias))

    leaves = [X.clone(), torch.randn(5, 4, 3, 3), torch.randn(5)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    router.forget()
    traced = make_fx(gradients, tracing_mode="symbolic")(*leaves)
    assert not router.known
    assert not router.recalled
    for one, other in zip(traced(*leaves), gradients(*leaves), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="channels"):
        make_fx(gradients, tracing_mode="symbolic")(X, leaves[1][:, :3], leaves[2])


def test_a_call_is_recalled_by_the_very_arguments_it_was_made_with():
    router = backend.KERNELS["conv2d_bias_leaky_relu", backend.AUTO]
    router.forget()
    weight = torch.randn(5, 4, 3, 3)
    equal = [tuple([1, 1]) for _ in range(3)]
    for stride in equal:
        fastgen.ops.conv2d_bias_leaky_relu(X, weight, None, stride, 1)
    assert len(router.known) == 1
    assert len(router.recalled) == 3
    # A list may hold other numbers at the next call.
    stride = [1, 1]
    one = fastgen.ops.conv2d_bias_leaky_relu(X, weight, None, stride, 1)
    assert len(router.recalled) == 3
    stride[:] = 2, 2
    other = fastgen.ops.conv2d_bias_leaky_relu(X, weight, None, stride, 1)
    assert one.shape[2:] == (6, 6)
    assert other.shape[2:] == (3, 3)


def test_padding_same_is_not_recalled_for_a_picture_of_the_padded_size():
    weight = torch.randn(5, 4, 2, 2)
    for size in (6, 7, 6, 7):
        x = torch.randn(2, 4, size, size)
        output = fastgen.ops.conv2d_bias_leaky_relu(x, weight, padding="same")
        assert output.shape[2:] == (size, size)


def test_calls_are_forgotten_before_they_are_too_many(monkeypatch):
    monkeypatch.setattr(layer_calls, "MOST_KNOWN", 3)
    router = backend.KERNELS["conv2d_bias_leaky_relu", backend.AUTO]
    router.forget()
    weight = torch.randn(5, 4, 3, 3)
    for size in range(3, 12):
        fastgen.ops.conv2d_bias_leaky_relu(torch.randn(1, 4, size, size), weight)
        assert 1 <= len(router.known) <= 3
        assert 1 <= len(router.recalled) <= 3
        held = [call for call, _ in router.recalled.values()]
        assert all(call in router.known.values() for call in held)


def test_a_call_on_tensors_without_memory_is_another_one():
    router = backend.KERNELS["conv2d_bias_leaky_relu", backend.AUTO]
    router.forget()
    tensors, mode = [X, torch.randn(5, 4, 3, 3), torch.randn(5)], FakeTensorMode()
    with mode:
        fastgen.ops.conv2d_bias_leaky_relu(*map(mode.from_tensor, tensors), 1, 1)
    fastgen.ops.conv2d_bias_leaky_relu(*tensors, 1, 1)
    assert len(router.known) == len(router.recalled) == 2


def test_a_choice_does_not_outlive_the_precision_that_it_was_made_for(monkeypatch):
    """On a GPU kernels of float32 convolutions are made for TF32 or for IEEE's."""
    router, chosen = noting_router(monkeypatch, {"cuda": frozenset({"torch"})})
    with FakeTensorMode(), torch.no_grad():
        x, weight = (torch.empty(s, device="cuda") for s in ((2, 4, 6, 6), (5, 4, 3, 3)))
        held = None
        for precision in ("tf32", "ieee") * 2:
            monkeypatch.setattr(routing, "_precision", lambda *_, p=precision: p)
            output = fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, 1, 1)
            held = held or next(iter(router.known.values()))
            # A graph may be differentiated when the setting is another one than it was made under.
            held.backward((True, True, False), output, x, weight, output)
            router.weight_gradient(x, output, weight, held._geometry)
    once = ["forward", "mask", "input_gradient", "weight_gradient", "weight_gradient"]
    assert chosen == once * 2


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (16, 64, 16, 16)], ids=str)
def test_what_was_saved_may_come_back_in_another_layout(shape):
    last = torch.channels_last
    channels = shape[1]
    layer = ConvLeakyReLU2d(channels, channels, 3, padding=1).to(memory_format=last)
    x = torch.randn(shape).contiguous(memory_format=last).requires_grad_()
    leaves = [x, layer.weight, layer.bias]
    grad = torch.randn(shape).contiguous(memory_format=last)

    def turned(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)

    for name in ("auto", "torch", "triton"):
        if BACKENDS.get(name, BACKENDS["torch"]).missing() or (name == "triton" and channels > 4):
            continue
        with backend.backend(name):
            for saved in (nullcontext, lambda: saved_tensors_hooks(turned, lambda t: t)) * 2:
                with saved():
                    output = layer(x)
                gradients = torch.autograd.grad(output, leaves, grad)
                if saved is nullcontext:
                    expected = gradients
                    assert [g.stride() for g in gradients] == [leaf.stride() for leaf in leaves]
                for one, other in zip(gradients, expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_mode_sees_triton_s_operators_after_calls_that_none_saw():
    if BACKENDS["triton"].missing():
        pytest.skip("Triton is not there")
    layer, x = LAYERS["conv"](), X.clone().requires_grad_()
    with backend.backend("triton"):
        for seen in (False, True):
            with Operators() if seen else nullcontext() as operators:
                output = layer(x)
                output.backward(torch.randn(output.shape))
    assert any(name.startswith("fastgen_triton::") for name in operators.names)
    assert "fastgen_triton::leaky_relu_mask_sum" in operators.names


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_one_call_where_all_are_pytorchs_own(layer, memory_format):
    layer = layer.to(memory_format=memory_format)
    x = X.contiguous(memory_format=memory_format).requires_grad_()
    leaves = [x, *layer.parameters()]
    with backend.backend("torch"):
        output = layer(x)
        grad = torch.randn(output.shape).contiguous(memory_format=memory_format)
        with Operators() as operators:
            together = torch.autograd.grad(output, leaves, grad, retain_graph=True)
        assert [name for name in operators.names if name != "aten::detach"] == [
            "aten::leaky_relu_backward",
            "aten::convolution_backward",
        ]
        # One by one they are calls of their own.
        alone = [torch.autograd.grad(output, leaf, grad, retain_graph=True)[0] for leaf in leaves]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()


def test_both_gradients_are_one_call_beside_a_mask_of_ours():
    """Where another kernel has the bias gradient, the two of the convolution go together."""
    layer = ConvLeakyReLU2d(12, 12, 3, padding=1)
    x = torch.randn(8, 12, 48, 48, requires_grad=True)
    output = layer(x)
    with Operators() as operators:
        output.backward(torch.randn_like(output))
    if "fastgen::leaky_relu_mask_sum" not in operators.names:
        pytest.skip("the compiled kernels are not there")
    assert operators.names.count("aten::convolution_backward") == 1
    assert "aten::convolution" not in operators.names


def test_gradients_of_mixed_layouts_stay_apart():
    layer = LAYERS["conv"]()
    x = X.contiguous(memory_format=torch.channels_last).requires_grad_()
    with backend.backend("torch"):
        output = layer(x)
        with Operators() as operators:
            output.backward(torch.randn_like(output))
    assert operators.names.count("aten::convolution") == 1
