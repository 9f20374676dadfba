# SPDX-License-Identifier: Apache-2.0
"""Strategy native of pixel_conv: values and gradients against float64, every instruction set, and refusals."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convary import ops
from convary.errors import StrategyError
from convary.ops import native, reference
from tests.ops.pixel.calls import assert_close, draw_call, results, window_of

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


def run(x, weight, arguments: dict, grad=None) -> list[torch.Tensor]:
    """Y and both gradients by strategy native; whatever it leaves unwritten is NaN."""
    poisoned = mock.patch("convary.ops.native.call.empty", lambda like, shape: torch.full(tuple(shape), torch.nan))
    with ops.strategy("native"), poisoned:
        return results(ops.pixel_conv, x, weight, arguments, torch.float32, grad)


def check(x, weight, arguments: dict) -> None:
    x, weight = x.float(), weight.float()  # so that the truth starts from the same numbers
    assert_close(run(x, weight, arguments), x.double(), weight.double(), arguments, torch.float32)


def wide(B, C, G, size, k, **arguments) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """A call that keeps the size of x."""
    torch.manual_seed(0)
    d, f = arguments.get("dilation", 1), arguments.get("scale_factor", 1)
    arguments = {"kernel_size": k, "padding": d * (k // 2), **arguments}
    return torch.randn(B, C, *size), torch.randn(B, G, k ** len(size), *(f * s for s in size)), arguments


EDGES = [
    wide(1, 8, 2, (40, 150), 3),  # several runs of columns
    wide(1, 8, 2, (3, 129), 3, border="clamp"),
    wide(1, 5, 1, (9, 65), 5, border="reflect", scale_factor=2),
    wide(1, 100, 1, (12, 300), 5),  # several blocks of channels
    wide(1, 150, 1, (9, 5), 3, dilation=2, border="circular"),
    wide(2, 4, 4, (90, 17), 3, dilation=9),  # lines too far apart to be kept
    wide(1, 6, 3, (12, 11), 5, dilation=2, group_order="interleaved", border="replicate"),
    wide(1, 4, 2, (3, 40), 3, dilation=19),  # margins that are mostly zeros
    wide(1, 4, 2, (2, 9), 3, dilation=90),  # wider than it pays to multiply
    wide(1, 4, 2, (1000,), 31),
    wide(1, 70, 70, (5, 7), 3),
]


@needs_library
class TestValues:
    @settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_geometry(self, data):
        check(*draw_call(data, ranks=(1, 2, 2)))

    @pytest.mark.parametrize("call", EDGES, ids=lambda call: f"{tuple(call[0].shape)} {call[2]}")
    def test_block_edges(self, call):
        check(*call)

    @pytest.mark.parametrize("call", EDGES[::2], ids=lambda call: f"{tuple(call[0].shape)} {call[2]}")
    def test_threads_do_not_change_the_result(self, call):
        first = run(*call)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            again = run(*call)
            torch.set_num_threads(1)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("poison", [torch.nan, torch.inf])
    @pytest.mark.parametrize("changed", ["x", "weight", "grad"])
    @pytest.mark.parametrize("border", ["zeros", "circular", "clamp"])
    @pytest.mark.parametrize("size", [(6, 21), (5, 5)])
    def test_nothing_leaks_from_a_sample(self, size, border, changed, poison):
        """A sample of NaN or Inf changes no bit of the others; a position reaches as far as the kernel does."""
        x, weight, arguments = wide(3, 6, 2, size, 3, border=border)
        grad = torch.randn(x.shape)
        clean = run(x, weight, arguments, grad)
        tensors = {"x": x.clone(), "weight": weight.clone(), "grad": grad.clone()}
        tensors[changed][1] = poison
        found = run(tensors["x"], tensors["weight"], arguments, tensors["grad"])
        for a, b in zip(clean, found, strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])
        tensors[changed][1] = {"x": x, "weight": weight, "grad": grad}[changed][1]
        tensors[changed][1, :, ..., 0, -1] = poison  # the end of a row: what follows it in memory stays as it was
        y, grad_x, grad_weight = run(tensors["x"], tensors["weight"], arguments, tensors["grad"])
        far = 3 if border == "clamp" else 2
        rows, columns = slice(far, size[0] - far), slice(far, size[1] - far)
        for a, b in zip(clean, (y, grad_x, grad_weight), strict=True):
            assert torch.equal(a[..., rows, columns], b[..., rows, columns])
        if border == "zeros":
            assert torch.equal(clean[0][..., 1, 0], y[..., 1, 0])
            assert torch.equal(clean[1][..., 1, 0], grad_x[..., 1, 0])

    def test_memory_formats_and_strides(self):
        x, weight, arguments = wide(2, 6, 3, (9, 8), 3)
        with ops.strategy("native"):
            want = ops.pixel_conv(x, weight, **arguments)
            last = ops.pixel_conv(x.to(memory_format=torch.channels_last), weight.mT.contiguous().mT, **arguments)
            assert torch.equal(last, want) and last.is_contiguous(memory_format=torch.channels_last)
            overlapping = x[:1].expand(2, -1, -1, -1)
            same = ops.pixel_conv(overlapping, weight[:1].expand(2, *weight.shape[1:]), **arguments)
            assert torch.equal(same, want[:1].expand(2, -1, -1, -1))
            negated = torch._neg_view(x)
            assert torch.equal(ops.pixel_conv(negated, weight, **arguments), -want)

    def test_only_what_is_asked_for(self):
        x, weight, arguments = wide(2, 6, 3, (9, 8), 3)
        for needed in range(2):
            leaves = [x.clone(), weight.clone()]
            leaves[needed].requires_grad_()
            with ops.strategy("native"):
                ops.pixel_conv(*leaves, **arguments).sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == needed for i in range(2)]

    def test_double_backward(self):
        x, weight, arguments = wide(2, 6, 3, (5, 6), 3, border="reflect")
        spelled = window_of(x, weight, arguments)._asdict()
        found = []
        for function, options, dtype in (
            (ops.pixel_conv, arguments, torch.float32),
            (reference.pixel_conv, spelled, torch.float64),
        ):
            leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
            with ops.strategy("native" if dtype is torch.float32 else None):
                y = function(*leaves, **options)
            first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    def test_nothing_is_kept_but_the_inputs(self):
        """What the graph holds on to is x and weight; and each pass asks for the memory of its results only."""
        x, weight, arguments = wide(2, 6, 3, (9, 8), 3)
        x.requires_grad_()
        weight.requires_grad_()
        saved, asked = [], []
        empty = mock.patch(
            "convary.ops.native.call.empty", lambda like, shape: asked.append(tuple(shape)) or torch.empty(tuple(shape))
        )
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
        with ops.strategy("native"), hooks, empty:
            ops.pixel_conv(x, weight, **arguments).backward(torch.randn(x.shape))
        assert {t.data_ptr() for t in saved} == {x.data_ptr(), weight.data_ptr()}
        assert asked == [x.shape, x.shape, weight.shape]


@needs_library
class TestRefusals:
    def refused(self, match: str, x, weight, **arguments) -> None:
        usual = {"kernel_size": 3, "padding": 1} | arguments
        with ops.strategy("native"), pytest.raises(StrategyError, match=match):
            ops.pixel_conv(x, weight, **usual)
        got = ops.pixel_conv(x, weight, **usual)  # served by another strategy
        with ops.strategy("taps"):
            assert torch.equal(got, ops.pixel_conv(x, weight, **usual))

    def test_dtype(self):
        x, weight = torch.randn(2, 4, 6, 6).double(), torch.randn(2, 2, 9, 6, 6).double()
        self.refused("native kernels take torch.float32, .*; use one of taps", x, weight)

    def test_rank(self):
        self.refused("one or two spatial axes", torch.randn(2, 4, 5, 5, 5), torch.randn(2, 2, 27, 5, 5, 5))

    def test_type(self):
        class Mine(torch.Tensor):
            pass

        x, weight = torch.randn(2, 4, 6, 6), torch.randn(2, 2, 9, 6, 6)
        self.refused("a tensor is a Mine, whose memory", x, weight.as_subclass(Mine))

    def test_functorch(self):
        x, weight = torch.randn(2, 4, 6, 6), torch.randn(2, 2, 9, 6, 6)
        with ops.strategy("native"), pytest.raises(StrategyError, match=r"torch\.func"):
            torch.func.grad(lambda x: ops.pixel_conv(x, weight, kernel_size=3, padding=1).sum())(x)

    def test_sizes_beyond_32_bits(self):
        x, weight = torch.randn(1, 1, 1, 1), torch.randn(1, 1, 1, 1, 2)
        far = {"kernel_size": 1, "padding": (0, 2**30), "stride": (1, 2**31)}
        rows = {row.strategy: row for row in ops.explain("pixel_conv", x, weight, **far).rows}
        assert rows["native"].reason == "a size is beyond 32 bits"
        with ops.strategy("native"), pytest.raises(StrategyError, match="beyond 32 bits; use one of taps"):
            ops.pixel_conv(x, weight, **far)

    def test_device(self):
        x, weight = torch.randn(2, 4, 6, 6, device="meta"), torch.randn(2, 2, 9, 6, 6, device="meta")
        rows = {row.strategy: row for row in ops.explain("pixel_conv", x, weight, kernel_size=3, padding=1).rows}
        assert "a tensor is on meta" in rows["native"].reason

    def test_explain(self):
        x, weight = torch.randn(2, 4, 6, 6), torch.randn(2, 2, 9, 6, 6)
        told = ops.explain(ops.pixel_conv, x, weight, kernel_size=3, padding=1)
        assert (told.chosen, told.compiled, told.exported) == ("native", "native", "taps")
        without = ops.explain(ops.pixel_conv, x.double(), weight.double(), kernel_size=3, padding=1)
        assert (without.chosen, without.compiled) == ("taps", "taps")


@needs_library
def test_every_instruction_set(another_isa):
    TestValues().test_any_geometry()
    for call in EDGES[::2]:
        check(*call)
