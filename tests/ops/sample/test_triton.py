# SPDX-License-Identifier: Apache-2.0
"""Strategy ``triton`` in Triton's interpreter: values and gradients against float64, and what it refuses."""

import importlib.util

import pytest
import torch

from convary import ops
from convary.errors import StrategyError
from convary.ops import Coefficients
from convary.ops.cost import measured
from convary.ops.sample import triton
from convary.ops.triton import launch
from tests.ops.kernels import forget

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KERNELS = "convary.ops.sample.triton_kernels"
DIRECT = "convary.ops.sample.triton_direct"
# B, C, O, groups, kernel, size, stride, padding, dilation
GEOMETRIES = [
    (2, 16, 17, 1, (3, 3), (5, 4), 1, 1, 1),
    (1, 32, 36, 2, (3, 3), (6, 5), 2, 1, 1),
    (3, 18, 16, 1, (1, 1), (4, 5), 1, 0, 1),
    (1, 16, 16, 1, (5, 3), (9, 8), (2, 3), (2, 0), (1, 2)),
    (1, 16, 16, 1, (2, 2), (7, 7), 3, 2, 2),
    (2, 16, 20, 1, (3,), (9,), 2, 1, 1),
]
# Groups of fewer than 16 channels: depthwise, with a multiplier, few inputs, few outputs.
FEW = [
    (2, 5, 5, 5, (3, 3), (5, 4), 1, 1, 1),
    (1, 3, 6, 3, (5, 3), (9, 8), (2, 3), (2, 0), (1, 2)),
    (1, 3, 18, 1, (3, 3), (4, 3), 2, 1, 1),
    (1, 18, 2, 1, (1, 1), (3, 4), 1, 0, 1),
    (1, 8, 4, 2, (2, 2), (7, 7), 3, 2, 2),
    (2, 4, 4, 4, (3,), (9,), 2, 1, 1),
]


