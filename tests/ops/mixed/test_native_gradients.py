# SPDX-License-Identifier: Apache-2.0
"""Gradients of strategy native: against float64, deterministic, twice, and the raw C ABI."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convary import ops
from convary.ops import Coefficients, native, reference
from convary.ops.native.call import ConvSizes
from convary.ops.native.library import loaded
from tests.ops.mixed.calls import draw_call

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


def leaves_of(call: tuple, dtype: torch.dtype) -> list[torch.Tensor]:
    x, bank, coeffs, bias = call
    tensors = [x, bank, *coeffs.factors().values(), *([] if bias is None else [bias])]
    return [t.detach().to(dtype).requires_grad_() for t in tensors]


def gradients(function, call: tuple, geometry: dict, dtype: torch.dtype, weight: torch.Tensor | None = None):
    """Gradients of sum(weight * y) for every tensor of a call."""
    leaves = leaves_of(call, dtype)
    x, bank, *rest = leaves
    names = list(call[2].factors())
    coeffs = Coefficients(**dict(zip(names, rest, strict=False)))
    y = function(x, bank, coeffs, rest[-1] if call[3] is not None else None, **geometry)
    if weight is None:
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        weight = torch.empty_like(y, dtype=torch.float32).copy_(weight)  # in y's memory format
    return torch.autograd.grad(y, leaves, weight.to(dtype), allow_unused=True)


def check(call: tuple, geometry: dict) -> None:
    wants = gradients(reference.mixed_conv, call, geometry, torch.float64)
    with ops.strategy("native"):
        gots = gradients(ops.mixed_conv, call, geometry, torch.float32)
    sizes = [tuple(t.shape) for t in (call[0], call[1])]
    for i, (got, want) in enumerate(zip(gots, wants, strict=True)):
        assert (got is None) == (want is None), i
        if got is not None:
            assert got.shape == want.shape
            scale = want.abs().max().clamp_min(1e-3)
            assert (got.double() - want).abs().max() <= 2e-4 * scale, f"{i} {sizes} {geometry}"


def dense_call(B, C, O, K, size, k, groups) -> tuple[tuple, dict]:
    torch.manual_seed(0)
    x, bank = torch.randn(B, C, *size), torch.randn(K, O, C // groups, k, k)
    geometry = {"stride": (1, 1), "padding": (k // 2, k // 2), "dilation": (1, 1), "groups": groups}
    return (x, bank, Coefficients(kernel=torch.randn(B, K)), None), geometry


@needs_library
class TestGradients:
    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_geometry(self, data):
        check(*draw_call(data))

    @pytest.mark.parametrize(
        "sizes",
        [
            (2, 8, 40, 4, (40, 37), 3, 1),  # several windows of rows
            (6, 300, 70, 2, (7, 7), 3, 1),  # several blocks of channels and of outputs
            (5, 300, 130, 49, (4, 4), 1, 1),  # many kernels
            (1, 40, 40, 3, (100, 120), 3, 40),  # depthwise in windows
            (2, 6, 6, 2, (1, 3000), 3, 1),  # rows longer than a window
            (2, 6, 6, 2, (1, 9000), 3, 6),
        ],
    )
    def test_block_edges(self, sizes):
        check(*dense_call(*sizes))

    @pytest.mark.parametrize("needed", range(4))
    def test_only_what_is_asked_for(self, needed):
        (x, bank, coeffs, _), geometry = dense_call(2, 3, 4, 2, (5, 5), 3, 1)
        leaves = [x, bank, coeffs.kernel, torch.randn(4)]
        leaves[needed].requires_grad_()
        with ops.strategy("native"):
            y = ops.mixed_conv(x, bank, coeffs, leaves[3], **geometry)
        y.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == needed for i in range(4)]

    def test_runs_alike_twice(self):
        call, geometry = dense_call(9, 40, 70, 4, (7, 7), 3, 1)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with ops.strategy("native"):
                first, second = (gradients(ops.mixed_conv, call, geometry, torch.float32) for _ in range(2))
            torch.set_num_threads(1)
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_x_gradient_of_a_sample_does_not_see_its_neighbours(self):
        call, geometry = dense_call(6, 40, 33, 4, (7, 7), 3, 1)
        weight = torch.randn(6, 33, 7, 7)
        other = weight.clone()
        other[2] = torch.nan
        with ops.strategy("native"):
            a, b = (gradients(ops.mixed_conv, call, geometry, torch.float32, w)[0] for w in (weight, other))
        kept = [0, 1, 3, 4, 5]
        assert torch.equal(a[kept], b[kept])

    @pytest.mark.parametrize("poison", [torch.nan, torch.inf])
    @pytest.mark.parametrize(
        "sizes",
        [
            (3, 18, 18, 2, (99, 100), 3, 18),  # depthwise windows of unequal height
            (3, 18, 18, 2, (1, 9001), 5, 18),
            (6, 20, 33, 2, (7, 7), 3, 1),
            (3, 20, 33, 2, (40, 37), 3, 1),
        ],
    )
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_nothing_leaks_from_a_sample(self, sizes, poison, layout):
        """A sample of NaN or Inf changes no bit of another one's y, gradient of x or gradients of coefficients."""
        ((x, bank, _, _), geometry), K = dense_call(*sizes), sizes[3]
        B, C, O = sizes[:3]
        factors = {"kernel": torch.randn(B, K), "filter": torch.randn(B, K, O), "channel": torch.randn(B, 1, C)}
        x, weight = (t.contiguous(memory_format=layout) for t in (x, torch.randn(B, O, *sizes[4])))
        clean = self.per_sample(x, bank, factors, weight, geometry)
        for spoiled in range(B):
            kept = [b for b in range(B) if b != spoiled]
            for changed in ("x", "weight", "kernel"):
                tensors = {"x": x, "weight": weight, "kernel": factors["kernel"]}
                tensors[changed] = tensors[changed].clone()
                tensors[changed][spoiled] = poison
                other = factors | {"kernel": tensors["kernel"]}
                found = self.per_sample(tensors["x"], bank, other, tensors["weight"], geometry)
                assert all(torch.equal(a[kept], b[kept]) for a, b in zip(clean, found, strict=True)), changed

    def per_sample(self, x, bank, factors, weight, geometry) -> list[torch.Tensor]:
        """What has a row for each sample."""
        call = (x, bank, Coefficients(**factors), None)
        with ops.strategy("native"):
            grad_x, _, *grads = gradients(ops.mixed_conv, call, geometry, torch.float32, weight)
            return [ops.mixed_conv(*call, **geometry), grad_x, *grads]

    @pytest.mark.parametrize("size", [(99, 100), (37, 333), (1, 9001), (9, 9)])
    @pytest.mark.parametrize("C", [3, 16, 33])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_nothing_leaks_from_a_depthwise_channel(self, C, size, layout):
        (x, *rest), geometry = dense_call(2, C, C, 2, size, 3, C)
        call = (x.contiguous(memory_format=layout), *rest)
        with ops.strategy("native"):
            clean = gradients(ops.mixed_conv, call, geometry, torch.float32)[1]
            for spoiled in {0, min(15, C - 1), C - 1}:
                x = call[0].clone()
                x[:, spoiled] = torch.inf
                found = gradients(ops.mixed_conv, (x, *call[1:]), geometry, torch.float32)[1]
                kept = [c for c in range(C) if c != spoiled]
                assert torch.equal(clean[:, kept], found[:, kept])

    def test_double_backward(self):
        call, geometry = dense_call(2, 3, 4, 2, (5, 5), 3, 1)
        results = []
        for function, dtype in ((ops.mixed_conv, torch.float32), (reference.mixed_conv, torch.float64)):
            x, bank, kernel, bias = leaves_of((*call[:3], torch.ones(4)), dtype)
            with ops.strategy("native" if dtype is torch.float32 else None):
                y = function(x, bank, Coefficients(kernel=kernel), bias, **geometry)
            first = torch.autograd.grad(y.square().sum(), (x, bank, kernel, bias), create_graph=True)
            results.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, bank, kernel, bias)))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    def test_keeps_no_mixed_kernels(self):
        """What the graph holds on to is x, the bank and the coefficients, all of which exist anyway."""
        (x, bank, coeffs, _), geometry = dense_call(4, 8, 8, 3, (5, 5), 3, 1)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            with ops.strategy("native"):
                ops.mixed_conv(x, bank.requires_grad_(), coeffs, **geometry)
        assert {t.data_ptr() for t in saved} == {x.data_ptr(), bank.data_ptr(), coeffs.kernel.data_ptr()}


