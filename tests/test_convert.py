# SPDX-License-Identifier: Apache-2.0
"""convert: a trained model keeps its outputs and everything else that it had."""

import pytest
import timm
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision import models

import convary as cv
from convary import METHODS, where
from convary.nn import DynamicConv, DynamicLayer
from tests.convertible import Net, jiggle, same
from tests.nets import NarrowResNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
def test_a_trained_model_keeps_its_outputs(config):
    model = jiggle(Net()).eval()
    x = torch.randn(2, 3, 16, 16)
    converted = cv.convert(model, config, where.all())
    same(converted(x), model(x))
    assert isinstance(converted.dw, DynamicConv) and converted.pw is converted.again
    assert isinstance(converted.pw, DynamicConv) == (config.refuses(model.pw) is None)
    assert type(model.pw) is nn.Conv2d  # the original is untouched


@pytest.mark.parametrize(
    "config",
    [*(c() for c in METHODS), cv.CondConv(router="block")],
    ids=lambda c: f"{c.name}-{getattr(c, 'router', '')}",
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: models.mobilenet_v2(width_mult=0.25),
        NarrowResNet,
        lambda: timm.create_model("mobilenetv3_small_050"),
        lambda: timm.create_model("test_efficientnet"),
    ],
    ids=["tv-mobilenetv2", "tv-resnet18", "timm-mobilenetv3", "timm-efficientnet"],
)
def test_known_networks_keep_their_outputs(config, make):
    model = jiggle(make()).eval()
    x = torch.randn(2, 3, 64, 64)
    converted = cv.convert(model, config)
    assert any(isinstance(m, DynamicLayer) for m in converted.modules())
    with torch.no_grad():
        same(converted(x), model(x))


def test_keeps_dtype_mode_and_requires_grad():
    model = Net().double().eval()
    model.dw.weight.requires_grad_(False)
    model.pw.train()
    converted = cv.convert(model, cv.ODConv(), where.all())
    assert all(p.dtype == torch.float64 for p in converted.parameters())
    assert not converted.dw.weight.requires_grad and converted.dw.bias.requires_grad
    assert not any(p.requires_grad for p in converted.dw.router.parameters())
    assert all(p.requires_grad for p in converted.pw.parameters())
    assert converted.pw.training and converted.pw.router.training and not converted.dw.training
    meta = cv.convert(Net().to("meta"), cv.DyConv(), where.all())
    assert all(p.is_meta for p in meta.parameters())


def test_in_place_and_root():
    model = Net()
    assert cv.convert(model, cv.DyConv(), where.name("pw"), inplace=True) is model
    assert isinstance(model.pw, cv.DyConv2d) and model.again is model.pw
    conv = nn.Conv2d(3, 4, 3)
    layer = cv.convert(conv, cv.CondConv(), where.all())
    x = torch.randn(1, 3, 5, 5)
    same(layer(x), conv(x))


def test_paper_init_differs_from_the_static_net():
    model = Net().eval()
    x = torch.randn(2, 3, 16, 16)
    fresh = cv.convert(model, cv.ODConv(), where.all(), upcycle=False).eval()
    assert (fresh(x) - model(x)).abs().max() > 1e-2
    a, b = fresh.pw.weight[0], fresh.pw.weight[1]
    assert (a - b).abs().max() > 0.1  # every expert on its own


@pytest.mark.parametrize(
    "name",
    [
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("densenet121", "vgg11", "convnext_tiny")),
    ],
)
def test_other_networks_keep_their_outputs_or_say_why(name):
    model = jiggle(getattr(models, name)()).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        same(cv.convert(model, cv.CondConv(experts=2))(x), want)
        config = cv.CondConv(experts=2, router="block")
        if name == "shufflenet_v2_x0_5":  # its first convolution sees half of the block's input
            with pytest.raises(cv.ShapeError, match="use router='layer' for such blocks"):
                cv.convert(model, config)(x)
        else:
            same(cv.convert(model, config)(x), want)


def test_meta_models_convert_run_and_count():
    with torch.device("meta"):
        model = models.resnet18()
        for config in (cv.ODConv(), cv.CondConv(router="block")):
            converted = cv.convert(model, config)
            assert cv.summary(converted, torch.empty(2, 3, 64, 64)).assembly > 0


def test_tracers_see_the_whole_computation():
    """The native kernel has no graph: a tracer gets torch's operations instead."""
    layer = cv.CondConv2d(8, 8, 3, experts=4).eval()
    x, other = torch.randn(3, 8, 6, 6), torch.randn(3, 8, 6, 6)
    with torch.no_grad(), cv.ops.strategy("grouped"):
        graph = make_fx(layer)(x)
        same(graph(other), layer(other))
