# SPDX-License-Identifier: Apache-2.0
"""Native kernels in half precision: stored in 16 bits, summed in float32, rounded once.

Where the processor multiplies pairs of bfloat16, the mixed weights of a dense convolution are rounded too: see
``tests/ops/mixed/test_bf16.py``. Here the native kernels are forced; a case this small may be faster elsewhere.
"""

import pytest
import torch
from torch import Tensor

from convary import DtypeError, ops
from convary.ops import Coefficients, cost, native, reference
from convary.ops.native.half import HALVES

pytestmark = pytest.mark.skipif(native.available() is not None, reason="the native library is absent")
B, K, C, O, S = 3, 4, 24, 40, 9
STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit of the last place, relative


def _geometry(rank: int, **changes) -> dict:
    """What the references want spelled out."""
    return {"stride": (1,) * rank, "padding": (1,) * rank, "dilation": (1,) * rank, "groups": 1} | changes


def _mixed(op, **changes):
    def run(x, bank, kernel, filter=None, bias=None):
        return op(x, bank, Coefficients(kernel=kernel, filter=filter), bias, **_geometry(2, **changes))

    return run


WINDOW = {
    "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "border": "zeros",
    "group_order": "contiguous", "scale_factor": 1,
}  # fmt: skip
OPS = {
    "mixed_conv": (
        lambda op: _mixed(op, stride=(2, 2)),
        ((B, C, S, S), (K, O, C, 3, 3), (B, K), (B, 1, O), (O,)),
    ),
    "depthwise": (lambda op: _mixed(op, groups=C), ((B, C, S, S), (K, C, 1, 3, 3), (B, K))),
    "sample_conv": (
        lambda op: lambda x, weight, bias: op(x, weight, bias, **_geometry(1)),
        ((B, C, S), (B, O, C, 3), (B, O)),
    ),
    "pixel_conv": (lambda op: lambda x, weight: op(x, weight, **WINDOW), ((B, C, S, S), (B, 2, 9, S, S))),
}
HALVED = ("mixed_conv", "depthwise")  # features become bfloat16, as for torch's own convolutions


@pytest.fixture(autouse=True)
def forced():
    with ops.strategy("native"):
        yield


every_op = pytest.mark.parametrize("name", OPS)
every_half = pytest.mark.parametrize("half", HALVES, ids=str)


def _case(name: str):
    """The op, its reference, and tensors in float32."""
    make, shapes = OPS[name]
    op = {"depthwise": "mixed_conv"}.get(name, name)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) / 4 for shape in shapes]
    return make(getattr(ops, op)), make(getattr(reference, op)), tensors


def _truth(function, tensors, slope=None) -> tuple[Tensor, list[Tensor]]:
    """The result and the gradients, in float64 of what is stored."""
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    y = function(*leaves)
    return y.detach(), list(torch.autograd.grad(y, leaves, torch.ones_like(y) if slope is None else slope.double()))


def _rounds_weights(name: str, half: torch.dtype) -> bool:
    return name == "mixed_conv" and half is torch.bfloat16 and native.isa() == "avx512_bf16"


