# SPDX-License-Identifier: Apache-2.0
"""Strategy native of sample_conv: values and gradients against float64, every instruction set, index, and refusals."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convary import ops
from convary.errors import StrategyError
from convary.ops import native, reference

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
CHANNELS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 65]
COLUMNS = [1, 2, 6, 7, 8, 13, 14, 15, 16, 17, 28, 29, 33, 65]
PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def draw_call(data) -> tuple[tuple, dict]:
    """(x, weight, bias) and geometry with index of any call that sample_conv takes."""
    draw = data.draw
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    kind = draw(st.sampled_from(["dense", "dense", "pointwise", "thin", "grouped", "depthwise"]))
    groups = {"grouped": draw(st.integers(2, 4)), "depthwise": draw(st.sampled_from(CHANNELS))}.get(kind, 1)
    C_group, O_group = (1, 1) if kind == "depthwise" else (draw(st.sampled_from(CHANNELS)) for _ in range(2))
    point, thin = kind in ("pointwise", "thin"), kind == "thin"  # thin: every input is read once, where it lies
    kernel_size = [1 if point else draw(st.integers(1, 4)) for _ in range(rank)]
    geometry = {
        "stride": [1 if thin else draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)],
        "padding": [0 if thin else draw(st.sampled_from([0, 0, 1, 3])) for _ in range(rank)],
        "dilation": [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)],
        "groups": groups if not thin else draw(st.integers(1, 3)),
    }
    G = geometry["groups"]
    reach = [d * (k - 1) for k, d in zip(kernel_size, geometry["dilation"], strict=True)]
    size = [draw(st.sampled_from(COLUMNS if i == rank - 1 else [1, 2, 3, 9])) + r for i, r in enumerate(reach)]
    B, N, indexed = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.booleans())
    N = N if indexed else B
    torch.manual_seed(draw(st.integers(0, 2**31)))
    index = torch.randint(0, B, (N,), dtype=draw(st.sampled_from([torch.int32, torch.int64]))) if indexed else None
    x = torch.randn(B, C_group * G, *size)
    weight = torch.randn(N, O_group * G, C_group, *kernel_size)
    bias = draw(st.sampled_from([None, torch.randn(weight.shape[1]), torch.randn(weight.shape[:2])]))
    return (x, weight, bias), {**geometry, "index": index}


def results(function, call: tuple, arguments: dict, dtype: torch.dtype, grad: torch.Tensor | None = None) -> list:
    """Y and the gradients of sum(grad * y): x's, weight's and, where there is one, bias's."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in call if t is not None]
    y = function(*leaves, *[None] * (3 - len(leaves)), **arguments)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]


def run(call: tuple, arguments: dict, grad: torch.Tensor | None = None) -> list:
    """The same by strategy native; whatever it leaves unwritten is NaN."""
    poisoned = mock.patch("convary.ops.native.call.empty", lambda like, shape: torch.full(shape, torch.nan))
    with ops.strategy("native"), poisoned:
        return results(ops.sample_conv, call, arguments, torch.float32, grad)


def check(call: tuple, arguments: dict) -> None:
    """Each sum of n products within n roundings of the truth, relative to the same sum of absolute values."""
    wants = results(reference.sample_conv, call, arguments, torch.float64)
    grad = torch.randn(wants[0].shape, generator=torch.Generator().manual_seed(1)).abs()
    size = [None if t is None else t.abs() for t in call]
    bounds = results(reference.sample_conv, size, arguments, torch.float64, grad)
    x, weight = call[:2]
    terms = max(weight[0].numel(), wants[0][0].numel(), weight[:, :, 0].numel()) + 8
    for i, (got, want, bound) in enumerate(zip(run(call, arguments), wants, bounds, strict=True)):
        error = (got.double() - want).abs()
        assert (error <= bound * terms * 2**-23 + 1e-30).all(), f"{i} {x.shape} {weight.shape} {arguments}"


