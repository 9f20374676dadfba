# SPDX-License-Identifier: Apache-2.0
"""ODConv: the authors' numbers, and what is particular to it."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

import convary as cv
from tests.golden.case import Case, cases


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", [c for c in cases("odconv_*") if "schedule" not in c])
@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm"])
def test_odconv(name, strategy):
    case = Case(name)
    k = dict(case.kwargs)
    options = {"experts": k.pop("kernel_num", 4)}
    if "reduction" in k:
        options["reduction"] = 1 / k.pop("reduction")
    layer = cv.ODConv2d(k.pop("in_planes"), k.pop("out_planes"), **k, bias=False, dtype=torch.float64, **options)
    cv.load_released(layer, case.state)
    cv.set_temperature(layer, case.settings["temperature"])
    layer.train(case.training)
    x = case.inputs["x"].requires_grad_()
    seen = {}
    handle = layer.router.register_forward_hook(lambda m, a, out: seen.update(out.factors()))
    with cv.ops.strategy(strategy):
        out = layer(x)
    handle.remove()
    case.close("out", out)
    for axis, value in seen.items():
        case.close(f"attention.{ {'tap': 'spatial'}.get(axis, axis) }", value)
    if "kernel.aggregated" in case.expected:
        inner = cv.Coefficients(kernel=seen.get("kernel"), tap=seen.get("tap"))
        case.close("kernel.aggregated", cv.ops.mix_kernels(layer.weight, inner).flatten(0, 1))
    if any(k.startswith("grad.") for k in case.expected):
        case.backward(out)
        case.check_gradients(case.released_gradients(layer) | {"x": x.grad})
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, getattr(layer.router.norm, key.rpartition(".")[2]))


def test_channel_attention_scales_inputs_and_filter_attention_outputs():
    """In a layer with as many inputs as outputs, where nothing but the numbers tells one from the other."""
    layer = cv.ODConv2d(4, 4, 1, experts=1, attentions=("channel", "filter"), bias=False).eval()
    weight, bias = layer.router.heads.weight, layer.router.heads.bias
    with torch.no_grad():
        weight.zero_()
        bias.normal_()
    channel, filter = bias.detach().sigmoid().split(4)
    x = torch.randn(2, 4, 3, 3)
    want = nn.functional.conv2d(x * channel[:, None, None], layer.weight[0]) * filter[:, None, None]
    torch.testing.assert_close(layer(x), want)


def test_odconv_temperature_schedule():
    case = Case("odconv_temperature_schedule")
    per_epoch, epochs = case.kwargs["iter_per_epoch"], case.kwargs["temp_epoch"]
    layer = cv.ODConv2d(4, 4, 1)
    annealing = cv.anneal(layer, start=case.kwargs["temp_init"], stop=1.0, steps=per_epoch * epochs)
    seen = []
    for _ in range(int(case.inputs["epoch"].max() + 1) * per_epoch):
        annealing.step()
        seen.append(float(layer.router.temperature))
    steps = (case.inputs["epoch"] * per_epoch + case.inputs["iteration"]).long()
    case.close("out", torch.tensor(seen, dtype=torch.float64)[steps - 1])


@pytest.mark.parametrize("name", cases("od_mobilenetv2_*"))
def test_odconv_mobilenetv2(name):
    case = Case(name)
    model = cv.convert(mobilenet_v2(width_mult=0.5, dropout=0.0), cv.ODConv(experts=1), upcycle=False).double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    report = cv.load_released(model, case.state)
    assert len(report.dynamic) == 51
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["x"]))


def test_odconv_starts_an_eighth_as_large_at_temperature_30():
    """METHODS M7: three sigmoids at one half; why copying weights does not keep a function."""
    layer = cv.ODConv2d(32, 32, 3, padding=1, bias=False, temperature=30.0)
    x = torch.randn(4, 32, 8, 8)
    plain = nn.functional.conv2d(x, layer.weight.mean(0), padding=1)
    assert (layer(x).norm() / plain.norm()).item() == pytest.approx(0.125, rel=0.02)


def test_odconv_per_kernel_is_the_papers_formula():
    layer = cv.ODConv2d(4, 5, 3, experts=3, sharing="per_kernel", bias=False).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    c = layer.eval().coefficients(x)
    assert [tuple(f.shape) for f in (c.kernel, c.filter, c.channel, c.tap)] == [(2, 3), (2, 3, 5), (2, 3, 4), (2, 3, 9)]
    want = torch.stack([
        nn.functional.conv2d(
            x[b : b + 1],
            sum(
                c.kernel[b, k] * c.filter[b, k, :, None, None, None] * c.channel[b, k, None, :, None, None]
                * c.tap[b, k].reshape(1, 1, 3, 3) * layer.weight[k]
                for k in range(3)
            ),
        )[0]
        for b in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize(
    ("arguments", "options", "axes"),
    [
        ((8, 8, 3), {"groups": 8}, {"channel", "tap", "kernel"}),
        ((8, 12, 1), {}, {"channel", "filter", "kernel"}),
        ((8, 12, 3), {"experts": 1}, {"channel", "filter", "tap"}),
        ((8, 12, 1), {"experts": 1}, {"channel", "filter"}),
        ((8, 12, 3), {"attentions": ("tap",)}, {"tap"}),
    ],
)
def test_odconv_skips(arguments, options, axes):
    assert set(cv.ODConv2d(*arguments, **options).router.sizes) == axes


def test_odconv_without_any_attention_left():
    with pytest.raises(cv.ConfigError, match="no attention is left.*add 'channel'"):
        cv.ODConv2d(4, 4, 1, attentions=("tap",))
