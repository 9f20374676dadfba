# SPDX-License-Identifier: Apache-2.0
"""A router as one Triton kernel, in Triton's interpreter: against the layers themselves in float64, and who asks."""

import copy
import importlib.util
import sys

import pytest
import torch

import convary as cv
from convary import ops
from convary.nn.perceptron_router import PerceptronRouter
from convary.ops.cost import measured
from convary.ops.triton import launch, router
from tests.ops.kernels import forget

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KERNEL = "convary.ops.triton.router_kernel"
LAYERS = {
    "odconv": lambda: cv.ODConv2d(10, 6, 3, experts=3),
    "odconv, one kernel": lambda: cv.ODConv2d(9, 5, 3, experts=1),
    "condconv": lambda: cv.CondConv2d(11, 6, 3, experts=5),
    "dyconv": lambda: cv.DyConv2d(10, 6, 3, experts=4),
    "dynet": lambda: cv.DyNetConv2d(10, 6, 3, experts=3),
    "odconv, 1-D": lambda: cv.ODConv1d(7, 5, 3, experts=2),
}


@pytest.fixture
def interpreter(monkeypatch):
    """Kernels are decorated for the interpreter when they are imported; blocks smaller than the layers."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "BLOCK", 16)
    monkeypatch.setattr(router, "BLOCK", 16)
    forget()
    yield
    forget()


def of(name: str) -> PerceptronRouter:
    """A router whose every number counts, in eval mode."""
    torch.manual_seed(0)
    made = LAYERS[name]().router.eval()
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point() and tensor.ndim:
                tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.ndim == 1 else torch.randn_like(tensor))
        if made.temperature is not None:
            made.temperature.fill_(2.5)
    return made


def features(made: PerceptronRouter, *, line: bool = False) -> torch.Tensor:
    size = (7,) if line else (5, 4)
    return torch.randn(3, made.in_channels, *size, generator=torch.Generator().manual_seed(1))


@needs_triton
@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_coefficients(name, interpreter):
    made = of(name)
    x = features(made, line="1-D" in name)
    with ops.strategy("triton"):
        got = made(x)
    assert KERNEL in sys.modules  # it was the kernel that ran
    want = copy.deepcopy(made).double()(x.double())
    assert got.factors().keys() == want.factors().keys()
    for axis, factor in got.factors().items():
        torch.testing.assert_close(factor.double(), want.factors()[axis], rtol=1e-5, atol=1e-6)
        assert factor.is_contiguous()


@needs_triton
@torch.no_grad()
def test_half_precision_and_channels_last(interpreter):
    made = of("odconv")
    x = features(made).contiguous(memory_format=torch.channels_last)
    want = copy.deepcopy(made).half().double()(x.half().double())
    with ops.strategy("triton"):
        got = made.half()(x.half())
    for axis, factor in got.factors().items():
        assert factor.dtype is torch.float16
        torch.testing.assert_close(factor.double(), want.factors()[axis], rtol=2e-3, atol=1e-4)


@needs_triton
@torch.no_grad()
@pytest.mark.parametrize("winner", ["triton", "torch"])
def test_a_measurement_decides(winner, interpreter, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "_on", True)
    monkeypatch.setattr(measured, "_measured", 0)
    monkeypatch.setattr(measured, "_race", lambda calls, problem: {name: float(name != winner) + 1 for name in calls})
    monkeypatch.setattr(router, "obstacle", lambda device, dtype: None)
    monkeypatch.setattr("convary.ops.native.router.can_run", lambda x, layers: False)  # as on a GPU
    measured._times.cache_clear()
    try:
        made = of("dyconv")
        made(features(made))
    finally:
        measured._times.cache_clear()
    assert (KERNEL in sys.modules) == (winner == "triton")


@needs_triton
def test_why_not(interpreter):
    made = of("odconv")
    x, layers = features(made), made.native_layers()
    assert router.why_not(x, layers) == "it has no gradient"
    with torch.no_grad():
        assert router.why_not(x, layers) is None
        assert "torch.float64" in router.why_not(x.double(), layers)
        assert "another dtype, on another device" in router.why_not(x, layers._replace(last=layers.last.double()))
        assert "do not fit" in router.why_not(x[:, 1:], layers)
        linear = of("condconv").native_layers()
        two = linear._replace(pieces=(2, 3))
        assert "one piece" in router.why_not(torch.randn(3, 11, 5, 4), two)
        wide = torch.randn(router.WIDEST + 1, 10)
        assert "wider than 4096" in router.why_not(x, linear._replace(last=wide, last_bias=None, pieces=(len(wide),)))
        with torch.utils.flop_counter.FlopCounterMode(display=False):
            assert "a counter, is watching" in router.why_not(x, layers)


def test_on_a_cpu_it_is_no_choice():
    made = of("odconv")
    assert "run on CUDA devices" in router.why_not(features(made), made.native_layers())