def _sizes_of_sums(function, tensors, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Of y and of the gradient of x: sums of the sizes of what they are sums of."""
    y, (of_x, *_) = _truth(function, [t.abs() for t in tensors], slope.abs())
    return y, of_x


def _is_rounded_once(got: Tensor, want: Tensor, dtype: torch.dtype, step: float = 0.0, terms: Tensor | float = 0.0):
    """No worse than float32's own sums and one rounding; sums in 16 bits are many times worse.

    ``terms`` is the sum of the sizes of terms that were rounded before, once each.
    """
    assert got.dtype is dtype
    allowed = max(step, STEP.get(dtype, 0.0)) * want.abs() + STEP[torch.bfloat16] * terms + 1e-5 * want.abs().max()
    assert ((got.double() - want).abs() <= 1.01 * allowed).all()


def _gradients(function, tensors, slope):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return y, torch.autograd.grad(y, leaves, slope.to(y.dtype))


@every_op
@every_half
def test_tensors_in_half_precision(name, half):
    run, truth, tensors = _case(name)
    tensors = [t.to(half) for t in tensors]
    slope = torch.randn(_truth(truth, tensors)[0].shape).to(half)
    y, gradients = _gradients(run, tensors, slope)
    want, exact = _truth(truth, tensors, slope)
    terms = _sizes_of_sums(truth, tensors, slope) if _rounds_weights(name, half) else (0.0, 0.0)
    _is_rounded_once(y, want, half, terms=terms[0])
    _is_rounded_once(gradients[0], exact[0], half, terms=terms[1])
    for got, expected in zip(gradients[1:], exact[1:], strict=True):
        _is_rounded_once(got, expected, half)
    with torch.no_grad():
        assert torch.equal(run(*tensors), y)


@every_op
@every_half
@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(name, half, features):
    """Weights in float32 are read as they are, and gradients have their tensors' dtypes."""
    run, truth, (x, *weights) = _case(name)
    narrows = name in HALVED and half is torch.bfloat16
    tensors = [(x.bfloat16() if narrows else x).to(features), *weights]
    slope = torch.ones(()).expand_as(_truth(truth, tensors)[0])
    with torch.autocast("cpu", half):
        y, gradients = _gradients(run, tensors, slope)
    answered = torch.promote_types(features, torch.float32) if name == "pixel_conv" else half
    want, exact = _truth(truth, tensors)
    terms = _sizes_of_sums(truth, tensors, slope) if _rounds_weights(name, half) else (0.0, 0.0)
    _is_rounded_once(y, want, answered, terms=terms[0])
    _is_rounded_once(gradients[0], exact[0], features, STEP[half] if narrows else 0.0, terms[1])
    for got, expected, tensor in zip(gradients[1:], exact[1:], weights, strict=True):
        _is_rounded_once(got, expected, tensor.dtype)


@every_half
@pytest.mark.parametrize("autocast", [False, True])
def test_a_bank_of_biases_is_mixed_in_float32(half, autocast):
    """By float32 factors or not; of the kernel factor's gradient each of the two parts is rounded."""
    _, _, (x, bank, kernel) = _case("depthwise")  # whose mixed weights no processor rounds
    x = x.to(half).float()  # as autocast does
    leaves = [t if autocast else t.to(half) for t in (x, bank, kernel, torch.randn(K, C))]
    leaves = [t.requires_grad_() for t in leaves]
    with torch.autocast("cpu", half, enabled=autocast):
        y = ops.mixed_conv(*leaves[:2], Coefficients(kernel=leaves[2]), leaves[3], groups=C)
    gradients = torch.autograd.grad(y, leaves, torch.ones_like(y))
    truth = lambda x, bank, kernel, bias: reference.mixed_conv(  # noqa: E731
        x, bank, Coefficients(kernel=kernel), bias, **_geometry(2, padding=(0, 0), groups=C)
    )
    want, exact = _truth(truth, leaves)
    _is_rounded_once(y.detach(), want, half)
    for got, expected in zip(gradients[:2] + gradients[3:], exact[:2] + exact[3:], strict=True):
        _is_rounded_once(got, expected, got.dtype, step=STEP[half])
    assert (gradients[2].double() - exact[2]).abs().max() <= 2 * STEP[half] * exact[2].abs().max()


@every_op
def test_chosen_where_torch_has_no_fast_products(name, monkeypatch):
    monkeypatch.setattr(cost, "has_fast_products", lambda problem: problem.dtype is torch.float32)
    run, _, tensors = _case(name)
    seen = []
    monkeypatch.setattr(native.call, "call", lambda *a, call=native.call.call: (seen.append(a[0]), call(*a)))
    with ops.strategy(None):
        run(*[t.bfloat16() for t in tensors])
    assert seen


def test_without_fast_products_others_cost_more(monkeypatch):
    x, weight = torch.randn(B, C, S, S), torch.randn(B, O, C, 3, 3)
    x, weight, times = x.half(), weight.half(), {}
    for fast in (True, False):
        monkeypatch.setattr(cost, "has_fast_products", lambda problem, fast=fast: fast)
        times[fast] = {row.strategy: row.milliseconds for row in ops.explain(ops.sample_conv, x, weight).rows}
    assert times[False]["native"] == times[True]["native"]
    assert times[False]["grouped"] > times[True]["grouped"]


@every_op
def test_what_is_kept_for_the_gradient_stays_in_half_precision(name):
    run, _, tensors = _case(name)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.dtype), t)[1], lambda t: t):
        run(*[t.bfloat16().requires_grad_() for t in tensors])
    assert set(kept) == {torch.bfloat16}


@every_op
def test_differentiated_twice(name):
    run, truth, tensors = _case(name)

    def second(function, leaves):
        grads = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    tensors = [t.bfloat16() for t in tensors]
    got = second(run, [t.clone().requires_grad_() for t in tensors])
    want = second(truth, [t.double().requires_grad_() for t in tensors])
    for a, b in zip(got, want, strict=True):
        assert a.dtype is torch.bfloat16
        assert (a.double() - b).abs().max() <= 0.05 * b.abs().max()


@every_op
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_graphs_keep_the_kernels(name, autocast):
    torch._dynamo.reset()
    run, truth, tensors = _case(name)
    if not autocast:
        tensors = [t.bfloat16() for t in tensors]
    graphs = []

    def backend(graph, _):
        graphs.append(graph.code)
        return graph

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = torch.compile(run, fullgraph=True, backend=backend)(*tensors)
        assert y.dtype is run(*tensors).dtype
    assert "torch.ops.convary" in graphs[0]
    _is_rounded_once(y, _truth(truth, tensors)[0], y.dtype)


def test_channels_last_stays():
    run, _, (x, *weights) = _case("mixed_conv")
    x = x.bfloat16().contiguous(memory_format=torch.channels_last)
    y = run(x, *[w.bfloat16() for w in weights])
    assert y.is_contiguous(memory_format=torch.channels_last)


@every_op
@pytest.mark.parametrize("compiled", [False, True])
def test_dtypes_that_differ_are_an_error_without_autocast(name, compiled):
    """Also after a call of the same shapes that was right."""
    torch._dynamo.reset()
    run, _, tensors = _case(name)
    run(*tensors)
    if compiled:
        run = torch.compile(run, fullgraph=True, backend="eager")
    for at in range(len(tensors)):
        mixed = [t.bfloat16() if i == at else t for i, t in enumerate(tensors)]
        with pytest.raises((DtypeError, torch._dynamo.exc.Unsupported), match="DtypeError|is torch"):
            run(*mixed)


def test_a_choice_is_made_anew_where_autocast_has_another_dtype(monkeypatch):
    """Also for a call whose tensors are the same."""
    x, weight = torch.randn(B, C, S, S), torch.randn(B, O, C, 3, 3)
    chosen = []
    monkeypatch.setattr(ops.dispatch, "choose", lambda *a, call=ops.dispatch.choose: (chosen.append(a), call(*a))[1])
    monkeypatch.setattr(ops.dispatch, "_choices", {})
    for half in (*HALVES, *HALVES):
        with ops.strategy(None), torch.autocast("cpu", half):
            ops.sample_conv(x, weight)
    assert len(chosen) == len(HALVES)
