# SPDX-License-Identifier: Apache-2.0
"""The native mixed convolution as torch sees it: opcheck, compile, export, tracers, modes, threads, fork."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import AotEagerAndRecordGraphs, EagerAndRecordGraphs
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import convary as cv
from convary import ops
from convary.errors import ConfigError, ConvaryError, DtypeError, ShapeError, StrategyError
from convary.ops import Coefficients, native, reference
from tests.processes import python

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

# B, C, size, bank, rows of (kernel, filter, channel, tap), bias, geometry
CASES = {
    "every factor, bias per sample": (3, 4, (6, 5), (2, 8, 4, 3, 3), (1, 1, 2, 1), "bank", (1, 1), (1, 1), (1, 1), 1),
    "strided, static bias": (2, 4, (7, 6), (3, 6, 4, 3, 2), (1, None, None, None), "static", (2, 1), (1, 0), (1, 2), 1),
    "grouped, no bias": (2, 4, (7, 9), (2, 6, 2, 3, 3), (None, 2, 1, None), None, (1, 1), (2, 2), (2, 2), 2),
    "depthwise": (4, 5, (6, 6), (2, 5, 1, 3, 3), (1, 2, 1, 2), "bank", (1, 1), (1, 1), (1, 1), 5),
    "line, pointwise": (3, 4, (9,), (2, 5, 4, 1), (1, None, 1, None), "static", (1,), (0,), (1,), 1),
}  # fmt: skip
# Two for make test; the others are left to the slow tests.
FEW = [case if i < 2 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(CASES)]


class Layer(nn.Module):
    """A bank and a bias as parameters, the coefficients as arguments."""

    def __init__(self, case: str, op=ops.mixed_conv):
        super().__init__()
        _, _, _, bank, _, bias, *geometry = CASES[case]
        generator = torch.Generator().manual_seed(0)
        self.bank = nn.Parameter(torch.randn(bank, generator=generator))
        shape = bank[:2] if bias == "bank" else bank[1:2]
        self.bias = nn.Parameter(torch.randn(shape, generator=generator)) if bias else None
        self.geometry = dict(zip(("stride", "padding", "dilation", "groups"), geometry, strict=True))
        self.op = op

    def forward(self, x, **factors):
        return self.op(x, self.bank, Coefficients(**factors), self.bias, **self.geometry)


def arguments(case: str, batch: int = 0, grow: int = 0, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Input and factors of a case; another batch and a larger map where asked for."""
    B, C, size, bank, rows, *_ = CASES[case]
    B = batch or B
    numbers = (C, bank[1], C, torch.Size(bank[3:]).numel())
    tensors = {"x": torch.randn(B, C, *(s + grow for s in size))}
    for axis, row, n in zip(("kernel", "filter", "channel", "tap"), rows, numbers, strict=True):
        if row is not None:
            tensors[axis] = torch.rand(B, bank[0]) if axis == "kernel" else torch.rand(B, row, n)
    return {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}


def operands(case: str) -> tuple[list, list]:
    """The operators' x, bank and four factors, and their geometry."""
    given = {name: t.detach() for name, t in arguments(case).items()}
    factors = [given.get(axis) for axis in ("kernel", "filter", "channel", "tap")]
    return [given["x"], Layer(case).bank.detach(), *factors], list(CASES[case][6:])


def results(layer: nn.Module, given: dict[str, torch.Tensor], call=None) -> list[torch.Tensor]:
    """The output and the gradients of every parameter and argument, of some weighted sum of the output."""
    y = (layer if call is None else call)(**given)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [*layer.parameters(), *given.values()], weight)]


def assert_as_the_reference(found: list[torch.Tensor], case: str, given: dict[str, torch.Tensor]) -> None:
    exact = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    for got, want in zip(found, results(Layer(case, reference.mixed_conv).double(), exact), strict=True):
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1)


def is_native(graph: object) -> bool:
    return "convary.mixed_conv" in str(graph)


