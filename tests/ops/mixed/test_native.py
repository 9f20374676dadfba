# SPDX-License-Identifier: Apache-2.0
"""Strategy native of mixed_conv: values against float64, every instruction set, the raw C ABI, and what it refuses."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convary import ops
from convary.errors import ConvaryError, StrategyError
from convary.ops import Coefficients, native
from convary.ops.mixed.native import run
from convary.ops.native.call import ConvSizes
from convary.ops.native.library import loaded
from tests.ops.mixed.calls import assert_right, draw_call, truth

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


@needs_library
class TestValues:
    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_geometry(self, data):
        call, geometry = draw_call(data)
        with ops.strategy("native"), torch.no_grad():
            assert_right(ops.mixed_conv(*call, **geometry), *call, **geometry)

    @pytest.mark.parametrize(
        ("B", "C", "O", "K", "size", "k", "groups"),
        [
            (2, 8, 40, 4, (40, 37), 3, 1),  # several windows of rows
            (1, 600, 33, 2, (3, 5), 3, 1),  # several blocks of channels, one sample
            (9, 600, 70, 2, (7, 7), 3, 1),  # the same with a packed bank, samples left over
            (5, 300, 130, 49, (4, 4), 1, 1),  # many kernels
            (33, 20, 20, 3, (6, 6), 3, 1),  # several blocks of samples
            (1, 40, 40, 3, (100, 120), 3, 40),  # depthwise in windows
            (2, 20, 70, 3, (1, 1), 1, 1),  # one position
            (2, 6, 6, 2, (1, 3000), 3, 1),  # rows longer than a window
            (2, 6, 6, 2, (1, 9000), 3, 6),
        ],
    )
    def test_block_edges(self, B, C, O, K, size, k, groups):
        torch.manual_seed(0)
        call = (
            torch.randn(B, C, *size), torch.randn(K, O, C // groups, k, k), Coefficients(kernel=torch.randn(B, K)), None
        )  # fmt: skip
        geometry = {"stride": (1, 1), "padding": (k // 2, k // 2), "dilation": (1, 1), "groups": groups}
        with ops.strategy("native"):
            assert_right(ops.mixed_conv(*call, **geometry), *call, **geometry)

    @pytest.mark.parametrize("C", [16, 48, 24])  # whole vectors of every instruction set, and not
    @pytest.mark.parametrize(
        ("size", "k", "stride", "padding", "dilation"),
        [
            ((30, 33), (3, 3), (1, 1), (1, 1), (1, 1)),  # runs of positions and edges
            ((17, 20), (3, 5), (2, 1), (1, 2), (1, 1)),
            ((9, 8), (3, 3), (3, 2), (0, 2), (2, 3)),
            ((4, 3), (5, 5), (1, 1), (4, 3), (1, 1)),  # outputs that reach nothing but padding, none that reaches all
            ((70, 60), (3, 3), (1, 1), (1, 1), (1, 1)),  # several windows
        ],
    )
    def test_depthwise_with_channels_innermost(self, C, size, k, stride, padding, dilation):
        torch.manual_seed(0)
        B, K = 2, 3
        x, bank = torch.randn(B, C, *size), torch.randn(K, C, 1, *k)
        factors = {"filter": torch.rand(B, 1, C), "channel": torch.rand(B, K, C), "tap": torch.rand(B, 1, k[0] * k[1])}
        coeffs, bias = Coefficients(kernel=torch.randn(B, K), **factors), torch.randn(C)
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": C}
        last = x.to(memory_format=torch.channels_last).requires_grad_()
        with ops.strategy("native"):
            y = ops.mixed_conv(last, bank, coeffs, bias, **geometry)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_right(y.detach(), x, bank, coeffs, bias, **geometry)
        exact = x.double().requires_grad_()
        want = ops.reference.mixed_conv(exact, bank.double(), coeffs.to(torch.float64), bias.double(), **geometry)
        grad = torch.randn_like(want)
        (expected,) = torch.autograd.grad(want, exact, grad)
        (got,) = torch.autograd.grad(y, last, grad.float().to(memory_format=torch.channels_last))
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)

    def test_memory_formats_and_strides(self):
        x, bank, coeffs = torch.randn(2, 6, 9, 9), torch.randn(3, 8, 6, 3, 3), Coefficients(kernel=torch.randn(2, 3))
        with ops.strategy("native"):
            want = ops.mixed_conv(x, bank, coeffs)
            last = ops.mixed_conv(x.to(memory_format=torch.channels_last), bank, coeffs)
            assert last.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(last, want)
            x.requires_grad_()
            y = ops.mixed_conv(x.contiguous(memory_format=torch.channels_last), bank, coeffs)
            grad = torch.randn_like(y)
            assert grad.is_contiguous(memory_format=torch.channels_last)
            rows = grad.contiguous()
            assert torch.equal(*(torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in (grad, rows)))
            x = x.detach()
            wide = torch.randn(2, 12, 9, 9)
            wide[:, ::2] = x
            assert torch.equal(ops.mixed_conv(wide[:, ::2], bank, coeffs), want)
            assert torch.equal(ops.mixed_conv(x, bank.transpose(3, 4).contiguous().transpose(3, 4), coeffs), want)
            negated = torch.complex(torch.zeros(()), x).conj().imag  # -x as a lazy sign
            assert negated.is_neg()
            assert torch.equal(ops.mixed_conv(negated, bank, coeffs), -want)

    def test_threads_do_not_change_the_result(self):
        x, bank, coeffs = torch.randn(8, 64, 7, 7), torch.randn(4, 96, 64, 3, 3), Coefficients(kernel=torch.randn(8, 4))
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with ops.strategy("native"):
                results.append(ops.mixed_conv(x, bank, coeffs, padding=1))
        torch.set_num_threads(1)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])

    @pytest.mark.parametrize(("C", "O", "size", "groups"), [(40, 40, 7, 1), (40, 40, 30, 1), (40, 40, 7, 40)])
    def test_sample_does_not_see_its_neighbours(self, C, O, size, groups):
        x, bank = torch.randn(6, C, size, size), torch.randn(4, O, C // groups, 3, 3)
        kernel = torch.randn(6, 4)
        other, kernel_other = x.clone(), kernel.clone()
        other[3], kernel_other[2] = torch.nan, torch.inf
        with ops.strategy("native"):
            y = ops.mixed_conv(x, bank, Coefficients(kernel=kernel), groups=groups)
            changed = ops.mixed_conv(other, bank, Coefficients(kernel=kernel_other), groups=groups)
        kept = [0, 1, 4, 5]
        assert torch.equal(y[kept], changed[kept])


@needs_library
class TestRefusals:
    def call(self, **changes):
        arguments = {"x": torch.randn(2, 4, 6, 6), "bank": torch.randn(3, 4, 4, 3, 3), "kernel": torch.randn(2, 3)}
        arguments |= changes
        with ops.strategy("native"):
            return ops.mixed_conv(arguments["x"], arguments["bank"], Coefficients(kernel=arguments["kernel"]))

    def test_dtype(self):
        with pytest.raises(StrategyError, match=r"torch.float64, the native kernels take torch.float32, .*; use"):
            self.call(x=torch.randn(2, 4, 6, 6).double(), bank=torch.randn(3, 4, 4, 3, 3).double(),
                      kernel=torch.randn(2, 3).double())  # fmt: skip

    def test_rank(self):
        with pytest.raises(StrategyError, match="it takes one or two spatial axes"):
            self.call(x=torch.randn(2, 4, 6, 6, 6), bank=torch.randn(3, 4, 4, 3, 3, 3))

    def test_functorch(self):
        with pytest.raises(StrategyError, match=r"torch.func"):
            torch.func.grad(lambda x: self.call(x=x).sum())(torch.randn(2, 4, 6, 6))

    def test_forward_mode(self):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6))
            with pytest.raises(StrategyError, match="forward-mode"):
                self.call(x=dual)

    def test_subclass(self):
        class Mine(torch.Tensor):
            pass

        with pytest.raises(StrategyError, match="a tensor is a Mine"):
            self.call(x=torch.randn(2, 4, 6, 6).as_subclass(Mine))

    def test_explain_has_the_reason(self):
        x, bank, coeffs = torch.randn(2, 4, 6), torch.randn(3, 4, 4, 3), Coefficients(kernel=torch.randn(2, 3))
        rows = {row.strategy: row for row in ops.explain(ops.mixed_conv, x, bank, coeffs).rows}
        assert rows["native"].reason is None
        assert rows["native"].bytes < rows["grouped"].bytes
        coeffs = Coefficients(kernel=coeffs.kernel.double())
        told = ops.explain(ops.mixed_conv, x.double(), bank.double(), coeffs)
        assert "float64" in {row.strategy: row for row in told.rows}["native"].reason

    def test_a_refusing_library_is_an_error(self):
        x, bank, coeffs = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 1, 1, 1), Coefficients(kernel=torch.ones(1, 1))
        geometry = ops.geometry.Geometry((2**32, 1), (2**31, 0), (1, 1), 1)
        with pytest.raises(ConvaryError, match=r"larger than the address space; got B=1, C=1, H=4, .*pad_h=2147483648"):
            run(x, bank, coeffs, None, geometry)


SIZES = [name for name, kind in ConvSizes._fields_ if kind is ctypes.c_int64]


def raw(sizes: dict, *tensors) -> int:
    """The C function itself; a tensor may be None for a null pointer, or an address."""
    pointers = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in tensors]
    structure = ConvSizes(**sizes)
    return loaded().entries["mixed_conv"](ctypes.addressof(structure), *pointers)


def good() -> tuple[dict, list]:
    sizes = dict.fromkeys(SIZES, 1) | {
        "B": 2,
        "C": 3,
        "H": 4,
        "W": 4,
        "O": 5,
        "K": 2,
        "pad_h": 0,
        "pad_w": 0,
        "half": 0,
        "half_bank": 0,
        "bounded": 0,
    }
    tensors = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 3), torch.randn(2, 2), torch.randn(2, 5), torch.randn(2, 3),
               torch.randn(2, 1), torch.randn(5), torch.full((2, 5, 4, 4), torch.nan)]  # fmt: skip
    return sizes, tensors


@needs_library
class TestRawInterface:
    """What only the C ABI can be given; a crash here would end the test run."""

    def test_good(self):
        sizes, tensors = good()
        assert raw(sizes, *tensors) == 0
        assert tensors[-1].isfinite().all()

    @pytest.mark.parametrize("name", SIZES)
    def test_bad_sizes(self, name):
        sizes, tensors = good()
        assert raw(sizes | {name: -1}, *tensors) == 3
        assert raw(sizes | {name: 2**31}, *tensors) == 4
        assert raw(sizes | {name: 2**63 - 1}, *tensors) == 4
        assert tensors[-1].isnan().all()

    @pytest.mark.parametrize(
        "change",
        [
            {"G": 0}, {"G": 2}, {"kernel_h": 0}, {"stride_w": 0}, {"dilation_h": 0}, {"kernel_w": 5}, {"H": 0},
            {"filter_rows": 3}, {"channel_rows": 0}, {"channels_last": 2}, {"half": 2}, {"half_bank": 2},
            {"tap_rows": 3}, {"bias_rows": 3}, {"C": 0}, {"K": 0}, {"bounded": 2},
        ],
    )  # fmt: skip
    def test_no_convolution(self, change):
        sizes, tensors = good()
        assert raw(sizes | change, *tensors) == 8
        assert tensors[-1].isnan().all()

    @settings(deadline=None, max_examples=300)
    @given(
        st.fixed_dictionaries(
            {
                name: st.one_of(st.integers(-1, 40), st.integers(-(2**63), 2**63 - 1), st.integers(2**28, 2**31))
                for name in SIZES
            }
        )
    )
    def test_no_sizes_crash_it(self, sizes):
        # With null pointers a size that passes the checks ends at the pointer check, or is an empty output.
        assert raw(sizes, *[None] * 8) in (0, 1, 3, 4, 8)

    def test_sizes_that_only_fit_together_badly(self):
        sizes, tensors = good()
        most = 2**31 - 1
        assert raw(sizes | {"B": most, "C": most, "H": most, "W": most}, *tensors) == 4
        assert raw(sizes | {"pad_h": most, "pad_w": most, "B": most}, *tensors) == 4
        assert raw(sizes | {"kernel_h": most, "kernel_w": most, "pad_h": most, "pad_w": most}, *tensors) == 4

    @pytest.mark.parametrize("missing", [0, 1, 7])
    def test_null_pointer(self, missing):
        sizes, tensors = good()
        tensors[missing] = None
        assert raw(sizes, *tensors) == 1

    def test_null_sizes(self):
        assert loaded().entries["mixed_conv"](None, *[None] * 8) == 1

    @pytest.mark.parametrize("odd", range(8))
    def test_misaligned_pointer(self, odd):
        sizes, tensors = good()
        pointers = [t.data_ptr() for t in tensors]
        pointers[odd] += 1
        assert raw(sizes, *pointers) == 2

    @pytest.mark.parametrize("shared", range(7))
    def test_overlap(self, shared):
        sizes, tensors = good()
        tensors[shared] = tensors[-1]
        assert raw(sizes, *tensors) == 5

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_writes_all_of_the_output_and_nothing_else(self, data):
        (x, bank, coeffs, bias), geometry = draw_call(data)
        if x.ndim == 3:
            return
        y_shape = truth(x, bank, coeffs, bias, **geometry).shape
        guard = torch.full((y_shape.numel() + 64,), torch.nan)
        O, kernel_size = bank.shape[1], bank.shape[3:]
        names = ("kernel", "stride", "pad", "dilation")
        values = (kernel_size, geometry["stride"], geometry["padding"], geometry["dilation"])
        pairs = {f"{n}_{a}": v[i] for n, v in zip(names, values, strict=True) for i, a in enumerate("hw")}
        factors = [coeffs.filter, coeffs.channel, coeffs.tap]
        rows = dict(zip(("filter_rows", "channel_rows", "tap_rows"), (1 if f is None else f.shape[1] for f in factors),
                        strict=True))  # fmt: skip
        B, C, H, W = x.shape
        sizes = {"B": B, "C": C, "H": H, "W": W, "O": O, "K": bank.shape[0], "G": geometry["groups"], "bias_rows": 1,
                 "threads": 1, "channels_last": int(not x.is_contiguous()), **pairs, **rows}  # fmt: skip
        assert raw(sizes, x, bank, coeffs.kernel, *factors, None, guard[32:-32]) == 0
        y = guard[32:-32].view(y_shape)
        if not x.is_contiguous():
            y = guard[32:-32].view(B, *y_shape[2:], O).permute(0, 3, 1, 2)
        assert_right(y, x, bank, coeffs, None, **geometry)
        assert guard[:32].isnan().all()
        assert guard[-32:].isnan().all()


@needs_library
def test_every_instruction_set(another_isa):
    TestValues().test_any_geometry()
    TestRawInterface().test_writes_all_of_the_output_and_nothing_else()
    TestValues().test_block_edges(9, 600, 70, 2, (7, 7), 3, 1)
    TestValues().test_block_edges(2, 8, 40, 4, (40, 37), 3, 1)
    TestValues().test_block_edges(1, 40, 40, 3, (100, 120), 3, 40)
