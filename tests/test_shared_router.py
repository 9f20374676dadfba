# SPDX-License-Identifier: Apache-2.0
"""Blocks whose layers share a router."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchvision import models

import convary as cv
from convary import where
from convary.nn import DynamicLayer, RoutedBlock
from tests.convertible import Net, same
from tests.nets import NarrowResNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


def test_a_layer_without_its_block_says_so():
    layer = cv.CondConv2d(3, 4, 3, router="block")
    with pytest.raises(cv.ConfigError, match="no router of its own; call it through its block"):
        layer(torch.randn(1, 3, 5, 5))
    with pytest.raises(cv.ConfigError, match="stands in no block"):
        cv.convert(Net(), cv.CondConv(router="block"), where.all())
