# SPDX-License-Identifier: Apache-2.0
"""plan and where: what is converted, what stays and what is refused, and why."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models, ops

import convary as cv
from convary import METHODS, where
from convary.nn.modes import shapes_only
from tests.convertible import Net


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_what_is_dynamic_already_is_said():
    dynamic = cv.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), cv.ODConv(), where.all())
    with pytest.raises(cv.ConfigError, match="nothing to convert: 2 layers are ODConv2d already; "):
        cv.convert(dynamic, cv.ODConv())


def test_the_plan_says_what_stays_and_why():
    model = Net()
    model.line.register_forward_hook(lambda m, a, o: None)
    nn.utils.parametrizations.weight_norm(model.dw)
    before = copy.deepcopy(model.state_dict())
    plan = cv.plan(model, cv.DyNet(), where.all() | where.linear(), example=torch.randn(2, 3, 16, 16))
    reasons = {row.name: row.reason for row in plan.rows}
    assert reasons["stem"] is None and reasons["pw"] is None
    assert "derives from Conv2d" in reasons["dw"]
    assert "hooks" in reasons["line"]
    assert "no dynamic form of a linear layer" in reasons["fc"]
    text = str(plan)
    assert (
        "DyNetConv2d 3->8 3x3 x6" in text
        and "2 of 6 layers become DyNet" in text
        and "ConvTranspose2d 12->4 2x2" in text
    )
    row = next(r for r in plan.rows if r.name == "stem")
    assert row.macs_before == 2 * 8 * 3 * 9 * 64  # the stem runs twice
    assert row.macs_after > row.macs_before
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
def test_a_frozen_stage_stays_as_it_is(config):
    model = nn.Sequential(models.resnet18().layer1, models.resnet18().layer2)
    model[0].requires_grad_(False)
    plan = cv.plan(model, config, where.all())
    notes = {row.name: row.note for row in plan.rows if row.after}
    assert all(("frozen, its router too" in note) == name.startswith("0.") for name, note in notes.items())
    converted = plan.apply().train()
    assert any(name.startswith("0.") for name in plan.converted)
    assert not any(p.requires_grad for p in converted[0].parameters())
    assert all(not r.training for r in converted[0].modules() if isinstance(r, cv.nn.Router))
    assert all(r.training for r in converted[1].modules() if isinstance(r, cv.nn.Router))
    cv.freeze_routing(converted[0], False)
    assert all(p.requires_grad for r in converted.modules() if isinstance(r, cv.nn.Router) for p in r.parameters())


def test_a_block_router_is_frozen_where_all_of_its_layers_are():
    model = models.resnet18()
    model.layer3[1].requires_grad_(False)
    model.layer4[0].conv1.requires_grad_(False)
    plan = cv.plan(model, cv.CondConv(router="block"))
    notes = {row.name: row.note for row in plan.rows if row.after}
    assert notes["layer3.1.conv2"] == "router shared in layer3.1; frozen, its router too"
    assert notes["layer4.0.conv1"] == "router shared in layer4.0"
    converted = plan.apply().train()
    assert not any(p.requires_grad for p in converted.layer3[1].router.parameters())
    assert not converted.layer3[1].router.training
    assert all(p.requires_grad for p in converted.layer4[0].router.parameters())
    assert not converted.layer4[0].conv1.weight.requires_grad and converted.layer4[0].conv2.weight.requires_grad


class Odder(nn.Module):
    """Layers that are like convolutions, and are none of torch's ordinary ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.line, self.up, self.cube = (
            nn.ConvTranspose1d(4, 4, 2),
            nn.ConvTranspose2d(4, 8, 2),
            nn.ConvTranspose3d(8, 4, 2),
        )
        self.lazy, self.deform = nn.LazyConvTranspose2d(4, 2), ops.DeformConv2d(4, 4, 3)
        self.pair, self.done = nn.Bilinear(4, 5, 6), cv.DyConv2d(4, 4, 3)


def test_the_plan_names_what_is_like_a_convolution():
    plan = cv.plan(Odder(), cv.ODConv(), where.all())
    rows = {row.name: row for row in plan.rows}
    assert plan.converted == ("stem",)
    assert list(rows)[:8] == ["stem", "line", "up", "cube", "lazy", "deform", "pair", "done"]
    for name in ("line", "up", "cube", "lazy"):
        assert rows[name].reason == "no method has a form of a transposed convolution"
    assert rows["up"].before == "ConvTranspose2d 4->8 2x2" and rows["up"].params_after == 4 * 8 * 4 + 8
    assert "DeformConv2d, which is no nn.Conv" in rows["deform"].reason
    assert rows["pair"].before == "Bilinear 4, 5->6" and rows["done"].reason == "already dynamic"
    assert "4 stay: no method has a form of a transposed convolution" in plan.summary
    assert plan.apply().up.weight.shape == (4, 8, 2, 2)