@needs_library
@pytest.mark.parametrize("case", FEW)
class TestOperators:
    """torch's own check: schema, fake tensors, autograd registration, ahead-of-time dispatch with symbolic sizes."""

    def test_forward(self, case):
        tensors, geometry = operands(case)
        B, O = tensors[0].shape[0], tensors[1].shape[1]
        bias = {"bank": torch.randn(B, O), "static": torch.randn(O), None: None}[CASES[case][5]]
        leaves = [t if t is None else t.requires_grad_() for t in (*tensors, bias)]
        torch.library.opcheck(torch.ops.convary.mixed_conv.default, (*leaves, *geometry))

    def test_gradients(self, case):
        (x, *weight), geometry = operands(case)
        grad = torch.randn_like(torch.ops.convary.mixed_conv(x, *weight, None, *geometry))
        torch.library.opcheck(torch.ops.convary.mixed_conv_grad_x.default, (grad, list(x.shape), *weight, *geometry))
        torch.library.opcheck(torch.ops.convary.mixed_conv_grad_bank.default, (grad, x, *weight, *geometry))


@needs_library
class TestOperatorArguments:
    """The operators are public to torch, and the kernels trust what they are told."""

    def call(self, **changes):
        names = ("x", "bank", "kernel", "filter", "channel", "tap", "bias", "stride", "padding", "dilation", "groups")
        usual = (torch.randn(3, 4, 6, 6), torch.randn(2, 8, 4, 3, 3), torch.rand(3, 2), None, None, None, None,
                 [1, 1], [1, 1], [1, 1], 1)  # fmt: skip
        return torch.ops.convary.mixed_conv(*(dict(zip(names, usual, strict=True)) | changes).values())

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"kernel": torch.rand(2, 2)}, ShapeError, "kernel coefficients are (2, 2)"),
            ({"channel": torch.rand(3, 1, 8)}, ShapeError, "channel coefficients have 8 channels but x has 4"),
            ({"bias": torch.rand(2, 8)}, ShapeError, "bias is (2, 8); 3 samples of 8 output channels"),
            ({"bias": torch.rand(8).double()}, DtypeError, "bias is torch.float64"),
            ({"bank": torch.randn(2, 8, 3, 3, 3)}, ShapeError, "groups must divide both channel counts"),
            ({"kernel": torch.rand(3, 2).double()}, DtypeError, "kernel coefficients are torch.float64"),
            ({"stride": [0, 1]}, ConfigError, "stride must be"),
            ({"padding": [1]}, ConfigError, "padding must be"),
        ],
    )
    def test_forward(self, changes, error, message):
        with pytest.raises(error) as caught:
            self.call(**changes)
        assert message in str(caught.value)

    def test_double_precision(self):
        doubles = {"x": torch.randn(3, 4, 6, 6), "bank": torch.randn(2, 8, 4, 3, 3), "kernel": torch.rand(3, 2)}
        with pytest.raises(DtypeError, match=r"takes torch.float32; got torch.float64; cast, or force strategy bmm"):
            self.call(**{name: t.double() for name, t in doubles.items()})

    def test_gradient_of_another_shape(self):
        (x, *weight), geometry = operands("depthwise")
        bad = torch.randn(4, 5, 6, 5)
        with pytest.raises(ShapeError, match=r"the gradient is \(4, 5, 6, 5\), torch.float32; that of y must be"):
            torch.ops.convary.mixed_conv_grad_x(bad, x.shape, *weight, *geometry)
        with pytest.raises(ShapeError, match=r"the gradient is \(4, 5, 6, 5\)"):
            torch.ops.convary.mixed_conv_grad_bank(bad, x, *weight, *geometry)

    def test_nothing_in_nothing_out(self):
        bias = torch.randn(8)
        assert self.call(x=torch.randn(0, 4, 6, 6), kernel=torch.rand(0, 2), bias=bias).shape == (0, 8, 6, 6)
        empty = torch.randn(3, 0, 6, 6), torch.randn(2, 8, 0, 3, 3)
        assert torch.equal(self.call(x=empty[0], bank=empty[1], bias=bias), bias[:, None, None].expand(3, 8, 6, 6))
        (x, *weight), geometry = operands("depthwise")
        factors = [t[:0] for t in weight[1:]]
        grad = x[:0]
        assert (
            torch.ops.convary.mixed_conv_grad_x(grad, (0, 5, 6, 6), weight[0], *factors, *geometry).shape == grad.shape
        )
        of_bank, *rest = torch.ops.convary.mixed_conv_grad_bank(grad, grad, weight[0], *factors, *geometry)
        assert torch.equal(of_bank, torch.zeros_like(weight[0]))
        assert [t.shape for t in rest] == [t.shape for t in factors]

    def test_gradients_have_no_gradient(self):
        (x, *weight), geometry = operands("depthwise")
        grad = torch.randn(4, 5, 6, 6, requires_grad=True)
        with pytest.raises(ConvaryError, match=r"no gradient of their own; .*ops.strategy\('bmm'\)"):
            torch.ops.convary.mixed_conv_grad_x(grad, x.shape, *weight, *geometry).sum().backward()


