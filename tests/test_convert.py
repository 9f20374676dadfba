# SPDX-License-Identifier: Apache-2.0
"""plan, convert, where: what is converted, what is refused and why, and that a trained model keeps its outputs."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision import models, ops

import convary as cv
from convary import METHODS, where
from convary.nn import DynamicConv, DynamicLayer, RoutedBlock
from convary.nn.modes import shapes_only
from tests.nets import NarrowResNet


class Net(nn.Module):
    """A convolution of every rank and sort, and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.dw = nn.Conv2d(8, 8, 5, padding="same", groups=8, padding_mode="reflect")
        self.pw = nn.Conv2d(8, 12, 1)
        self.again = self.pw
        self.up = nn.ConvTranspose2d(12, 4, 2)
        self.line = nn.Conv1d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pw(self.dw(self.stem(x)).relu()) + self.again(self.dw(self.stem(x)))
        return self.fc(self.line(self.up(x).flatten(2)).mean(-1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def jiggle(model: nn.Module) -> nn.Module:
    """Give norms and biases values as if trained."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


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
    with pytest.raises(cv.ConfigError, match="none of them selected by where=name") as caught:
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


def routed_net() -> nn.Module:
    return cv.convert(NarrowResNet(7), cv.CondConv(experts=3, router="block"))


def test_shared_router_survives_copying_pickling_and_saving():
    model = routed_net().eval()
    for module in model.modules():
        if isinstance(module, RoutedBlock):
            nn.init.normal_(module.router.linear.weight)
    x = torch.randn(2, 3, 64, 64)
    want = model(x)
    blocks = [m for m in model.modules() if isinstance(m, RoutedBlock)]
    assert len(blocks) == 3 and all(isinstance(b, models.resnet.BasicBlock) for b in blocks)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), want)
        twin.layer4[1].router.linear.weight.data.zero_()
        assert not torch.equal(twin(x), want)
    other = routed_net().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), want)
    same(torch.cat([model(x[:1]), model(x[1:])]), want)
    assert not any(m._lent for m in model.modules() if isinstance(m, DynamicLayer))


def test_shared_router_serves_several_threads():
    model = routed_net().eval()
    for module in model.modules():
        if isinstance(module, RoutedBlock):
            nn.init.normal_(module.router.linear.weight, std=3.0)
    inputs = [torch.randn(1, 3, 32, 32) * (i + 1) for i in range(8)]
    want = [model(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(model, inputs), want))


def test_shared_router_compiles_and_exports():
    block = cv.convert(
        nn.Sequential(models.resnet.BasicBlock(8, 8)), cv.CondConv(experts=3, router="block"), where.all()
    ).eval()
    x = torch.randn(3, 8, 6, 6)
    want = block(x)
    torch._dynamo.reset()
    same(torch.compile(block, fullgraph=True, backend="eager")(x), want)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    same(program.module()(x[:2]), want[:2])


class Odd(nn.Module):
    """A block of the user's own, called by keyword or with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv2d(4, 8, 1)
        self.mix = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, features):
        features = torch.cat(features, 1) if isinstance(features, list) else features
        return self.mix(self.widen(features).relu())


def test_shared_router_takes_the_blocks_input_whatever_is_converted():
    block = Odd()
    x = torch.randn(2, 4, 5, 5)
    routed = cv.convert(nn.ModuleList([block]), cv.CondConv(router="block"), where.name("*.mix"), blocks=(Odd,))[0]
    assert routed.router.in_channels == 4
    same(routed(features=x), block(x))
    with pytest.raises(cv.ShapeError, match=r"shared router of this Odd wants .*\(B, 4, \*S\); got a list"):
        routed([x])


def test_blocks_that_have_no_room_for_a_router():
    class Taken(Odd):
        router = None

    config = cv.CondConv(router="block")
    shared = nn.ModuleList([Odd(), Odd()])
    shared[1].mix = shared[0].mix
    for model, blocks, message in (
        (nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1))]), (nn.Sequential,), "no room for an attribute router"),
        (nn.ModuleList([Taken()]), (Taken,), "no room for an attribute router"),
        (shared, (Odd,), "used in more than one block"),
    ):
        plan_rows = {r.name: r.reason for r in plan_all(model, config, blocks)}
        assert any(message in (reason or "") for reason in plan_rows.values()), plan_rows


def plan_all(model, config, blocks):
    model.append(nn.ModuleList([Odd()]))
    return cv.plan(model, config, where.all(), blocks=(*blocks, Odd)).rows


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


def test_a_layer_without_its_block_says_so():
    layer = cv.CondConv2d(3, 4, 3, router="block")
    with pytest.raises(cv.ConfigError, match="no router of its own; call it through its block"):
        layer(torch.randn(1, 3, 5, 5))
    with pytest.raises(cv.ConfigError, match="stands in no block"):
        cv.convert(Net(), cv.CondConv(router="block"), where.all())
