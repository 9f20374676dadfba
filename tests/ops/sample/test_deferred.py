# SPDX-License-Identifier: Apache-2.0
"""What ``torch.compile`` records for a GPU, traced with fake CUDA tensors; and the operator's values, on the CPU."""

import importlib.util
import sys

import pytest
import torch
import torch._dynamo.testing
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from convary import ops
from convary.errors import StrategyError
from convary.ops import Coefficients, dispatch
from convary.ops.cost import measured
from convary.ops.sample import aten, deferred
from convary.ops.triton import launch
from tests.ops.kernels import forget

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
HEAVY = ("conv1d", "conv2d", "conv3d", "matmul", "deferred_conv", "unfold", "im2col", "einsum", "linear")


def recorded(call, *tensors) -> list[str]:
    """The heavy operations of the graph that is compiled for a call on fake CUDA tensors of any size."""
    found = []

    def backend(graph, inputs):
        names = (getattr(n.target, "__name__", str(n.target)) for n in graph.graph.nodes if n.op.startswith("call"))
        found.extend(name for name in names if any(heavy in name for heavy in HEAVY))
        return graph.forward

    torch._dynamo.reset()
    y = torch.compile(call, backend=backend, dynamic=True, fullgraph=True)(*tensors)
    assert y.is_cuda and (y.ndim != 4 or y.is_contiguous(memory_format=torch.channels_last))
    return found


def cuda(*size: int) -> torch.Tensor:
    x = torch.randn(*size, device="cuda:0")
    return x.to(memory_format=torch.channels_last) if len(size) == 4 else x


# experts, kernel, groups, the tap factor: the graph's heavy operations beside the mixing
BANKS = [
    (4, 3, 1, False, ["conv2d"]),
    (5, 3, 1, False, ["matmul", "deferred_conv"]),
    (4, 3, 1, True, ["matmul", "deferred_conv"]),
    (4, 3, 16, False, ["matmul", "deferred_conv"]),
    (4, 3, 4, False, ["conv2d"]),
    (8, 1, 4, False, ["matmul", "matmul"]),
    (8, 1, 1, False, ["matmul", "matmul"]),
]