@needs_library
class TestCompile:
    @pytest.mark.parametrize("case", FEW)
    def test_any_batch_and_size_in_one_graph(self, case):
        torch._dynamo.reset()
        layer, backend = Layer(case), AotEagerAndRecordGraphs()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch, grow in ((11, 0), (13, 3), (7, 1)):  # like sizes in the first call would share a symbol
                given = arguments(case, batch, grow)
                found = results(layer, given, compiled)
                assert_as_the_reference(found, case, given)
                with ops.strategy("native"):
                    wants = results(layer, given)
                for got, want in zip(found, wants, strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert len(backend.fw_graphs) == 1
        assert is_native(backend.fw_graphs[0].code)
        assert is_native(backend.bw_graphs[0].code)

    def test_static_shapes(self):
        torch._dynamo.reset()
        case = "every factor, bias per sample"
        layer, given = Layer(case), arguments(case)
        compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
        assert_as_the_reference(results(layer, given, compiled), case, given)

    @pytest.mark.slow
    def test_inductor(self):
        torch._dynamo.reset()
        case = "every factor, bias per sample"
        layer = Layer(case)
        compiled = torch.compile(lambda **given: layer(**given).relu() + 1, fullgraph=True, dynamic=True)
        eager = lambda **given: layer(**given).relu() + 1  # noqa: E731
        for batch, grow in ((11, 0), (5, 3)):
            given = arguments(case, batch, grow)
            for got, want in zip(results(layer, given, compiled), results(layer, given, eager), strict=True):
                torch.testing.assert_close(got, want, **TOLERANCE)

    def test_channels_last(self):
        torch._dynamo.reset()
        layer, backend = cv.ODConv2d(4, 8, 3, padding=1, experts=2).eval(), EagerAndRecordGraphs()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
        with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
            for batch, size in ((11, 9), (3, 12)):
                x = torch.randn(batch, 4, size, size + 1).contiguous(memory_format=torch.channels_last)
                y = compiled(x)
                assert y.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(y, layer(x), **TOLERANCE)
        assert is_native(backend.graphs[0].code)

    def recorded(self, call, *tensors) -> bool:
        """Whether one graph of the call holds the native operator; the values are checked."""
        torch._dynamo.reset()
        backend = EagerAndRecordGraphs()
        got = torch.compile(call, fullgraph=True, backend=backend)(*tensors)
        torch.testing.assert_close(got, call(*tensors), rtol=0.1, atol=0.1)
        (graph,) = backend.graphs
        return is_native(graph.code)

    @pytest.mark.slow
    def test_takes_bmm_elsewhere(self):
        bank, kernel = torch.randn(2, 8, 4, 3, 3), torch.rand(3, 2)

        def conv(x, bank, kernel):
            return ops.mixed_conv(x, bank, Coefficients(kernel=kernel), padding=1)

        x = torch.randn(3, 4, 6, 6)
        assert self.recorded(conv, x, bank, kernel)
        assert not self.recorded(conv, x.double(), bank.double(), kernel.double())
        assert not self.recorded(conv, torch.randn(3, 4, 6, 6, 6), bank[..., None], kernel)
        with ops.strategy("bmm"):
            assert not self.recorded(conv, x, bank, kernel)
        assert not self.recorded(lambda *t: torch.func.grad(lambda *t: conv(*t).sum())(*t), x, bank, kernel)
        assert not self.recorded(lambda s: torch.func.vmap(lambda s: conv(x * s, bank, kernel))(s), torch.rand(2))

    def test_double_backward_is_an_error(self):
        torch._dynamo.reset()
        layer, given = Layer("depthwise"), arguments("depthwise")
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(**given)
        with pytest.raises(RuntimeError, match="double backward|create_graph=False"):
            torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)[0].sum().backward()


