# SPDX-License-Identifier: Apache-2.0
"""The native sample_conv as torch sees it: opcheck, compile, export, tracers and modes, with and without index."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import AotEagerAndRecordGraphs, EagerAndRecordGraphs
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from convary import ops
from convary.errors import ConfigError, ConvaryError, DtypeError, ShapeError
from convary.ops import native, reference

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

# instances (None: a kernel per sample), size, weight of one, bias, geometry; C is C/G times groups
CASES = {
    "bias per sample": (None, (6, 5), (8, 4, 3, 3), "row", (1, 1), (1, 1), (1, 1), 1),
    "instances, strided, static bias": (5, (7, 8), (6, 4, 3, 2), "static", (2, 1), (1, 0), (1, 2), 1),
    "instances, grouped, bias per instance": (2, (7, 9), (6, 2, 3, 3), "row", (1, 1), (2, 2), (2, 2), 2),
    "instances, depthwise": (7, (6, 6), (5, 1, 3, 3), None, (1, 1), (1, 1), (1, 1), 5),
    "instances, pointwise": (9, (9, 8), (3, 4, 1, 1), "row", (1, 1), (0, 0), (1, 1), 1),
    "line": (None, (9,), (5, 4, 3), "static", (1,), (1,), (1,), 1),
}
# Two for make test; the others are left to the slow tests.
FEW = [case if i < 2 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(CASES)]
INDEXED = "instances, strided, static bias"


def geometry_of(case: str) -> dict:
    return dict(zip(("stride", "padding", "dilation", "groups"), CASES[case][4:], strict=True))


def arguments(case: str, batch: int = 3, instances: int = 0, grow: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a call, those of float32 as leaves; other numbers and a larger map where asked for."""
    N, size, one, bias, *_, groups = CASES[case]
    rows = batch if N is None else instances or N
    given = {
        "x": torch.randn(batch, one[1] * groups, *(s + grow for s in size), requires_grad=True),
        "weight": torch.randn(rows, *one, requires_grad=True),
    }
    if bias is not None:
        given["bias"] = torch.randn((rows, one[0]) if bias == "row" else one[:1], requires_grad=True)
    if N is not None:
        given["index"] = torch.randint(0, batch, (rows,))
    return given


def operands(case: str) -> tuple[list, list]:
    """The operator's tensors and its geometry."""
    given = arguments(case)
    return [given.get(name) for name in ("x", "weight", "index", "bias")], list(CASES[case][4:])


class Layer(nn.Module):
    def __init__(self, case: str, op=ops.sample_conv):
        super().__init__()
        self.op, self.geometry = op, geometry_of(case)

    def forward(self, x, weight, bias=None, index=None):
        return self.op(x, weight, bias, index=index, **self.geometry)


