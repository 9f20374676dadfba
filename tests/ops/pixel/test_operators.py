# SPDX-License-Identifier: Apache-2.0
"""The native pixel_conv as torch sees it: opcheck, compile, export, tracers and modes."""

from __future__ import annotations

import io

import pytest
import torch
from torch._dynamo.testing import AotEagerAndRecordGraphs, EagerAndRecordGraphs
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from convary import ops
from convary.errors import ConfigError, ConvaryError, DtypeError, ShapeError
from convary.ops import native
from tests.ops.pixel.calls import Layer, truth, window_of

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

# C, G, size, and the arguments of the op
CASES = {
    "plain": (6, 2, (7, 11), {"kernel_size": 3, "padding": 1}),
    "interleaved, dilated, reflected": (6, 3, (9, 8), {"kernel_size": 3, "padding": 2, "dilation": 2,
                                                       "group_order": "interleaved", "border": "reflect"}),
    "enlarged": (4, 1, (5, 6), {"kernel_size": 5, "padding": 2, "scale_factor": 2}),
    "strided": (4, 2, (9, 9), {"kernel_size": (3, 2), "padding": (1, 0), "stride": (2, 1)}),
    "clamped line": (4, 2, (11,), {"kernel_size": 3, "padding": 1, "border": "clamp"}),
}  # fmt: skip
# Two for make test; the others are left to the slow tests.
FEW = [case if i < 2 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(CASES)]