class TestWithoutTheLibrary:
    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch):
        torch._dynamo.reset()
        monkeypatch.setattr(native.library, "_library", "nobody built it")

    def test_compile_takes_bmm(self):
        case = "grouped, no bias"
        layer, given, backend = Layer(case), arguments(case), EagerAndRecordGraphs()
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        assert_as_the_reference(results(layer, given, compiled), case, given)
        assert not is_native(backend.graphs[0].code)

    def test_forced_says_why(self):
        layer, given = Layer("grouped, no bias"), arguments("grouped, no bias")
        with ops.strategy("native"):
            with pytest.raises(Exception, match="nobody built it"):
                torch.compile(layer, fullgraph=True, backend="eager")(**given)
            with pytest.raises(StrategyError, match="nobody built it; use one of"):
                torch.export.export(layer, (), given, strict=False)


class TestExport:
    def export(self, layer, **options):
        dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        return torch.export.export(layer, (torch.randn(3, 4, 6, 7),), dynamic_shapes=(dims,), **options)

    def test_is_portable(self):
        layer = cv.ODConv2d(4, 8, 3, padding=1, experts=2).eval()
        assert "convary" not in str(self.export(layer).graph)

    @needs_library
    @pytest.mark.parametrize("strict", [False, True])
    def test_native_where_forced(self, strict):
        torch._dynamo.reset()
        layer = cv.ODConv2d(4, 8, 3, padding=1, experts=2).eval()
        with ops.strategy("native"):
            program = self.export(layer, strict=strict)
        assert is_native(program.graph)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        module = torch.export.load(file).module()
        for batch, size in ((1, 6), (5, 11)):
            x = torch.randn(batch, 4, size, size)
            torch.testing.assert_close(module(x), layer(x), **TOLERANCE)