def test_no_error_proposes_what_was_tried():
    with pytest.raises(cv.ConfigError, match="ConvTranspose2d: no method has a form of a transposed") as caught:
        cv.plan(nn.Sequential(nn.ConvTranspose2d(8, 8, 2)), cv.ODConv(), where.all())
    assert "where.all()" not in str(caught.value).split("by where=")[0] and "try" not in str(caught.value)
    with pytest.raises(cv.ConfigError, match=r"try where=convary.where.all\(\)"):
        cv.plan(Net(), cv.ODConv(), where.name("fc"))
    with pytest.raises(cv.ConfigError, match="not selected by where=name") as caught:
        cv.plan(nn.Sequential(nn.Linear(3, 4)), cv.ODConv(), where.name("1"))
    assert "try" not in str(caught.value)


def test_tied_parameters_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    model[1].weight = model[0].weight
    plan = cv.plan(model, cv.DyConv(), where.all())
    assert [row.reason for row in plan.rows[:2]] == ["it shares a parameter with another layer"] * 2
    assert plan.converted == ("2",)


def test_converting_twice_is_refused_by_layer():
    model = cv.convert(Net(), cv.DyConv(), where.all())
    with pytest.raises(cv.ConfigError, match="already dynamic|derives from|nothing to convert"):
        cv.convert(model, cv.DyConv(), where.all())


def test_what_is_selected_and_stays_is_told_with_the_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    told = r"2 convolutions and linear layers; those selected by where=.* stay as they are \(it makes predictions: .*\)"
    with pytest.raises(cv.ConfigError, match=told):
        cv.convert(model, cv.DyConv(), where.paper(cv.DyConv()) & where.name("2"))


def test_a_single_layer_that_stays_is_told_as_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(cv.ConfigError, match=r"has 1 convolution or linear layer, not selected by where=name"):
        cv.convert(model, cv.DyConv(), where.name("nope"))
    with pytest.raises(cv.ConfigError, match=r"1 convolution or linear layer; it stays as it is \(ODConv has no .*\)"):
        cv.convert(nn.Sequential(nn.Linear(3, 4)), cv.ODConv(), where.name("0"))


def test_nothing_selected_is_an_error():
    with pytest.raises(cv.ConfigError, match=r"nothing to convert: Net has 5 .* by where=name\('nope'\)"):
        cv.convert(Net(), cv.DyConv(), where.name("nope"))


def picked(model: nn.Module, selector: where.Selector) -> list[str]:
    return list(cv.plan(model, cv.CondConv(), selector).converted)


def test_selectors():
    model = Net()
    assert picked(model, where.all()) == ["stem", "dw", "pw", "line"]
    assert picked(model, where.first()) == ["stem"]
    assert picked(model, where.last()) == ["line"]
    assert picked(model, where.classifier()) == picked(model, where.linear()) == ["fc"]
    assert picked(model, where.kernel_size(3)) == ["stem", "line"]
    assert picked(model, where.kernel_size((1, 1))) == ["pw"]
    assert picked(model, where.depthwise()) == picked(model, where.grouped()) == ["dw"]
    assert picked(model, where.name("p*", "d?")) == ["dw", "pw"]
    assert picked(model, where.type(nn.Conv1d)) == ["line"]
    assert picked(model, (where.all() & ~where.first()) | where.linear()) == ["dw", "pw", "line", "fc"]
    assert repr(where.all() & ~where.name("a*")) == "(all() & ~name('a*'))"


@pytest.mark.parametrize(
    ("config", "net", "count"),
    [
        (cv.ODConv(), "resnet18", 16), (cv.ODConv(), "mobilenet_v2", 51),
        (cv.DyConv(), "resnet18", 19), (cv.DyConv(), "mobilenet_v2", 50),
        (cv.CondConv(), "resnet18", 7), (cv.CondConv(), "mobilenet_v2", 19),
        (cv.DyNet(), "resnet18", 16), (cv.DyNet(), "mobilenet_v2", 50),
    ],
)  # fmt: skip
def test_each_papers_own_placement(config, net, count):
    with shapes_only():
        plan = cv.plan(getattr(models, net)(), config)
    assert len(plan.converted) == count
    by_class = cv.plan(plan.model, config, where.paper(type(config)))
    assert by_class.converted == plan.converted


BAD_PLANS = {
    "uncalled selector": (lambda: cv.plan(Net(), cv.ODConv(), where.all), "where must be a selector"),
    "text selector": (lambda: cv.plan(Net(), cv.ODConv(), "stem"), "where must be a selector"),
    "combined": (lambda: where.all() & "stem", "selectors combine with selectors"),
    "class": (lambda: cv.plan(Net(), cv.ODConv), "config must be a method's options"),
    "name": (lambda: cv.convert(Net(), "odconv"), "config must be a method's options"),
    "noise": (lambda: cv.convert(Net(), cv.ODConv(), noise=float("nan")), "noise must be"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_arguments(name):
    make, message = BAD_PLANS[name]
    with pytest.raises(cv.ConfigError, match=message):
        make()


def test_lazy_layers_are_refused():
    plan = cv.plan(nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 4, 1)), cv.DyConv(), where.all())
    assert "LazyConv2d derives from" in plan.rows[0].reason
    assert plan.converted == ("1",)