def tensors(case: str, batch: int = 3, grow: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves x and weight; another batch and a larger map where asked for."""
    C, G, size, arguments = CASES[case]
    x = torch.randn(batch, C, *(s + 2 * grow for s in size))
    k, *rest = arguments["kernel_size"] if isinstance(arguments["kernel_size"], tuple) else [arguments["kernel_size"]]
    T = k * rest[0] if rest else k ** len(size)
    for_shape = Layer({**arguments})
    weight = torch.randn(batch, G, T, *out_size(x, for_shape.arguments))
    return x.requires_grad_(), weight.requires_grad_()


def out_size(x, arguments: dict) -> list[int]:
    """Of y, by the formula of the docstring."""
    rank = x.ndim - 2
    k, stride, padding, dilation = (
        value if isinstance(value, tuple) else (value,) * rank
        for value in (arguments["kernel_size"], arguments.get("stride", 1), arguments["padding"],
                      arguments.get("dilation", 1))
    )  # fmt: skip
    axes = zip(x.shape[2:], k, stride, padding, dilation, strict=True)
    return [arguments.get("scale_factor", 1) * ((s + 2 * p - d * (n - 1) - 1) // st + 1) for s, n, st, p, d in axes]


def spelled(case: str) -> list:
    """The arguments of the operator."""
    x, weight = tensors(case)
    return list(window_of(x, weight, CASES[case][3]))


def results(call, x, weight) -> list[torch.Tensor]:
    """The output and both gradients, of some weighted sum of the output."""
    y = call(x=x, weight=weight)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), grad)]


def assert_as_the_reference(found: list[torch.Tensor], case: str, x, weight) -> None:
    wants = truth(x.detach().double(), weight.detach().double(), CASES[case][3])
    for got, want in zip(found, wants, strict=True):
        assert got.shape == want.shape
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1)


def is_native(graph: object) -> bool:
    return "convary.pixel_conv" in str(graph)


@pytest.mark.parametrize("case", FEW)
class TestOperators:
    """torch's own check: schema, fake tensors, autograd registration, ahead-of-time dispatch with symbolic sizes."""

    def test_forward(self, case):
        torch.library.opcheck(torch.ops.convary.pixel_conv.default, (*tensors(case), *spelled(case)))

    def test_gradients(self, case):
        x, weight = (t.detach() for t in tensors(case))
        grad = torch.randn_like(torch.ops.convary.pixel_conv(x, weight, *spelled(case)))
        of_x, of_weight = torch.ops.convary.pixel_conv_grad_x, torch.ops.convary.pixel_conv_grad_weight
        torch.library.opcheck(of_x.default, (grad, list(x.shape), weight, *spelled(case)))
        torch.library.opcheck(of_weight.default, (grad, x, weight, *spelled(case)))


class TestOperatorArguments:
    """The operators are public to torch, and the kernels trust what they are told."""

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"weight": torch.randn(3, 2, 9, 7, 8)}, ShapeError, "(3, G, 9, 7, 11) with G dividing 6 channels"),
            ({"weight": torch.randn(3, 4, 9, 7, 11)}, ShapeError, "with G dividing 6"),
            ({"weight": torch.randn(3, 2, 9, 7, 11).double()}, DtypeError, "x is torch.float32 but weight is"),
            ({"stride": [0, 1]}, ConfigError, "stride must be"),
            ({"padding": [-1, 1]}, ConfigError, "padding must be"),
            ({"border": "edge"}, ConfigError, "border must be one of"),
            ({"scale_factor": -2}, ConfigError, "scale_factor must be"),
        ],
    )
    def test_forward(self, changes, error, message):
        x, weight = tensors("plain")
        names = ("kernel_size", "stride", "padding", "dilation", "border", "group_order", "scale_factor")
        usual = {"x": x, "weight": weight, **dict(zip(names, spelled("plain"), strict=True))}
        with pytest.raises(error) as caught:
            torch.ops.convary.pixel_conv(*(usual | changes).values())
        assert message in str(caught.value)

    def test_double_precision(self):
        x, weight = (t.detach().double() for t in tensors("plain"))
        with pytest.raises(DtypeError, match=r"pixel_conv takes torch.float32; .* or force strategy taps"):
            torch.ops.convary.pixel_conv(x, weight, *spelled("plain"))

    def test_gradient_of_another_shape(self):
        x, weight = (t.detach() for t in tensors("plain"))
        bad = torch.randn(3, 6, 9, 7)
        with pytest.raises(ShapeError, match=r"the gradient is \(3, 6, 9, 7\), torch.float32; that of y must be"):
            torch.ops.convary.pixel_conv_grad_x(bad, x.shape, weight, *spelled("plain"))
        with pytest.raises(ShapeError, match=r"the gradient is \(3, 6, 9, 7\)"):
            torch.ops.convary.pixel_conv_grad_weight(bad, x, weight, *spelled("plain"))

    def test_nothing_in_nothing_out(self):
        x, weight = (t.detach()[:0] for t in tensors("plain"))
        assert torch.ops.convary.pixel_conv(x, weight, *spelled("plain")).shape == (0, 6, 7, 11)
        assert torch.ops.convary.pixel_conv_grad_x(x, x.shape, weight, *spelled("plain")).shape == x.shape
        (none,) = torch.ops.convary.pixel_conv_grad_weight(x, x, weight, *spelled("plain"))
        assert none.shape == weight.shape

    def test_gradients_have_no_gradient(self):
        x, weight = (t.detach() for t in tensors("plain"))
        grad = torch.randn(x.shape, requires_grad=True)
        with pytest.raises(ConvaryError, match=r"no gradient of their own; .*ops.strategy\('taps'\)"):
            torch.ops.convary.pixel_conv_grad_x(grad, x.shape, weight, *spelled("plain")).sum().backward()


class TestCompile:
    @pytest.mark.parametrize("case", ["plain", "enlarged", "clamped line"])
    def test_any_batch_and_size_in_one_graph(self, case):
        torch._dynamo.reset()
        layer, backend = Layer(CASES[case][3]), AotEagerAndRecordGraphs()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch, grow in ((13, 0), (5, 8), (7, 3)):
                given = tensors(case, batch, grow)
                assert_as_the_reference(results(compiled, *given), case, *given)
        assert len(backend.fw_graphs) == 1
        assert is_native(backend.fw_graphs[0].code)
        assert is_native(backend.bw_graphs[0].code)

    @pytest.mark.slow
    def test_inductor(self):
        torch._dynamo.reset()
        compiled = torch.compile(Layer(CASES["plain"][3]), fullgraph=True)
        given = tensors("plain")
        assert_as_the_reference(results(compiled, *given), "plain", *given)

    def recorded(self, call, *given) -> bool:
        """Whether one graph of the call holds the native operator; the values are checked."""
        torch._dynamo.reset()
        backend = EagerAndRecordGraphs()
        got = torch.compile(call, fullgraph=True, backend=backend)(*given)
        torch.testing.assert_close(got, call(*given), rtol=0.1, atol=0.1)
        (graph,) = backend.graphs
        return is_native(graph.code)

    def test_takes_taps_elsewhere(self, monkeypatch):
        x, weight = (t.detach() for t in tensors("plain"))
        layer = Layer(CASES["plain"][3])
        assert self.recorded(layer, x, weight)
        assert not self.recorded(layer, x.double(), weight.double())
        with ops.strategy("taps"):
            assert not self.recorded(layer, x, weight)
        assert not self.recorded(lambda *t: torch.func.grad(lambda *t: layer(*t).sum())(*t), x, weight)
        monkeypatch.setattr(native.library, "_library", "nobody built it")
        assert not self.recorded(layer, x, weight)