@pytest.mark.parametrize(("experts", "kernel", "groups", "tap", "wanted"), BANKS, ids=str)
def test_what_is_compiled_for_a_gpu(experts, kernel, groups, tap, wanted):
    """No window of x is unfolded, no batch is baked in, and channels_last stays."""

    def call(x, bank, kernels, taps):
        coeffs = Coefficients(kernel=kernels, tap=taps if tap else None)
        return ops.mixed_conv(x, bank, coeffs, padding=kernel // 2, groups=groups)

    with FakeTensorMode():
        bank = torch.randn(experts, 16, 16 // groups, kernel, kernel, device="cuda:0")
        found = recorded(call, cuda(6, 16, 9, 7), bank, cuda(6, experts), cuda(6, 1, kernel**2))
        assert [name.removeprefix("convary.") for name in found] == wanted
        explained = ops.explain(ops.mixed_conv, cuda(6, 16, 9, 7), bank, Coefficients(kernel=cuda(6, experts)),
                                groups=groups, padding=kernel // 2)  # fmt: skip
    names = {"conv2d": "outputs", "deferred_conv": "deferred", "matmul": "bmm"}
    assert tap or explained.compiled == names[wanted[-1]]
    assert explained.exported in ("bmm", "grouped", "outputs")  # what runs elsewhere knows torch's operations alone


@pytest.mark.parametrize(("kernel", "wanted"), [(3, "deferred_conv"), (1, "matmul")])
def test_given_kernels_and_lines(kernel, wanted):
    def call(x, weight):
        return ops.sample_conv(x, weight, padding=kernel // 2)

    with FakeTensorMode():
        for size in ((9,), (9, 7)):
            weight = torch.randn(6, 8, 16, *[kernel] * len(size), device="cuda:0")
            assert [name.removeprefix("convary.") for name in recorded(call, cuda(6, 16, *size), weight)] == [wanted]


# B, C, O, groups, kernel, size, N where there is an index, stride, padding, dilation
GEOMETRIES = [
    (3, 4, 6, 2, (3, 3), (6, 5), None, 2, 1, 1),
    (2, 3, 6, 3, (3, 2), (7, 6), 3, 1, (2, 0), (1, 2)),
    (1, 4, 4, 1, (3, 3), (5, 4), None, 1, 1, 1),
    (2, 4, 6, 1, (3,), (9,), 4, 2, 1, 1),
    (2, 4, 2, 2, (2, 2, 2), (3, 4, 3), None, 1, 0, 1),
]


def draw(B, C, O, G, kernel, size, N, dtype=torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, C, *size, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(N or B, O, C // G, *kernel, generator=generator).to(dtype).requires_grad_()
    index = None if N is None else torch.arange(N).flip(0) % B
    return x, weight, index


def per_axis(value, size) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * len(size)


def operator_and_truth(geometry) -> None:
    """Values and both gradients of the operator, against float64."""
    B, C, O, G, kernel, size, N, *walk = geometry
    x, weight, index = draw(B, C, O, G, kernel, size, N)
    stride, padding, dilation = (per_axis(value, size) for value in walk)
    for layout in (torch.contiguous_format, torch.channels_last) if len(size) == 2 else (torch.contiguous_format,):
        given = x.detach().contiguous(memory_format=layout).requires_grad_()
        y = torch.ops.convary.deferred_conv(given, weight, index, stride, padding, dilation, G)
        grad = torch.randn_like(y)
        got = (y, *torch.autograd.grad(y, (given, weight), grad))
        exact = [t.detach().double().requires_grad_() for t in (x, weight)]
        truth = ops.reference.sample_conv(
            *exact, stride=stride, padding=padding, dilation=dilation, groups=G, index=index
        )
        want = (truth, *torch.autograd.grad(truth, exact, grad.double()))
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
        assert got[0].is_contiguous(memory_format=layout) and got[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_values_and_gradients_of_the_operator(geometry):
    operator_and_truth(geometry)


@pytest.mark.parametrize("geometry", GEOMETRIES[:4], ids=str)
def test_the_operator_is_what_it_says(geometry):
    """Schema, fake shapes and strides, and gradients as a compiler asks for them."""
    B, C, O, G, kernel, size, N, *walk = geometry
    x, weight, index = draw(B, C, O, G, kernel, size, N)
    settings = (*(list(per_axis(value, size)) for value in walk), G)
    opcheck(torch.ops.convary.deferred_conv, (x, weight, index, *settings))
    if len(size) == 2:
        last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        opcheck(torch.ops.convary.deferred_conv, (last, weight, index, *settings))
    y = torch.ops.convary.deferred_conv(x, weight, index, *settings).detach()
    plain = (y, x.detach(), weight.detach(), index, *settings)
    for name in ("deferred_conv_grad_x", "deferred_conv_grad_weight"):
        opcheck(getattr(torch.ops.convary, name), plain)


@needs_triton
@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[3]], ids=str)
def test_where_triton_was_measured_to_be_faster_it_runs(geometry, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "BLOCK", 16)
    monkeypatch.setattr(deferred, "is_ranked", lambda *_: True)
    monkeypatch.setattr(deferred, "estimate", lambda problem, name: float(name != "triton"))
    name = "convary.ops.sample.triton_direct"
    forget()
    operator_and_truth(geometry)
    assert name in sys.modules
    forget()


def test_autotune_measures_what_the_operator_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path))
    measured._times.cache_clear()
    monkeypatch.setattr(measured, "_on", True)
    monkeypatch.setattr(measured, "_measured", 0)
    monkeypatch.setattr(deferred.triton, "why_not", lambda problem: None)  # as on a GPU
    ran = []
    table = dispatch.OPS["sample_conv"].strategies
    for name in ("grouped", "triton"):
        entry = dispatch.Strategy(lambda problem: None, lambda *a, n=name: (ran.append(n), table_run(*a))[1], "")
        monkeypatch.setitem(table, name, entry)
    table_run = aten.grouped
    monkeypatch.setattr(measured, "preferred", lambda times: ran.append(sorted(times)) or "triton")
    x, weight, _ = draw(2, 4, 4, 1, (3, 3), (5, 4), None)
    try:
        torch.ops.convary.deferred_conv(x, weight, None, (1, 1), (1, 1), (1, 1), 1)
    finally:
        measured._times.cache_clear()
    assert ran[-2:] == [["grouped", "triton"], "triton"] and {"grouped", "triton"} <= set(ran[:-2])


def test_one_graph_serves_every_batch_and_autocast():
    def call(x, weight):
        return ops.sample_conv(x, weight, padding=1)

    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(call, backend=count, dynamic=True, fullgraph=True)
    for B in (2, 3, 5):
        x, weight, _ = draw(B, 4, 6, 1, (3, 3), (5, 4), None)
        with ops.strategy("deferred"):
            y = compiled(x, weight)
        torch.testing.assert_close(y, ops.sample_conv(x, weight, padding=1))
    assert count.frame_count == 1
    with torch.autocast("cpu", torch.bfloat16), ops.strategy("deferred"):
        y = torch.compile(call, backend="aot_eager")(x, weight)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype is torch.float32 and weight.grad.isfinite().all()


def test_a_counter_sees_its_arithmetic():
    x, weight, _ = draw(2, 4, 6, 2, (3, 3), (5, 4), None)
    with FlopCounterMode(display=False) as counter:
        torch.ops.convary.deferred_conv(x, weight, None, (1, 1), (1, 1), (1, 1), 2).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 6 * 20) * (2 * 9)


def test_a_call_has_no_use_for_it():
    x, weight, _ = draw(2, 4, 6, 1, (3, 3), (5, 4), None)
    with ops.strategy("deferred"), pytest.raises(StrategyError, match="it is for graphs; a call chooses by itself"):
        ops.sample_conv(x, weight)


def test_eager_calls_keep_channels_last_on_a_gpu():
    with FakeTensorMode():
        x, bank, coeffs = cuda(6, 16, 9, 7), cuda(4, 16, 16, 3, 3), Coefficients(kernel=cuda(6, 4))
        for strategy in ("grouped", "outputs"):
            with ops.strategy(strategy):
                assert ops.mixed_conv(x, bank, coeffs, padding=1).is_contiguous(memory_format=torch.channels_last)
        with ops.strategy("bmm"):
            y = ops.mixed_conv(x, cuda(4, 8, 16, 1, 1), coeffs, stride=2)
    assert y.is_contiguous(memory_format=torch.channels_last) and y.shape == (6, 8, 5, 4)


@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_pointwise_by_products_with_channels_innermost(stride):
    x, weight, index = draw(2, 5, 7, 1, (1, 1), (6, 5), 3, torch.float64)
    geometry = deferred.Geometry(per_axis(stride, (0, 0)), (0, 0), (1, 1), 1)
    last = x.contiguous(memory_format=torch.channels_last)
    want = ops.sample_conv(x, weight, stride=stride, index=index)
    torch.testing.assert_close(aten.channels_innermost(last, weight, index, geometry), want)