@pytest.fixture
def interpreter(monkeypatch):
    """Kernels are decorated for the interpreter when they are imported; blocks are small, for it is slow."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "BLOCK", {"POSITIONS": 16, "OUT": 16, "IN": 16})
    monkeypatch.setattr(launch, "BLOCK", 16)
    forget()
    yield
    forget()


def draw(B, C, O, G, kernel, size, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(B, C, *size, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(B, O, C // G, *kernel, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


@needs_triton
@pytest.mark.parametrize(
    ("geometry", "layout"),
    [
        *((geometry, torch.contiguous_format) for geometry in GEOMETRIES),
        *((geometry, torch.channels_last) for geometry in GEOMETRIES[:2]),
        *((geometry, torch.contiguous_format) for geometry in FEW),
        *((geometry, torch.channels_last) for geometry in FEW[:3]),
        *(pytest.param(geometry, torch.channels_last, marks=pytest.mark.slow) for geometry in GEOMETRIES[2:5]),
    ],
    ids=str,
)
def test_values_and_gradients(geometry, layout, interpreter):
    B, C, O, G, kernel, size, stride, padding, dilation = geometry
    x, weight = draw(B, C, O, G, kernel, size)
    if len(size) == 2:
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(B, O)
    where = {"stride": stride, "padding": padding, "dilation": dilation, "groups": G}
    with ops.strategy("triton"):
        y = ops.sample_conv(x, weight, bias, **where)
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, weight), grad)
    with ops.strategy("bmm"):
        truth = ops.sample_conv(x.double(), weight.double(), bias.double(), **where)
    want = torch.autograd.grad(truth, (x, weight), grad.double())
    for ours, theirs in zip((y, *got), (truth, *want), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-4)
    if len(size) == 2:
        assert y.is_contiguous(memory_format=layout)


@needs_triton
def test_half_precision_sums_in_float32(interpreter):
    x, weight = draw(1, 32, 16, 1, (3, 3), (5, 5), torch.float16)
    with ops.strategy("triton"):
        y = ops.sample_conv(x, weight, padding=1)
    with ops.strategy("bmm"):
        truth = ops.sample_conv(x.double(), weight.double(), padding=1)
    assert y.dtype is torch.float16
    torch.testing.assert_close(y.double(), truth, rtol=1e-3, atol=0.02)  # rounded once, to 11 bits


@needs_triton
def test_of_kernels_mixed_from_a_bank_and_of_instances(interpreter):
    x, _ = draw(2, 16, 16, 1, (3, 3), (4, 4))
    bank = torch.randn(3, 16, 16, 3, 3, requires_grad=True)
    coeffs = Coefficients(kernel=torch.rand(2, 3), filter=torch.rand(2, 3, 16))
    bias, results = torch.randn(3, 16), []
    for strategy in ("triton", "bmm"):
        with ops.strategy(strategy):
            y = ops.mixed_conv(x, bank, coeffs, bias, padding=1)
            instances = ops.sample_conv(x, y.reshape(2, 16, 16, 1, 1)[[0, 1, 0]], index=torch.tensor([1, 1, 0]))
        results.append((y, instances, *torch.autograd.grad(y.sum(), (x, bank))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


@needs_triton
def test_only_a_measurement_chooses_it(interpreter, monkeypatch, tmp_path):
    x, weight = draw(1, 16, 16, 1, (3, 3), (4, 4))
    explained = ops.explain("sample_conv", x, weight)
    assert explained.chosen != "triton"
    assert "ops.autotune() measures it" in str(explained)
    monkeypatch.setattr(measured, "known", lambda problem: {"triton": 1e-9, "native": 1.0, "grouped": 1.0})
    assert ops.explain("sample_conv", x, weight).chosen == "triton"


@needs_triton
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_second_derivatives(wanted, interpreter):
    results = []
    for strategy in ("triton", "grouped"):
        x, weight = draw(1, 16, 16, 1, (3, 3), (3, 3))
        leaves = [(x, weight)[i] for i in wanted]
        for leaf in {x, weight} - set(leaves):
            leaf.requires_grad_(False)
        with ops.strategy(strategy):
            y = ops.sample_conv(x, weight)
        grads = torch.autograd.grad((y**3).sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum((g**2).sum() for g in grads), leaves))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@needs_triton
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (((1, 16, 16, 1, (3, 3), (4, 4)), torch.float64), "it takes torch.float32"),
        (((1, 16, 16, 1, (1, 1, 1), (2, 2, 2)), torch.float32), "one or two spatial axes"),
    ],
    ids=["float64", "3-D"],
)
def test_what_it_does_not_take(call, reason, interpreter):
    x, weight = draw(*call[0], dtype=call[1])
    with ops.strategy("triton"), pytest.raises(StrategyError, match=reason):
        ops.sample_conv(x, weight, groups=call[0][3])


@needs_triton
def test_a_kernel_that_triton_can_not_build_is_left_out_by_tuning(interpreter, monkeypatch):
    from triton.runtime.errors import OutOfResources

    class Large:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                raise OutOfResources(300_000, 232_448, "shared memory")

            return launch

    monkeypatch.setattr(importlib.import_module(KERNELS), "gather", Large())
    x, weight = draw(1, 16, 16, 1, (3, 3), (4, 4))
    with (
        ops.strategy("triton"),
        pytest.raises(StrategyError, match="can't run strategy 'triton' on cpu.*shared memory"),
    ):
        ops.sample_conv(x, weight)
    times = measured.Times()
    monkeypatch.setattr(measured, "_times", lambda: times)
    monkeypatch.setattr(measured, "_on", True)
    with pytest.warns(UserWarning, match="autotune leaves out 'triton'.*shared memory"):
        y = ops.sample_conv(x, weight)
    torch.testing.assert_close(
        y, ops.reference.sample_conv(x, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
    )


def test_on_a_cpu_it_is_no_choice():
    x, weight = draw(1, 16, 16, 1, (3, 3), (4, 4))
    with ops.strategy("triton"), pytest.raises(StrategyError, match="run on CUDA devices; x is on cpu"):
        ops.sample_conv(x, weight)
    (row,) = [row for row in ops.explain("sample_conv", x, weight).rows if row.strategy == "triton"]
    assert "run on CUDA devices" in row.reason


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x, weight = draw(1, 16, 16, 1, (3, 3), (4, 4))
    with ops.strategy("triton"), pytest.raises(StrategyError, match="Triton is not installed"):
        ops.sample_conv(x, weight)
