# SPDX-License-Identifier: Apache-2.0
"""routing and summary."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import convary as cv
from convary import METHODS, where
from tests.nets import NarrowResNet


@pytest.mark.parametrize(
    "config",
    [*(c() for c in METHODS), cv.CondConv(router="block")],
    ids=lambda c: f"{c.name}{getattr(c, 'router', '')}",
)
def test_routing_shows_what_every_layer_used(config):
    model = cv.convert(NarrowResNet(4), config, upcycle=False)
    x = torch.randn(3, 3, 48, 48)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    coeffs = cv.routing(model, x)
    assert list(coeffs) == [n for n, m in model.named_modules() if isinstance(m, cv.nn.DynamicLayer)]
    for name, found in coeffs.items():
        layer = model.get_submodule(name)
        if hasattr(layer, "kernel_size") and isinstance(found, cv.Coefficients):
            found.check(layer.weight, batch=3)
        assert not any(f.requires_grad for f in found.factors().values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_routing_equals_the_layers_own_answer():
    layer = cv.ODConv2d(4, 6, 3)
    x = torch.randn(2, 4, 7, 7)
    (found,) = cv.routing(nn.Sequential(layer), x).values()
    want = layer.eval().coefficients(x)
    torch.testing.assert_close(found.factors(), want.factors())
    assert cv.routing(nn.Conv2d(4, 4, 1), x) == {}


def test_summary_counts_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), cv.ODConv2d(8, 12, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(12 * 9, 5)
    )
    for batch in (1, 4):
        told = cv.summary(model, torch.randn(batch, 3, 6, 6))
        assert told.convolution == 8 * 27 * 36 + 12 * 72 * 9 + 12 * 9 * 5
        assert told.routing == 8 * 16 + 16 * (8 + 12 + 9 + 4)
        assert told.assembly == 4 * 12 * 72
        assert told.other == 0 and told.dynamic_layers == 1
        assert told.params == sum(p.numel() for p in model.parameters())
    assert "assembly" in str(told) and f"{told.macs:,}" in str(told)


@pytest.mark.parametrize("strategy", ["grouped", "loop", "bmm"])
def test_summary_does_not_depend_on_the_strategy(strategy):
    model = cv.convert(models.mobilenet_v2(width_mult=0.25), cv.ODConv())
    x = torch.randn(1, 3, 64, 64)
    want = cv.summary(model, x)
    with cv.ops.strategy(strategy):
        assert cv.summary(model, x) == want
    static = cv.summary(models.mobilenet_v2(width_mult=0.25), x)
    assert want.convolution == static.convolution and want.assembly > 0


def test_summary_of_a_shared_router_and_a_classifier():
    static = models.resnet18(num_classes=4)
    config = cv.CondConv(experts=3, router="block")
    told = cv.summary(cv.convert(static, config), torch.randn(1, 3, 64, 64))
    assert told.routing == 3 * (256 + 256 + 512 + 512)  # layer3.1, layer4.0, layer4.1, fc
    assert told.convolution == cv.summary(static, torch.randn(1, 3, 64, 64)).convolution


def test_attention_goes_to_other():
    class Attention(nn.Module):
        def forward(self, x):
            return x @ x.transpose(1, 2)

    assert cv.summary(Attention(), torch.randn(2, 3, 5)).other == 3 * 5 * 3


def test_summary_wants_a_sample():
    with pytest.raises(cv.ShapeError, match="at least one sample"):
        cv.summary(nn.Conv2d(1, 1, 1), torch.empty(0, 1, 2, 2))


@pytest.mark.parametrize("config", [cv.ODConv(), cv.CondConv(router="block")], ids=lambda c: c.name)
def test_plan_and_summary_agree(config):
    x = torch.randn(1, 3, 64, 64)
    model = models.mobilenet_v2(width_mult=0.25)
    plan = cv.plan(model, config, where.blocks(), example=x)
    told = cv.summary(plan.apply(), x)
    assert sum(row.macs_after for row in plan.rows) == told.macs


def test_a_printed_plan_is_short():
    """The verdict first, layers that differ in their name alone in one line, no column that says nothing."""
    plan = cv.plan(models.resnet18(), cv.ODConv(experts=2))
    text = str(plan)
    lines = text.splitlines()
    assert repr(plan) == text and lines[0].startswith("16 of 21 layers become ODConv (ODConv(experts=2)); where")
    assert any(line.startswith("layer4.* (3 layers) ") for line in lines) and len(lines) < 20
    assert "MACs" not in text and "MACs" in str(cv.plan(models.resnet18(), cv.ODConv(), example=(1, 3, 64, 64)))
    assert len(plan.rows) == 21 and "layer4.1.conv1" in plan.converted
    assert str(cv.plan(models.resnet18(), cv.ODConv())).startswith("16 of 21 layers become ODConv (its own options); ")


def test_what_notebooks_show():
    model = cv.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), cv.ODConv(), where.all())
    x = torch.randn(2, 3, 8, 8)
    for shown in (cv.summary(model, x), cv.diagnose(model, x), cv.plan(nn.Conv2d(3, 4, 3), cv.ODConv(), where.all())):
        assert repr(shown) == str(shown) and "<table>" in shown._repr_html_() and "object at" not in repr(shown)
    assert repr(cv.anneal(model, steps=4)) == "TemperatureAnnealing(linear, step 0 of 4, temperature 30, 2 routers)"


def test_a_shape_is_as_good_as_an_input():
    model = cv.convert(models.resnet18(), cv.ODConv()).double()
    assert cv.summary(model, (1, 3, 64, 64)) == cv.summary(model, torch.zeros(1, 3, 64, 64).double())
    assert cv.routing(model, (2, 3, 32, 32))["layer1.0.conv1"].kernel.dtype == torch.double


@pytest.mark.parametrize(
    "of",
    [
        cv.summary,
        cv.routing,
        cv.diagnose,
        cv.fold,
        cv.fold_norms,
        cv.export,
        lambda m, x: cv.plan(Net(), cv.ODConv(), example=x),
    ],
)
@pytest.mark.parametrize(
    "x", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), np.zeros((1, 3, 8, 8)), torch.zeros(1, 5, 8, 8)], ids=type
)
def test_a_wrong_input_is_convarys_own_error(of, x):
    model = cv.convert(Net(), cv.ODConv(), where.all())
    with pytest.raises((cv.ShapeError, cv.DtypeError, cv.DataError), match="tensor|wants"):
        of(model, x)


@pytest.mark.parametrize("of", [cv.summary, cv.routing, cv.fold_norms, cv.export])
def test_a_wrong_shape_is_convarys_own_error(of):
    model = cv.convert(Net(), cv.ODConv(), where.all())
    with pytest.raises(cv.ShapeError, match="sizes of at least 0"):
        of(model, (1, -3, 8, 8))
    with pytest.raises((cv.ShapeError, cv.DtypeError), match="NoneType"):
        of(model, None)


@pytest.mark.parametrize(
    "layer",
    [*(config.layers[2](16, 16, 3) for config in METHODS), cv.DCDLinear(8, 8), cv.MixedLinear(8, 8), cv.CARAFE(16)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("training", [True, False])
def test_a_dynamic_layer_takes_float_tensors_alone(layer, training):
    layer.train(training)
    with pytest.raises(cv.DtypeError, match="give torch.from_numpy"):
        layer(np.zeros((1, 16, 8, 8)))
    with pytest.raises(cv.DtypeError, match="wants a tensor; got a list"):
        layer([1.0])
    with pytest.raises(cv.DtypeError, match="give x.float"):
        layer(torch.zeros(1, 16, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
@pytest.mark.parametrize("training", [True, False])
def test_another_dtype_than_the_layers_is_convarys_own_error(config, training):
    with torch.set_grad_enabled(training), pytest.raises(cv.DtypeError, match="torch.float64; cast one of them"):
        config.layers[2](16, 16, 3).train(training)(torch.zeros(1, 16, 8, 8).double())


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