def results(call, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The output and the gradients of every leaf, of some weighted sum of the output."""
    y = call(**given)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [t for t in given.values() if t.requires_grad], weight)]


def assert_as_the_reference(found: list[torch.Tensor], case: str, given: dict[str, torch.Tensor]) -> None:
    exact = {n: t.detach().double().requires_grad_() if t.is_floating_point() else t for n, t in given.items()}
    for got, want in zip(found, results(Layer(case, reference.sample_conv), exact), strict=True):
        assert got.shape == want.shape
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1)


def is_native(graph: object) -> bool:
    return "convary.sample_conv" in str(graph)


@pytest.mark.parametrize("case", FEW)
class TestOperators:
    """torch's own check: schema, fake tensors, autograd registration, ahead-of-time dispatch with symbolic sizes."""

    def test_forward(self, case):
        tensors, geometry = operands(case)
        torch.library.opcheck(torch.ops.convary.sample_conv.default, (*tensors, *geometry))

    def test_gradients(self, case):
        (x, weight, index, _), geometry = operands(case)
        x, weight = x.detach(), weight.detach()
        grad = torch.randn_like(torch.ops.convary.sample_conv(x, weight, index, None, *geometry))
        of_x, of_weight = torch.ops.convary.sample_conv_grad_x, torch.ops.convary.sample_conv_grad_weight
        torch.library.opcheck(of_x.default, (grad, list(x.shape), weight, index, *geometry))
        torch.library.opcheck(of_weight.default, (grad, x, weight, index, *geometry))


class TestOperatorArguments:
    """The operators are public to torch, and the kernels trust what they are told."""

    def call(self, **changes):
        usual = {"x": torch.randn(3, 4, 6, 6), "weight": torch.randn(5, 8, 4, 3, 3),
                 "index": torch.tensor([0, 2, 2, 1, 0]), "bias": None, "stride": [1, 1], "padding": [1, 1],
                 "dilation": [1, 1], "groups": 1}  # fmt: skip
        return torch.ops.convary.sample_conv(*(usual | changes).values())

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"index": None}, ShapeError, "weight has 5 samples but x has a batch of 3"),
            ({"index": torch.tensor([0, 1])}, ShapeError, "index is (2,) but weight has 5 kernels"),
            ({"index": torch.tensor([0, 1, 2, 3, 0])}, ShapeError, "index goes from 0 to 3 but x has images 0 to 2"),
            ({"index": torch.tensor([0, 1, -1, 2, 0])}, ShapeError, "index goes from -1 to 2"),
            ({"x": torch.randn(0, 4, 6, 6)}, ShapeError, "index goes from 0 to 2 but x has images 0 to -1"),
            ({"index": torch.zeros(5)}, DtypeError, "index is torch.float32"),
            ({"bias": torch.randn(3, 8)}, ShapeError, "bias is (3, 8); 5 kernels of 8 output channels"),
            ({"bias": torch.randn(8).double()}, DtypeError, "bias is torch.float64"),
            ({"weight": torch.randn(5, 8, 3, 3, 3)}, ShapeError, "groups must divide both channel counts"),
            ({"weight": torch.randn(5, 8, 4, 3, 3).double()}, DtypeError, "x is torch.float32 but the kernels are"),
            ({"stride": [0, 1]}, ConfigError, "stride must be"),
        ],
    )
    def test_forward(self, changes, error, message):
        with pytest.raises(error) as caught:
            self.call(**changes)
        assert message in str(caught.value)

    def test_double_precision(self):
        doubles = {"x": torch.randn(3, 4, 6, 6).double(), "weight": torch.randn(5, 8, 4, 3, 3).double()}
        with pytest.raises(DtypeError, match=r"sample_conv takes torch.float32; got torch.float64; cast, or force"):
            self.call(**doubles)

    def test_index_of_32_bits_and_with_a_stride(self):
        index = torch.tensor([0, 2, 2, 1, 0])
        usual = {"x": torch.randn(3, 4, 6, 6), "weight": torch.randn(5, 8, 4, 3, 3)}
        want = self.call(**usual, index=index)
        assert torch.equal(self.call(**usual, index=index.int()), want)
        assert torch.equal(self.call(**usual, index=torch.stack([index, index], 1)[:, 0]), want)

    def test_gradient_of_another_shape(self):
        (x, weight, index, _), geometry = operands(INDEXED)
        bad = torch.randn(5, 6, 4, 5)
        with pytest.raises(ShapeError, match=r"the gradient is \(5, 6, 4, 5\), torch.float32; that of y must be"):
            torch.ops.convary.sample_conv_grad_x(bad, x.shape, weight, index, *geometry)
        with pytest.raises(ShapeError, match=r"the gradient is \(5, 6, 4, 5\)"):
            torch.ops.convary.sample_conv_grad_weight(bad, x, weight, index, *geometry)

    def test_nothing_in_nothing_out(self):
        (x, weight, index, _), geometry = operands("instances, depthwise")
        none = index[:0], weight[:0].detach()
        assert torch.ops.convary.sample_conv(x, none[1], none[0], None, *geometry).shape == (0, 5, 6, 6)
        grad = torch.zeros(0, 5, 6, 6)
        of_x = torch.ops.convary.sample_conv_grad_x(grad, x.shape, none[1], none[0], *geometry)
        assert torch.equal(of_x, torch.zeros_like(x))
        (of_weight,) = torch.ops.convary.sample_conv_grad_weight(grad, x, none[1], none[0], *geometry)
        assert of_weight.shape == none[1].shape
        bias = torch.randn(5, 8)
        y = self.call(x=torch.randn(3, 0, 6, 6), weight=torch.randn(5, 8, 0, 3, 3), bias=bias)
        assert torch.equal(y, bias[:, :, None, None].expand(5, 8, 6, 6))

    def test_gradients_have_no_gradient(self):
        (x, weight, index, _), geometry = operands("instances, depthwise")
        grad = torch.randn(7, 5, 6, 6, requires_grad=True)
        with pytest.raises(ConvaryError, match=r"no gradient of their own; .*ops.strategy\('bmm'\)"):
            torch.ops.convary.sample_conv_grad_x(grad, x.shape, weight, index, *geometry).sum().backward()