SIZES = [name for name, kind in ConvSizes._fields_ if kind is ctypes.c_int64]
ABSENT = dict.fromkeys(("pad_h", "pad_w", "half", "half_bank", "bounded"), 0)
SMALL = dict.fromkeys(SIZES, 1) | {"B": 2, "C": 3, "H": 4, "W": 4, "O": 5, "K": 2} | ABSENT


def buffers() -> dict[str, list[torch.Tensor]]:
    """Tensors for SMALL, by entry point."""
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    bank, factors = torch.randn(2, 5, 3), [torch.randn(2, 2), torch.randn(2, 5), torch.randn(2, 3), torch.randn(2, 1)]
    sums = [torch.full((64, n), torch.nan) for n in (15, 4, 20, 12)]
    return {
        "mixed_conv_grad_x": [y, bank, *factors, torch.full((2, 3, 4, 4), torch.nan)],
        "mixed_conv_grad_bank": [x, y, bank, *factors, *sums],
    }


def raw(name: str, sizes: dict, tensors: list) -> int:
    structure = ConvSizes(**sizes)
    pointers = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in tensors]
    return loaded().entries[name](ctypes.addressof(structure), *pointers)


@needs_library
@pytest.mark.parametrize("name", ["mixed_conv_grad_x", "mixed_conv_grad_bank"])
class TestRawInterface:
    """What only the C ABI can be given; a crash here would end the test run."""

    def test_good(self, name):
        assert raw(name, SMALL, buffers()[name]) == 0

    @pytest.mark.parametrize("size", SIZES)
    def test_bad_sizes(self, name, size):
        tensors = buffers()[name]
        assert raw(name, SMALL | {size: -1}, tensors) == 3
        assert raw(name, SMALL | {size: 2**31}, tensors) == 4
        assert tensors[-1].isnan().all()

    @pytest.mark.parametrize("change", [{"G": 2}, {"kernel_h": 0}, {"stride_w": 0}, {"tap_rows": 3}, {"K": 0}])
    def test_no_convolution(self, name, change):
        assert raw(name, SMALL | change, buffers()[name]) == 8

    def test_null_pointers(self, name):
        count = len(buffers()[name])
        optional = {"mixed_conv_grad_x": (2, 3, 4, 5), "mixed_conv_grad_bank": (3, 4, 5, 6, 9, 10)}[name]
        for missing in range(count):
            tensors: list = buffers()[name]
            tensors[missing] = None
            assert raw(name, SMALL, tensors) == (0 if missing in optional else 1), missing

    def test_overlap(self, name):
        tensors = buffers()[name]
        tensors[0] = tensors[-1]
        assert raw(name, SMALL, tensors) == 5

    @settings(deadline=None, max_examples=100)
    @given(st.data())
    def test_no_sizes_crash_it(self, name, data):
        any_size = st.one_of(st.integers(-1, 40), st.integers(-(2**63), 2**63 - 1), st.integers(2**28, 2**31))
        sizes = {size: data.draw(any_size) for size in SIZES}
        assert raw(name, sizes, [None] * len(buffers()[name])) in (0, 1, 3, 4, 8)


@needs_library
def test_every_instruction_set(another_isa):
    TestGradients().test_any_geometry()
    check(*dense_call(6, 300, 70, 2, (7, 7), 3, 1))
    check(*dense_call(2, 8, 40, 4, (40, 37), 3, 1))
    check(*dense_call(1, 40, 40, 3, (100, 120), 3, 40))
