# SPDX-License-Identifier: Apache-2.0
"""The native mixed convolution of bfloat16 as it lies, against float64 of the same numbers.

What is rounded: y and the gradient of x, once each, by at most 2^-8 of their size; and where the processor multiplies
pairs of bfloat16 (``avx512_bf16``), the mixed weights of a dense convolution, by as much, which is what a static
convolution in bfloat16 does to its own. The gradients of bank, coefficients and bias are sums in float32 of exact
products.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convary import ops
from convary.ops import Coefficients, native, reference
from convary.ops.native import call

pytestmark = pytest.mark.skipif(native.available() is not None, reason="the native library is absent")
K, STEP = 4, 2.0**-8
# B, C, O, size, kernel, stride, dilation, groups: odd channels, windows, blocks of channels, shared tiles of the bank
GEOMETRIES = [
    (3, 24, 40, 9, 3, 1, 1, 1),
    (1, 7, 5, 9, 3, 2, 1, 1),
    (3, 33, 17, 8, 1, 1, 1, 1),
    (5, 64, 64, 7, 1, 1, 1, 1),
    (6, 130, 66, 7, 3, 1, 1, 1),
    (1, 151, 32, 14, 3, 1, 1, 1),
    (2, 40, 42, 14, 3, 2, 2, 2),
    (2, 9, 48, 20, 1, 2, 1, 3),
    (3, 24, 24, 9, 3, 1, 1, 24),
    (2, 20, 20, 30, 5, 2, 1, 20),
    (1, 3, 16, 40, 3, 3, 1, 1),
]
AXES = ("kernel", "filter", "channel", "tap")


def _tensors(geometry: tuple[int, ...], rows: int, bank: torch.dtype, *, channels_last: bool) -> list[Tensor]:
    """x, bank, the four factors and a bias."""
    B, C, O, size, k, _, _, G = geometry
    torch.manual_seed(sum(geometry))
    x = torch.randn(B, C, size, size).bfloat16()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    shapes = [(K, O, C // G, k, k), (B, K), (B, rows, O), (B, rows, C), (B, rows, k * k), (O,)]
    scales = [(C // G * k * k) ** -0.5, *[0.5] * 5]
    return [x, *[((torch.randn(shape) / 2 + 1) * scale).to(bank) for shape, scale in zip(shapes, scales, strict=True)]]


def _run(op, tensors: list[Tensor], geometry: tuple[int, ...]) -> Tensor:
    x, bank, *factors, bias = tensors
    *_, k, stride, dilation, groups = geometry
    spelled = {"stride": (stride,) * 2, "padding": (k // 2,) * 2, "dilation": (dilation,) * 2, "groups": groups}
    return op(x, bank, Coefficients(**dict(zip(AXES, factors, strict=True))), bias, **spelled)


def _results(op, tensors: list[Tensor], geometry: tuple[int, ...], slope: Tensor | None = None) -> list[Tensor]:
    """The result and the gradients of all tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = _run(op, leaves, geometry)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y) if slope is None else slope.to(y.dtype))]


def _check(geometry: tuple[int, ...], rows: int, bank: torch.dtype, *, channels_last: bool) -> None:
    tensors = _tensors(geometry, rows, bank, channels_last=channels_last)
    double = [t.double() for t in tensors]
    slope = torch.randn(_run(reference.mixed_conv, double, geometry).shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=bank is torch.float32), ops.strategy("native"):
        got = _results(ops.mixed_conv, tensors, geometry, slope)
    want = _results(reference.mixed_conv, double, geometry, slope)
    sizes = _results(reference.mixed_conv, [t.abs() for t in double], geometry, slope.abs())
    rounded = native.isa() == "avx512_bf16" and not geometry[-1] == geometry[1] == geometry[2]
    for i, (ours, exact, terms) in enumerate(zip(got, want, sizes, strict=True)):
        assert ours.dtype is ([torch.bfloat16] * 2 + [bank] * 6)[i]
        step = STEP if ours.dtype is torch.bfloat16 else 0.0
        allowed = step * exact.abs() + 1e-5 * terms.max() + (STEP * terms if rounded and i < 2 else 0.0)
        assert ((ours.double() - exact).abs() <= 1.01 * allowed).all(), f"result {i} of {geometry}"
    if channels_last and tensors[0].ndim == 4 and geometry[3] > 1:
        assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_and_gradients(geometry, channels_last):
    for rows, bank in itertools.product((1, K), (torch.float32, torch.bfloat16)):
        _check(geometry, rows, bank, channels_last=channels_last)


