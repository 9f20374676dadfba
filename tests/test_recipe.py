# SPDX-License-Identifier: Apache-2.0
"""What ``recipe`` tells of any conversion, ``reconvert`` does again, so that the state dict fits exactly."""

import json

import pytest
import torch
from torch import nn

import convary as cv
from tests.nets import Net, dynamic_net, excite

EVERYWHERE = cv.where.all() & ~cv.where.first()
BLOCKS = cv.CondConv(experts=2, router="block")


def converted(config, where=EVERYWHERE, **options):
    return excite(cv.convert(Net(), config, where, **options))


def twice():
    first = cv.convert(Net(), cv.KernelWarehouse(), cv.where.kernel_size(3) & ~cv.where.first())
    return excite(cv.convert(first, cv.DyConv(experts=2), cv.where.kernel_size(1) | cv.where.classifier()))


CASES = {config.name: (lambda config=config: converted(config())) for config in cv.METHODS} | {
    "condconv by block": lambda: converted(BLOCKS, cv.where.blocks()),
    "involution": lambda: converted(
        cv.Involution(group_channels=4), EVERYWHERE & cv.where.kernel_size(3), upcycle=False
    ),
    "small warehouse": lambda: converted(cv.KernelWarehouse(cell_ratio=0.5, nonlocal_ratio=0.5), upcycle=False),
    "warehouse per layer": lambda: converted(cv.KernelWarehouse(sharing="layer")),
    "linear dyconv": lambda: converted(cv.DyConv(), cv.where.linear()),
    "linear condconv": lambda: converted(cv.CondConv(), cv.where.linear()),
    "linear dcd": lambda: converted(cv.DCD(), cv.where.linear()),
    "two methods": twice,
    "norms folded": lambda: cv.fold_norms(dynamic_net(cv.ODConv(experts=2)), torch.randn(1, 3, 16, 16)),
    "mixed biases folded": lambda: cv.fold_norms(dynamic_net(cv.DCD()), torch.randn(1, 3, 16, 16)),
}


@pytest.fixture(params=CASES)
def model(request):
    torch.manual_seed(0)
    return CASES[request.param]()


def test_comes_back_from_json_and_state_dict(model):
    told = cv.recipe(model)
    static = Net()
    again = cv.reconvert(static, json.loads(json.dumps(told, sort_keys=True)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))
    assert cv.recipe(again) == told
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not any(isinstance(m, cv.nn.Placed) for m in static.modules())  # a copy was changed


def test_on_the_meta_device(model):
    with torch.device("meta"):
        again = cv.reconvert(Net(), cv.recipe(model), inplace=True)
    assert all(p.is_meta for p in again.parameters())
    again.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.allclose(again.eval()(x), model(x), atol=1e-6)


def test_what_a_recipe_says():
    torch.manual_seed(0)
    told = cv.recipe(converted(cv.KernelWarehouse()))
    assert told["convary"] == cv.__version__ and told["sites"] == sum(1 for _ in cv.nn.sites(Net()))
    assert cv.config_from_json(json.dumps(told["layers"]["features.1.conv.0.0"])) == cv.KernelWarehouse()
    assert [len(names) for names in told["shared"]] == [4, 2]
    blocks = cv.recipe(converted(BLOCKS, cv.where.blocks()))
    assert blocks["routers"] == {"features.1": 8, "features.2": 8}
    folded = cv.recipe(CASES["norms folded"]())["folded"]
    assert folded["features.1.conv.0.0"] == "features.1.conv.0.1"


def test_a_part_and_a_whole_with_it_inside():
    model = nn.Sequential(nn.Identity(), converted(cv.ODConv(experts=2)))
    again = cv.reconvert(nn.Sequential(nn.Identity(), Net()), cv.recipe(model))
    again.load_state_dict(model.state_dict())
    part = cv.reconvert(Net(), cv.recipe(model[1]))
    part.load_state_dict(model[1].state_dict())


def test_a_single_layer_is_its_own_root():
    layer = cv.convert(nn.Conv2d(8, 16, 3, bias=False), cv.WeightNet(), cv.where.all())
    again = cv.reconvert(nn.Conv2d(8, 16, 3, bias=False), cv.recipe(layer))
    again.load_state_dict(layer.state_dict())
    assert isinstance(again, cv.WeightNet2d)


def test_frozen_layers_modes_and_dtypes_are_the_static_ones():
    told = cv.recipe(converted(cv.KernelWarehouse()))
    static = Net().double().eval()
    static.features.requires_grad_(False)
    again = cv.reconvert(static, told)
    layers = [m for m in again.modules() if isinstance(m, cv.KernelWarehouse2d)]
    assert {m.weight.dtype for m in layers} == {torch.float64}
    assert not any(m.weight.requires_grad or m.training for m in layers)


def test_layers_of_the_class_itself_are_not_told_of():
    class Own(nn.Sequential):
        def __init__(self):
            super().__init__(cv.ODConv2d(3, 8, 3, experts=2), nn.Conv2d(8, 8, 3))

    model = cv.convert(Own(), cv.DyConv(experts=2), cv.where.all())
    assert list(cv.recipe(model)["layers"]) == ["1"]
    cv.reconvert(Own(), cv.recipe(model)).load_state_dict(model.state_dict())


class Deeper(Net):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(2, 2)


def changed(**parts):
    return lambda told: told | parts


def options(**parts):
    name = "features.1.conv.0.0"
    return lambda told: told | {"layers": {name: told["layers"][name] | parts}, "scaled": [name]}


REFUSED = [
    ("no recipe", Net, lambda told: told["layers"], "a recipe is what convary.recipe"),
    ("newer", Net, changed(version=7), "the recipe has version 7, .*update convary"),
    ("a part", Net, lambda told: {k: told[k] for k in told if k != "shared"}, "lacks shared"),
    ("method", Net, options(method="odcnov"), "no method 'odcnov'.*did you mean 'odconv'"),
    ("option", Net, options(expert=4), "no option 'expert'.*did you mean 'experts'"),
    ("newer method", Net, options(version=9), "odconv config has version 9.*update convary"),
    ("missing", lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), lambda told: told, "has no layer 'features.1.conv.0.0'"),
    ("no layer", Net, options(), None),
    ("another sort", Net,
     lambda told: told | {"layers": {"features": told["layers"]["features.1.conv.0.0"]}, "scaled": []},
     "has a Sequential 'features', where the recipe has a layer of ODConv"),
    ("dynamic", lambda: converted(cv.DyConv()), lambda told: told,
     "features.1.conv.0.0 .* is a DyConv2d already; give the n"),
    ("more layers", Deeper, lambda told: told, "with 8 convolutions and linear layers; this Deeper has 9"),
    ("shared", Net, changed(shared=[["features.1.conv.0.0", "features.1.conv.1.0"]]), "of ODConv share no weights"),
    ("shared alone", Net, changed(shared=[["features.0.0"]]), "shares weights of features.0.0, which it does not conv"),
    ("scaled alone", Net, changed(scaled=["features.0.0"]), "scales features.0.0, which it does not convert"),
    ("routed", Net, changed(routers={"features.1": 8}), "gives features.1 a shared router, but each"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "change", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_reconvert_refuses(build, change, message):
    told = change(cv.recipe(converted(cv.ODConv(experts=2))))
    if message is None:
        cv.reconvert(build(), told)
    else:
        with pytest.raises(cv.ConfigError, match=message):
            cv.reconvert(build(), told)


def test_a_static_model_has_no_recipe():
    with pytest.raises(cv.ConfigError, match=r"Net has no layer that convary.convert made"):
        cv.recipe(Net())
