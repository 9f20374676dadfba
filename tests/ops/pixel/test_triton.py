# SPDX-License-Identifier: Apache-2.0
"""Strategy ``triton`` of ``pixel_conv`` in Triton's interpreter: values and gradients against float64."""

import importlib.util

import pytest
import torch

from convary import ops
from convary.errors import StrategyError
from convary.ops import reference
from convary.ops.pixel.arguments import spell
from convary.ops.triton import launch
from tests.ops.kernels import forget

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KERNELS = "convary.ops.pixel.triton_kernels"


@pytest.fixture
def interpreter(monkeypatch):
    """Kernels are decorated for the interpreter when they are imported; several programs for each axis."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "BLOCK", 16)
    forget()
    yield
    forget()


# B, C, G, size, then what pixel_conv takes by name
CALLS = [
    (2, 6, 2, (5, 4), {"kernel_size": 3, "padding": 1}),
    (1, 6, 3, (6, 5), {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "group_order": "interleaved"}),
    (1, 4, 4, (7, 6), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    (1, 2, 1, (4, 3), {"kernel_size": 3, "padding": 1, "scale_factor": 2}),
    (1, 2, 1, (5, 4), {"kernel_size": 3, "padding": 2, "border": "replicate", "stride": (1, 2)}),
    (1, 2, 2, (5, 4), {"kernel_size": 3, "padding": 2, "border": "reflect"}),
    (1, 4, 2, (4, 3), {"kernel_size": (2, 3), "padding": (2, 3), "border": "circular", "dilation": (2, 1)}),
    (1, 2, 1, (6, 5), {"kernel_size": 3, "padding": 2, "border": "clamp"}),
    (1, 2, 2, (5, 4), {"kernel_size": (2, 3), "padding": (3, 2), "border": "clamp", "stride": (2, 1)}),
    (1, 2, 1, (5, 4), {"kernel_size": 2, "padding": 2, "border": "clamp", "scale_factor": 2}),
    (2, 6, 3, (9,), {"kernel_size": 3, "padding": 1, "scale_factor": 2}),
    (1, 4, 2, (8,), {"kernel_size": 3, "padding": 3, "border": "clamp", "stride": 2}),
    (1, 4, 1, (7,), {"kernel_size": 3, "padding": 1, "border": "reflect"}),
]


def draw(B, C, G, size, named, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, C, *size, generator=generator)
    k = named["kernel_size"]
    kernel = (k,) * len(size) if isinstance(k, int) else k
    T = torch.Size(kernel).numel()
    window = spell(x, torch.empty(B, G, T, *[1] * len(size)), **{"stride": 1, "padding": 0, "dilation": 1,
        "border": "zeros", "group_order": "contiguous", "scale_factor": 1} | named).window  # fmt: skip
    weight = torch.randn(B, G, T, *window.out_size(size), generator=generator)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), window


@needs_triton
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_values_and_gradients(call, layout, interpreter):
    x, weight, window = draw(*call)
    if layout is torch.channels_last:
        if x.ndim == 3:
            pytest.skip("a line has one memory format")
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
    with ops.strategy("triton"):
        y = ops.pixel_conv(x, weight, **call[-1])
    grad = torch.randn_like(y)
    got = (y, *torch.autograd.grad(y, (x, weight), grad))
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    truth = reference.pixel_conv(*exact, **window._asdict())
    want = (truth, *torch.autograd.grad(truth, exact, grad.double()))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert x.ndim == 3 or y.is_contiguous(memory_format=layout)


@needs_triton
def test_half_precision_sums_in_float32(interpreter):
    x, weight, window = draw(1, 4, 2, (5, 5), {"kernel_size": 3, "padding": 1}, torch.float16)
    with ops.strategy("triton"):
        y = ops.pixel_conv(x, weight, kernel_size=3, padding=1)
    truth = reference.pixel_conv(x.double(), weight.double(), **window._asdict())
    assert y.dtype is torch.float16
    torch.testing.assert_close(y.double(), truth, rtol=1e-3, atol=1e-3)  # rounded once, to 11 bits


@needs_triton
def test_second_derivatives(interpreter):
    results = []
    for strategy in ("triton", "taps"):
        x, weight, _ = draw(1, 2, 1, (4, 4), {"kernel_size": 3})
        with ops.strategy(strategy):
            y = ops.pixel_conv(x, weight, kernel_size=3)
        grads = torch.autograd.grad((y**3).sum(), (x, weight), create_graph=True)
        results.append(torch.autograd.grad(sum((g**2).sum() for g in grads), (x, weight)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@needs_triton
@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [((3, 3, 3), torch.float32, "one or two spatial axes"), ((3, 3), torch.float64, "it takes torch.float32")],
    ids=["3-D", "float64"],
)
def test_what_it_does_not_take(size, dtype, reason, interpreter):
    x, weight, _ = draw(1, 2, 1, size, {"kernel_size": 2}, dtype)
    with ops.strategy("triton"), pytest.raises(StrategyError, match=reason):
        ops.pixel_conv(x, weight, kernel_size=2)


def test_on_a_cpu_it_is_no_choice():
    x, weight, _ = draw(1, 2, 1, (4, 4), {"kernel_size": 3})
    (row,) = [row for row in ops.explain("pixel_conv", x, weight, kernel_size=3).rows if row.strategy == "triton"]
    assert "run on CUDA devices" in row.reason
