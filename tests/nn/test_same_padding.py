# SPDX-License-Identifier: Apache-2.0
"""``padding="same"`` at any stride: TensorFlow's rule, which depends on the size of the input."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame, StdConv2dSame
from torch import nn

import convary as cv
from convary import METHODS, where
from convary.nn.conv import CONVS

every_method = pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_pads_so_that_the_output_has_ceil_size_over_stride(rank, mode, data):
    axis = st.tuples(*[st.integers(1, 4)] * rank)
    k, stride, dilation = data.draw(axis), data.draw(axis), data.draw(st.tuples(*[st.integers(1, 2)] * rank))
    size = data.draw(st.tuples(*[st.integers(7, 10)] * rank))  # circular padding can't exceed the input
    layer = cv.CondConv.layers[rank](2, 3, k, stride, "same", dilation, padding_mode=mode, experts=2).double()
    static = CONVS[rank](2, 3, k, stride, 0, dilation).double()
    layer.load_static(static.weight, static.bias, noise=0.1)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    totals = [
        max((math.ceil(n / s) - 1) * s + (kk - 1) * d + 1 - n, 0)
        for n, s, kk, d in zip(size, stride, k, dilation, strict=True)
    ]
    sides = [half for total in reversed(totals) for half in (total // 2, total - total // 2)]
    want = static(F.pad(x, sides, mode="constant" if mode == "zeros" else mode))
    assert want.shape[2:] == tuple(math.ceil(n / s) for n, s in zip(size, stride, strict=True))
    torch.testing.assert_close(layer(x), want)


@every_method
@pytest.mark.parametrize("size", [(8, 9), (11, 8)])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 5, "stride": 2, "groups": 4, "bias": False},
        {"kernel_size": 2, "stride": (1, 3)},
        {"kernel_size": 2},
        {"kernel_size": 1, "stride": 2},
    ],
    ids=str,
)
def test_converts_timms_same_convolution_exactly(config, size, geometry):
    static = Conv2dSame(4, 4, **geometry).double()
    if config.refuses(static):
        pytest.skip(config.refuses(static))
    layer = cv.convert(static, config, where.all())
    assert layer.padding == "same"
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), static(x))


def test_other_classes_are_still_refused():
    class Conv2dSameMine(nn.Conv2d):
        pass

    Conv2dSameMine.__name__ = "Conv2dSame"  # the name alone is not enough
    for conv in (StdConv2dSame(4, 4, 3), Conv2dSameMine(4, 4, 3)):
        with pytest.raises(cv.ConfigError, match="its own forward would be lost"):
            cv.plan(conv, cv.CondConv(), where.all())


@every_method
def test_a_tensorflow_network_keeps_its_outputs_at_any_size(config):
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5).eval()
    plan = cv.plan(model, config, where.all())
    convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and not config.refuses(m)]
    assert list(plan.converted) == convs
    dynamic = plan.apply()
    for size in ((32, 32), (33, 47)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            got, want = dynamic(x), model(x)
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_one_graph_serves_every_size():
    layer = cv.ODConv2d(4, 6, (3, 2), stride=(2, 3), padding="same").eval()  # a kernel above and one below its stride
    dims = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    program = torch.export.export(layer, (torch.randn(3, 4, 9, 8),), dynamic_shapes=(dims,)).module()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for batch, *size in ((2, 9, 8), (5, 12, 7), (1, 6, 11), (3, 7, 7)):
        x = torch.randn(batch, 4, *size)
        torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