class TestCompile:
    @pytest.mark.parametrize("case", FEW)
    def test_any_batch_instances_and_size_in_one_graph(self, case):
        torch._dynamo.reset()
        layer, backend = Layer(case), AotEagerAndRecordGraphs()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
        with torch._dynamo.config.patch(error_on_recompile=True):
            # Like sizes in the first call would share a symbol.
            for batch, instances, grow in ((11, 13, 0), (17, 5, 3), (7, 7, 1)):
                given = arguments(case, batch, instances, grow)
                found = results(compiled, given)
                assert_as_the_reference(found, case, given)
                with ops.strategy("native"):
                    wants = results(layer, given)
                for got, want in zip(found, wants, strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert len(backend.fw_graphs) == 1
        assert is_native(backend.fw_graphs[0].code)
        assert is_native(backend.bw_graphs[0].code)

    def test_static_shapes_and_index_of_32_bits(self):
        torch._dynamo.reset()
        given = arguments(INDEXED)
        given["index"] = given["index"].int()
        compiled = torch.compile(Layer(INDEXED), fullgraph=True, dynamic=False, backend="aot_eager")
        assert_as_the_reference(results(compiled, given), INDEXED, given)

    def test_inductor(self):
        torch._dynamo.reset()
        layer = Layer("instances, depthwise")  # without a bias nothing is left for the C++ compiler, which is slow
        compiled = torch.compile(layer, fullgraph=True, dynamic=True)
        for sizes in ((11, 13, 0), (5, 4, 3)):
            given = arguments("instances, depthwise", *sizes)
            assert_as_the_reference(results(compiled, given), "instances, depthwise", given)

    def test_channels_last(self):
        torch._dynamo.reset()
        given = {name: t.detach() for name, t in arguments(INDEXED).items()}
        given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
        y = torch.compile(Layer(INDEXED), fullgraph=True, backend="aot_eager")(**given)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, Layer(INDEXED)(**given), rtol=1e-4, atol=1e-4)

    def test_image_out_of_range(self):
        torch._dynamo.reset()
        given = arguments(INDEXED)
        compiled = torch.compile(Layer(INDEXED), fullgraph=True, backend="aot_eager")
        compiled(**given)
        with pytest.raises(ShapeError, match="index goes from 3 to 3 but x has images 0 to 2"):
            compiled(**given | {"index": torch.full_like(given["index"], 3)})

    def recorded(self, call, *tensors) -> bool:
        """Whether one graph of the call holds the native operator; the values are checked."""
        torch._dynamo.reset()
        backend = EagerAndRecordGraphs()
        got = torch.compile(call, fullgraph=True, backend=backend)(*tensors)
        torch.testing.assert_close(got, call(*tensors), rtol=0.1, atol=0.1)
        (graph,) = backend.graphs
        return is_native(graph.code)

    def test_takes_bmm_elsewhere(self):
        x, weight, index = torch.randn(3, 4, 6, 6), torch.randn(5, 8, 4, 3, 3), torch.tensor([0, 2, 2, 1, 0])

        def conv(x, weight):
            return ops.sample_conv(x, weight, index=index)

        assert self.recorded(conv, x, weight)
        assert not self.recorded(conv, x.double(), weight.double())
        with ops.strategy("bmm"):
            assert not self.recorded(conv, x, weight)
        assert not self.recorded(lambda *t: torch.func.grad(lambda *t: conv(*t).sum())(*t), x, weight)

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setattr(native.library, "_library", "nobody built it")
        assert not self.recorded(Layer("line"), *operands("line")[0][:3])