def edge_call(B, N, C, O, size, k, groups, *, indexed: bool) -> tuple[tuple, dict]:
    torch.manual_seed(0)
    x, weight = torch.randn(B, C, *size), torch.randn(N if indexed else B, O, C // groups, k, k)
    index = torch.randint(0, B, (N,)) if indexed else None
    return (x, weight, None), {**PLAIN, "padding": (k // 2, k // 2), "groups": groups, "index": index}


EDGES = [
    (2, 3, 8, 40, (40, 37), 3, 1),  # several windows of rows
    (2, 5, 600, 33, (3, 5), 3, 1),  # several blocks of channels
    (2, 3, 20, 150, (7, 7), 3, 1),  # several panels
    (1, 3, 40, 40, (100, 120), 3, 40),  # depthwise in windows
    (2, 5, 20, 70, (1, 1), 1, 1),  # one position
    (2, 3, 6, 6, (1, 3000), 3, 1),  # rows longer than a window
    (2, 3, 6, 6, (1, 9000), 3, 6),
    (2, 40, 8, 8, (100, 152), 1, 1),  # CondInst's heads
    (3, 9, 10, 1, (37, 53), 1, 1),
    (2, 4, 32, 32, (9, 15), 1, 1),  # the last thin one, and the first that is not
    (2, 4, 33, 32, (9, 15), 1, 1),
]


@needs_library
class TestValues:
    @settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_geometry(self, data):
        check(*draw_call(data))

    @pytest.mark.parametrize("indexed", [False, True])
    @pytest.mark.parametrize("sizes", EDGES)
    def test_block_edges(self, sizes, indexed):
        check(*edge_call(*sizes, indexed=indexed))

    @pytest.mark.parametrize("indexed", [False, True])
    def test_one_tap_at_each_phase_of_the_stride(self, indexed):
        """The gradient of each row of x is a 1x1 convolution, with weights out of a larger kernel."""
        x, weight = torch.randn(2, 5, 2, 40), torch.randn(3 if indexed else 2, 6, 5, 2, 1)
        index = torch.tensor([1, 0, 1]) if indexed else None
        check((x, weight, None), {**PLAIN, "stride": (2, 1), "index": index})

    @pytest.mark.parametrize(("k", "groups"), [(1, 1), (3, 1), (3, 8)])
    def test_images_without_instances_have_no_gradient(self, k, groups):
        x, weight = torch.randn(5, 8, 9, 9), torch.randn(4, 8, 8 // groups, k, k)
        call, arguments = (x, weight, None), {**PLAIN, "groups": groups, "index": torch.tensor([3, 1, 3, 3])}
        check(call, arguments)
        grad_x = run(call, arguments)[1]
        assert (grad_x[[0, 2, 4]] == 0).all()
        assert (grad_x[[1, 3]] != 0).any(1).all()

    @pytest.mark.parametrize(("k", "groups"), [(1, 1), (3, 1), (3, 40)])
    def test_threads_do_not_change_the_result(self, k, groups):
        call, arguments = edge_call(3, 20, 40, 40, (20, 20), k, groups, indexed=True)
        first = run(call, arguments)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            again = run(call, arguments)
            torch.set_num_threads(1)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("poison", [torch.nan, torch.inf])
    @pytest.mark.parametrize(
        ("size", "k", "groups"),
        [((20, 20), 1, 1), ((9, 9), 3, 1), ((40, 37), 3, 1), ((99, 100), 3, 18), ((9, 9), 3, 18)],
    )
    def test_nothing_leaks_from_an_instance(self, size, k, groups, poison):
        """An instance of NaN or Inf changes no bit of the others; of x it changes its own image's gradient only."""
        call, arguments = edge_call(3, 4, 18, 18, size, k, groups, indexed=True)
        arguments["index"] = torch.tensor([2, 0, 0, 1])
        x, weight, _ = call
        grad = torch.randn(4, 18, *size)
        clean = run(call, arguments, grad)
        for n, image in enumerate(arguments["index"].tolist()):
            kept, images = [i for i in range(4) if i != n], [b for b in range(3) if b != image]
            for changed in ("weight", "grad"):
                other = {"weight": weight.clone(), "grad": grad.clone()}
                other[changed][n] = poison
                y, grad_x, grad_weight = run((x, other["weight"], None), arguments, other["grad"])
                assert torch.equal(y[kept], clean[0][kept])
                assert torch.equal(grad_x[images], clean[1][images])
                assert torch.equal(grad_weight[kept], clean[2][kept])

    def test_memory_formats_and_strides(self):
        x, weight, index = torch.randn(2, 6, 9, 9), torch.randn(3, 8, 6, 3, 3), torch.tensor([1, 0, 1])
        with ops.strategy("native"):
            want = ops.sample_conv(x, weight, index=index)
            last = ops.sample_conv(x.to(memory_format=torch.channels_last), weight, index=index)
            assert last.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(last, want)
            strided = torch.stack([index, index], 1)[:, 0]
            assert torch.equal(ops.sample_conv(x, weight.mT.contiguous().mT, index=strided), want)

    def test_only_what_is_asked_for(self):
        (x, weight, _), arguments = edge_call(2, 3, 4, 5, (6, 6), 3, 1, indexed=True)
        for needed in range(3):
            leaves = [x.clone(), weight.clone(), torch.randn(5)]
            leaves[needed].requires_grad_()
            with ops.strategy("native"):
                ops.sample_conv(*leaves, **arguments).sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == needed for i in range(3)]

    def test_double_backward(self):
        call, arguments = edge_call(2, 3, 4, 5, (6, 6), 3, 1, indexed=True)
        found = []
        for function, dtype in ((ops.sample_conv, torch.float32), (reference.sample_conv, torch.float64)):
            leaves = [t.to(dtype).requires_grad_() for t in (*call[:2], torch.ones(5))]
            with ops.strategy("native" if dtype is torch.float32 else None):
                y = function(*leaves, **arguments)
            first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    def test_features_are_not_copied_for_instances(self):
        """What the graph holds on to is x, weight and index; and the forward asks for y's memory only."""
        (x, weight, _), arguments = edge_call(2, 50, 8, 8, (20, 20), 1, 1, indexed=True)
        saved, asked = [], []
        empty = mock.patch(
            "convary.ops.native.call.empty", lambda like, shape: asked.append(shape) or torch.empty(shape)
        )
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
        with ops.strategy("native"), hooks, empty:
            ops.sample_conv(x, weight.requires_grad_(), **arguments)
        assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in (x, weight, arguments["index"])}
        assert asked == [(50, 8, 20, 20)]


@needs_library
class TestRefusals:
    def test_dtype(self):
        x, weight = torch.randn(2, 4, 6, 6).double(), torch.randn(2, 4, 4, 3, 3).double()
        with ops.strategy("native"), pytest.raises(StrategyError, match=r"native kernels take torch.float32, .*; use"):
            ops.sample_conv(x, weight)

    def test_rank(self):
        with ops.strategy("native"), pytest.raises(StrategyError, match="one or two spatial axes"):
            ops.sample_conv(torch.randn(2, 4, 6, 6, 6), torch.randn(2, 4, 4, 3, 3, 3))

    def test_functorch(self):
        weight = torch.randn(2, 4, 4, 3, 3)
        with ops.strategy("native"), pytest.raises(StrategyError, match=r"torch.func"):
            torch.func.grad(lambda x: ops.sample_conv(x, weight).sum())(torch.randn(2, 4, 6, 6))

    def test_index_of_another_type(self):
        class Mine(torch.Tensor):
            pass

        index = torch.tensor([1, 0, 1]).as_subclass(Mine)
        with ops.strategy("native"), pytest.raises(StrategyError, match="index is a Mine, whose memory"):
            ops.sample_conv(torch.randn(2, 4, 6, 6), torch.randn(3, 4, 4, 3, 3), index=index)

    def test_explain_has_the_reason(self):
        x, weight = torch.randn(2, 4, 6), torch.randn(2, 4, 4, 3)
        rows = {row.strategy: row for row in ops.explain(ops.sample_conv, x, weight).rows}
        assert rows["native"].reason is None
        rows = {row.strategy: row for row in ops.explain(ops.sample_conv, x.double(), weight.double()).rows}
        assert "float64" in rows["native"].reason


@needs_library
def test_instances_are_chosen_to_run_native():
    """Many instances of two images: every other strategy copies the features, or calls a convolution for each."""
    x, weight = torch.randn(2, 8, 100, 152), torch.randn(100, 8, 8, 1, 1)
    assert ops.explain(ops.sample_conv, x, weight, index=torch.arange(100) % 2).chosen == "native"


@needs_library
def test_every_instruction_set(another_isa):
    TestValues().test_any_geometry()
    for sizes in EDGES[::3]:
        check(*edge_call(*sizes, indexed=True))