@needs_library
class TestWatchers:
    """Dispatch modes and tracers see one operator, or torch's own operations."""

    case = "every factor, bias per sample"

    def test_flops(self):
        layer, given = Layer(self.case), arguments(self.case)
        with FlopCounterMode(display=False) as counter, ops.strategy("native"):
            layer(**given).sum().backward()
        counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
        # B O C T = 3 * 8 * 4 * 9 weights, at 30 positions, mixed from 2 kernels; the bank's gradient passes them twice.
        weights = 3 * 8 * 4 * 9
        assert counts["convary.mixed_conv"] == 2 * weights * (30 + 2)
        assert counts["convary.mixed_conv_grad_x"] == 2 * weights * (30 + 2)
        assert counts["convary.mixed_conv_grad_bank"] == 2 * weights * (30 + 4)

    def test_flops_of_backward_alone(self):
        layer, given = Layer(self.case), arguments(self.case)
        with ops.strategy("native"):
            y = layer(**given)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        assert {"convary.mixed_conv_grad_x", "convary.mixed_conv_grad_bank"} <= set(
            map(str, counter.get_flop_counts()["Global"])
        )

    def test_gradients_under_a_mode(self):
        layer, given = Layer(self.case), arguments(self.case)
        with FlopCounterMode(display=False), ops.strategy("native"):
            assert_as_the_reference(results(layer, given), self.case, given)

    def test_twice_differentiated_under_a_mode(self):
        layer, given = Layer(self.case), arguments(self.case)
        found = []
        for name in ("native", "bmm"):
            with FlopCounterMode(display=False), ops.strategy(name):
                (first,) = torch.autograd.grad(layer(**given).square().sum(), given["x"], create_graph=True)
                found.append(torch.autograd.grad(first.square().sum(), list(given.values())))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    def test_fake_tensors(self):
        with FakeTensorMode(), ops.strategy("native"):
            layer, given = Layer(self.case), arguments(self.case)
            y, *grads = results(layer, given)
        assert y.shape == (3, 8, 6, 5)
        assert [g.shape for g in grads] == [t.shape for t in (*layer.parameters(), *given.values())]

    def test_make_fx(self):
        layer, given = Layer("depthwise"), [t.detach() for t in arguments("depthwise").values()]
        names = list(arguments("depthwise"))
        with ops.strategy("native"), torch.no_grad():
            graph = make_fx(lambda *t: layer(**dict(zip(names, t, strict=True))))(*given)
        assert is_native(graph.code)
        other = [t.detach() for t in arguments("depthwise").values()]
        torch.testing.assert_close(graph(*other), layer(**dict(zip(names, other, strict=True))), **TOLERANCE)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("forced", [None, "native"])
    def test_jit_trace(self, forced):
        layer = cv.CondConv2d(4, 8, 3, experts=2).eval()
        with ops.strategy(forced):
            traced = torch.jit.trace(layer, torch.randn(3, 4, 6, 6))
        assert ("convary::mixed_conv" in str(traced.graph)) == (forced is not None)
        x = torch.randn(5, 4, 9, 8)
        torch.testing.assert_close(traced(x), layer(x), **TOLERANCE)

    def test_explain_tells_of_graphs(self):
        x, bank, coeffs = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 4, 3, 3), Coefficients(kernel=torch.rand(2, 2))
        told = ops.explain(ops.mixed_conv, x, bank, coeffs)
        assert told.compiled == "native"
        assert "recorded by torch.compile: native\n  recorded by torch.export and torch.jit.trace: bmm\n" in str(told)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert ops.explain(ops.mixed_conv, x, bank, coeffs).compiled == "native"
        with ops.strategy("native"):
            assert ops.explain(ops.mixed_conv, x, bank, coeffs).exported == "native"
        with ops.strategy("loop"):
            assert "it would bake the batch size" in ops.explain(ops.mixed_conv, x, bank, coeffs).compiled
        assert ops.explain(ops.sample_conv, x, torch.randn(2, 4, 4, 3, 3)).exported == "bmm"


@needs_library
class TestThreadsAndProcesses:
    def test_from_several_python_threads(self):
        """Forward and backward at once, over torch's own threads, forced in some threads and not in others."""
        code = """
from concurrent.futures import ThreadPoolExecutor
import faulthandler
import torch
import convary as cv
faulthandler.dump_traceback_later(120, exit=True)
torch.set_num_threads(2)
layer = cv.ODConv2d(16, 32, 3, padding=1, experts=4)

def step(x):
    return torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))

def work(seed):
    x = torch.randn(4, 16, 12, 12, generator=torch.Generator().manual_seed(seed))
    with cv.ops.strategy("native" if seed % 2 else None):
        wants = step(x)
        for _ in range(5):
            for got, want in zip(step(x), wants, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(8)))
print("done")
"""
        assert python(code) == "done"

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
    def test_in_a_data_loader(self):
        """A worker forked from a parent that used several threads; torch gives it one: with two, F.conv2d hangs too."""
        code = """
import torch
from convary import ops
bank, coeffs = torch.randn(4, 32, 32, 3, 3), ops.Coefficients(kernel=torch.rand(8, 4))

class Maps(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        with ops.strategy("native"):
            return ops.mixed_conv(torch.full((8, 32, 20, 20), i + 1.0), bank, coeffs, padding=1)

torch.set_num_threads(2)
wants = [Maps()[i] for i in range(2)]
loader = torch.utils.data.DataLoader(Maps(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=30)
for got, want in zip(loader, wants, strict=True):
    torch.testing.assert_close(got, want)
torch.testing.assert_close(Maps()[0], wants[0])
print("done")
"""
        assert python(code) == "done"