class TestWatchers:
    """Dispatch modes and tracers see one operator, or torch's own operations."""

    @pytest.mark.parametrize("forced", [None, "native"])
    def test_export(self, forced):
        layer, given = Layer(INDEXED), {name: t.detach() for name, t in arguments(INDEXED).items()}
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in given} | {"bias": None}
        with ops.strategy(forced):
            program = torch.export.export(layer, (), given, dynamic_shapes=dynamic, strict=False)
        assert is_native(program.graph) == (forced is not None)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        module = torch.export.load(file).module()
        for batch, instances in ((4, 9), (8, 2)):
            other = {name: t.detach() for name, t in arguments(INDEXED, batch, instances).items()}
            torch.testing.assert_close(module(**other), layer(**other), rtol=1e-4, atol=1e-4)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("forced", [None, "native"])
    def test_jit_trace(self, forced):
        layer = Layer(INDEXED)
        with ops.strategy(forced):
            traced = torch.jit.trace(layer, tuple(t.detach() for t in arguments(INDEXED).values()))
        assert ("convary::sample_conv" in str(traced.graph)) == (forced is not None)
        other = [t.detach() for t in arguments(INDEXED, 4, 9, 2).values()]
        torch.testing.assert_close(traced(*other), layer(*other), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    def test_make_fx(self, mode):
        layer = Layer(INDEXED)
        with ops.strategy("native"), torch.no_grad():
            graph = make_fx(layer, tracing_mode=mode)(*[t.detach() for t in arguments(INDEXED).values()])
            assert is_native(graph.code)
            other = [t.detach() for t in arguments(INDEXED).values()]
            torch.testing.assert_close(graph(*other), layer(*other), rtol=1e-4, atol=1e-4)

    def test_flops(self):
        with FlopCounterMode(display=False) as counter, ops.strategy("native"):
            Layer(INDEXED)(**arguments(INDEXED)).sum().backward()
        counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
        # N O C T = 5 * 6 * 4 * 6 weights at 4 x 6 positions
        names = ("convary.sample_conv", "convary.sample_conv_grad_x", "convary.sample_conv_grad_weight")
        assert counts == dict.fromkeys(names, 2 * 5 * 6 * 4 * 6 * 24)

    def test_backward_alone_is_seen(self):
        with ops.strategy("native"):
            y = Layer(INDEXED)(**arguments(INDEXED))
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        seen = set(map(str, counter.get_flop_counts()["Global"]))
        assert {"convary.sample_conv_grad_x", "convary.sample_conv_grad_weight"} <= seen

    @pytest.mark.parametrize("case", CASES)
    def test_values_under_a_mode(self, case):
        given = arguments(case)
        with FlopCounterMode(display=False), ops.strategy("native"):
            assert_as_the_reference(results(Layer(case), given), case, given)

    def test_twice_differentiated_under_a_mode(self):
        given, found = arguments(INDEXED), []
        for name in ("native", "bmm"):
            with FlopCounterMode(display=False), ops.strategy(name):
                (first,) = torch.autograd.grad(Layer(INDEXED)(**given).square().sum(), given["x"], create_graph=True)
                found.append(torch.autograd.grad(first.square().sum(), [given["x"], given["weight"], given["bias"]]))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    @pytest.mark.parametrize("case", CASES)
    def test_fake_tensors(self, case):
        real = results(Layer(case), arguments(case))
        with FakeTensorMode(), ops.strategy("native"):
            fake = results(Layer(case), arguments(case))
        assert [t.shape for t in fake] == [t.shape for t in real]

    def test_explain_tells_of_graphs(self):
        x, weight = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 4, 3, 3)
        index = torch.tensor([0, 1, 1])
        told = ops.explain(ops.sample_conv, x, weight, index=index)
        assert (told.compiled, told.exported) == ("native", "bmm")
        with ops.strategy("native"):
            assert ops.explain(ops.sample_conv, x, weight, index=index).exported == "native"
        with FlopCounterMode(display=False):
            rows = {row.strategy: row for row in ops.explain(ops.sample_conv, x, weight, index=index).rows}
        assert rows["native"].reason is None