class TestWatchers:
    """Dispatch modes and tracers see one operator, or torch's own operations."""

    @pytest.mark.parametrize("forced", [None, "native"])
    def test_export(self, forced):
        layer, given = Layer(CASES["plain"][3]), [t.detach() for t in tensors("plain")]
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in ("x", "weight")}
        with ops.strategy(forced):
            program = torch.export.export(layer, tuple(given), dynamic_shapes=dynamic)
        assert is_native(program.graph) == (forced is not None)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        other = [t.detach() for t in tensors("plain", 5)]
        torch.testing.assert_close(torch.export.load(file).module()(*other), layer(*other), rtol=1e-4, atol=1e-4)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("forced", [None, "native"])
    def test_jit_trace(self, forced):
        layer = Layer(CASES["plain"][3])
        with ops.strategy(forced):
            traced = torch.jit.trace(layer, tuple(t.detach() for t in tensors("plain")))
        assert ("convary::pixel_conv" in str(traced.graph)) == (forced is not None)
        other = [t.detach() for t in tensors("plain", 5)]
        torch.testing.assert_close(traced(*other), layer(*other), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    def test_make_fx(self, mode):
        layer, given = Layer(CASES["plain"][3]), [t.detach() for t in tensors("plain")]
        with ops.strategy("native"), torch.no_grad():
            graph = make_fx(layer, tracing_mode=mode)(*given)
            assert is_native(graph.code)
            torch.testing.assert_close(graph(*given), layer(*given), rtol=1e-4, atol=1e-4)

    def test_flops(self):
        with FlopCounterMode(display=False) as counter, ops.strategy("native"):
            Layer(CASES["plain"][3])(*tensors("plain")).sum().backward()
        counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
        # B C T = 3 * 6 * 9 weights' products at 7 x 11 positions
        names = ("convary.pixel_conv", "convary.pixel_conv_grad_x", "convary.pixel_conv_grad_weight")
        assert counts == dict.fromkeys(names, 2 * 3 * 6 * 9 * 77)

    def test_backward_alone_is_seen(self):
        with ops.strategy("native"):
            y = Layer(CASES["plain"][3])(*tensors("plain"))
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        seen = set(map(str, counter.get_flop_counts()["Global"]))
        assert {"convary.pixel_conv_grad_x", "convary.pixel_conv_grad_weight"} <= seen

    @pytest.mark.parametrize("case", CASES)
    def test_values_under_a_mode(self, case):
        given = tensors(case)
        with FlopCounterMode(display=False), ops.strategy("native"):
            assert_as_the_reference(results(Layer(CASES[case][3]), *given), case, *given)

    def test_twice_differentiated_under_a_mode(self):
        (x, weight), found = tensors("plain"), []
        for name in ("native", "taps"):
            with FlopCounterMode(display=False), ops.strategy(name):
                y = Layer(CASES["plain"][3])(x=x, weight=weight)
                (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
                found.append(torch.autograd.grad(first.square().sum(), [x, weight]))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    @pytest.mark.parametrize("strategy", ["native", "taps"])
    @pytest.mark.parametrize("case", CASES)
    def test_fake_tensors(self, case, strategy):
        layer, real = Layer(CASES[case][3]), tensors(case)
        with FakeTensorMode(), ops.strategy(strategy):
            fake = results(layer, *tensors(case))
        assert [t.shape for t in fake] == [t.shape for t in results(layer, *real)]
