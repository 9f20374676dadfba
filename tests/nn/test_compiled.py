# SPDX-License-Identifier: Apache-2.0
"""Dynamic networks under ``torch.compile``: what the graph holds, and how often there is a new one."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import AotEagerAndRecordGraphs, CompileCounterWithBackend

import convary as cv
from convary.errors import DtypeError, ShapeError
from convary.ops import native
from convary.ops.native import router

pytestmark = pytest.mark.skipif(native.available() is not None, reason="the native library is absent")
CONFIGS = [cv.ODConv(experts=2), cv.CondConv(experts=2)]
EACH = [pytest.param(CONFIGS[0], id="odconv"), pytest.param(CONFIGS[1], id="condconv", marks=pytest.mark.slow)]
SIZES = ((11, 9), (5, 13), (7, 8))  # equal numbers in the first call would share a symbol


def network(config):
    torch.manual_seed(0)
    static = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model = cv.convert(static, config, where=cv.where.all())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, cv.nn.Router):
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def results(call, model, x):
    """The output, and the gradients of all parameters where there are any."""
    y = call(x)
    if not y.requires_grad:
        return [y]
    model.zero_grad()
    y.square().sum().backward()
    return [y, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def image(batch, size):
    return torch.randn(batch, 3, size, size + 1)


@pytest.mark.parametrize("config", EACH)
class TestGraphs:
    def test_inference_keeps_two_operators(self, config):
        torch._dynamo.reset()
        model, backend = network(config).eval(), AotEagerAndRecordGraphs()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        with torch.no_grad():
            x = image(*SIZES[0])
            torch.testing.assert_close(compiled(x), model(x))
        (graph,) = backend.fw_graphs
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert called.count("convary.mixed_conv_forward.default") == called.count("convary.route.default") == 1
        assert not [name for name in called if "im2col" in name or "mean" in name or "mm" in name]

    def test_channels_last_stays_so(self, config):
        torch._dynamo.reset()
        model, backend = network(config).eval().to(memory_format=torch.channels_last), AotEagerAndRecordGraphs()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        with torch.no_grad():
            for batch, size in (SIZES[0], SIZES[1], (0, 9)):
                x = image(batch, size).to(memory_format=torch.channels_last)
                y = compiled(x)
                assert y.is_contiguous(memory_format=torch.channels_last) or not batch
                torch.testing.assert_close(y, model(x))
        called = [str(node.target) for node in backend.fw_graphs[0].graph.nodes if node.op == "call_function"]
        assert called.count("convary.mixed_conv_forward_last.default") == called.count("convary.route.default") == 1
        assert not [name for name in called if "clone" in name or "contiguous" in name or "_to_copy" in name]

    @pytest.mark.parametrize("train", [False, True])
    def test_one_graph_for_all_batches_sizes_and_temperatures(self, config, train):
        torch._dynamo.reset()
        model = network(config).train(train)
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch._dynamo.config.patch(error_on_recompile=True), torch.set_grad_enabled(train):
            for (batch, size), temperature in zip(SIZES, (30.0, 4.0, 1.0), strict=True):
                if config.annealing is not None:
                    cv.set_temperature(model, temperature)
                x = image(batch, size)
                for got, want in zip(results(compiled, model, x), results(model, model, x), strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    def test_no_more_graphs_than_the_static_network(self, config):
        counts = []
        for model in (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), network(config)):
            torch._dynamo.reset()
            backend = CompileCounterWithBackend("eager")
            compiled = torch.compile(model.eval(), fullgraph=True, backend=backend)
            with torch.no_grad():
                for batch, size in ((1, 9), *SIZES):
                    compiled(image(batch, size))
            counts.append(backend.frame_count)
        assert counts[0] == counts[1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("train", [False, True])
def test_inductor(mode, train):
    torch._dynamo.reset()
    model, x = network(CONFIGS[0]).train(train), image(2, 9)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    want = model(x)
    model.load_state_dict(state)
    with torch.set_grad_enabled(train):
        got = torch.compile(model, mode=mode)(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        if train:
            got.sum().backward()


class TestOperator:
    def given(self, layer, x):
        *tensors, epsilon, pieces, gates, rest = layer.router.native_layers()
        tensors = [None if t is None else t.detach() for t in tensors]
        return [x, *tensors, epsilon, list(pieces), gates, rest]

    @pytest.mark.parametrize("kind", [cv.ODConv2d, cv.DyConv2d, cv.CondConv2d])
    @pytest.mark.parametrize("shape", [(3, 8, 5, 6), (0, 8, 5, 6)])
    def test_opcheck(self, kind, shape):
        arguments = self.given(kind(8, 8, 3).eval(), torch.randn(shape))
        torch.library.opcheck(torch.ops.convary.route.default, tuple(arguments))

    def test_agrees_with_the_call_and_shares_no_memory(self):
        layer = cv.ODConv2d(8, 8, 3).eval()
        x = torch.randn(3, 8, 5, 6).contiguous(memory_format=torch.channels_last)
        pieces = torch.ops.convary.route(*self.given(layer, x))
        for got, want in zip(pieces, router.route(x.contiguous(), layer.router.native_layers()), strict=True):
            torch.testing.assert_close(got, want)
        assert len({piece.untyped_storage().data_ptr() for piece in pieces}) == len(pieces)

    def test_refuses_what_does_not_fit(self):
        arguments = self.given(cv.ODConv2d(8, 8, 3).eval(), torch.randn(3, 7, 5, 6))
        with pytest.raises(ShapeError, match="do not fit x and each other"):
            torch.ops.convary.route(*arguments)
        arguments[0] = torch.randn(3, 8, 5, 6).double()
        with pytest.raises(DtypeError, match=r"takes torch.float32; got torch.float64"):
            torch.ops.convary.route(*arguments)