def test_every_instruction_set(another_isa):
    for i, geometry in enumerate(GEOMETRIES):
        bank = (torch.float32, torch.bfloat16)[i % 2]
        for channels_last in (False, True):
            _check(geometry, (1, K)[i // 2 % 2], bank, channels_last=channels_last)


@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[5]], ids=str)
def test_errs_no_more_than_a_static_convolution(geometry):
    """Which rounds its weights too; in the mean, where the bound above is one for the worst case."""
    x, bank, kernel, *_ = _tensors(geometry, 1, torch.float32, channels_last=False)
    coeffs = Coefficients(kernel=kernel)
    mixed = reference.mix_kernels(bank, coeffs)
    settings = {"stride": geometry[5], "padding": 1}
    with torch.autocast("cpu", torch.bfloat16), ops.strategy("native"):
        ours = ops.mixed_conv(x, bank, coeffs, **settings)
    for sample, weight, y in zip(x, mixed, ours, strict=True):
        exact = F.conv2d(sample.double(), weight.double(), **settings)
        static = F.conv2d(sample[None], weight.bfloat16(), **settings)[0]
        error, allowed = ((t.double() - exact).square().mean().sqrt() for t in (y, static))
        assert error <= 1.1 * allowed


def test_features_are_not_widened(monkeypatch):
    """Neither those of the result nor what is kept; under autocast banks stay as they are too."""
    tensors = _tensors(GEOMETRIES[0], 1, torch.float32, channels_last=False)
    seen: list[torch.dtype] = []

    def record(entry, sizes, *given):
        seen.extend(t.dtype for t in given if t is not None and t.ndim > 3)
        return called(entry, sizes, *given)

    called = call.call
    monkeypatch.setattr(call, "call", record)
    with torch.autocast("cpu", torch.bfloat16), ops.strategy("native"):
        _run(ops.mixed_conv, tensors, GEOMETRIES[0])
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_samples_do_not_see_each_other():
    geometry = GEOMETRIES[4]
    tensors = _tensors(geometry, 1, torch.bfloat16, channels_last=False)
    with torch.no_grad(), ops.strategy("native"):
        before = _run(ops.mixed_conv, tensors, geometry)
        tensors[0][2] = torch.nan
        after = _run(ops.mixed_conv, tensors, geometry)
    others = [0, 1, 3, 4, 5]
    assert after[2].isnan().all()
    assert torch.equal(before[others], after[others])


def test_an_empty_batch():
    x, bank, kernel, *_ = _tensors(GEOMETRIES[0], 1, torch.bfloat16, channels_last=False)
    y = ops.mixed_conv(x[:0], bank, Coefficients(kernel=kernel[:0]))
    assert y.shape == (0, 40, 7, 7)
    assert y.dtype is torch.bfloat16


def test_infinities_stay_where_they_are():
    """In the odd channel of a block too, whose pair has no second number."""
    geometry = (1, 7, 5, 9, 3, 1, 1, 1)
    tensors = _tensors(geometry, 1, torch.bfloat16, channels_last=False)
    tensors[0][0, 6, 4, 4] = torch.inf
    with torch.no_grad(), ops.strategy("native"):
        y = _run(ops.mixed_conv, tensors, geometry)
    touched = torch.zeros(9, 9, dtype=torch.bool)
    touched[3:6, 3:6] = True
    assert y[0][:, touched].isinf().all()
    assert y[0][:, ~touched].isfinite().all()
