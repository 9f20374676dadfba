# SPDX-License-Identifier: Apache-2.0
"""The norms of routers, and those that other programs put in their place."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import convary as cv

METHODS = [method() for method in cv.METHODS if method is not cv.CondConv]


def learned(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def exchanged(layer: nn.Module, make) -> int:
    """Exchange the norms of a layer by attribute, as most programs do; how many there are."""
    found = [
        (parent, name, child)
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    for parent, name, child in found:
        setattr(parent, name, make(child))
    return len(found)


def frozen(norm: nn.Module) -> nn.Module:
    made = FrozenBatchNorm2d(norm.num_features, norm.eps)
    made.load_state_dict(norm.state_dict())
    return made


def plain(norm: nn.Module) -> nn.Module:
    made = nn.BatchNorm2d(norm.num_features, norm.eps)
    made.load_state_dict(norm.state_dict())
    return made.eval()


@pytest.mark.parametrize("make", [frozen, plain])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_norms_of_maps_compute_the_same(config, rank, make):
    torch.manual_seed(0)
    static = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](8, 8, 3, padding=1)
    layer = config.build(static).eval()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            learned(module)
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 8, *[6] * rank)
    with torch.no_grad():
        want = layer(x)
        count = exchanged(layer, make)
        for _ in range(3):  # prepared calls notice too
            torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)
    assert count == {"odconv": 1, "kernelwarehouse": 1, "fdconv": 1, "dcd": 2, "cgc": 3}.get(config.name, 0)


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_all_are_found_by_the_class_that_programs_look_for(config):
    layer = config.build(nn.Conv2d(8, 8, 3))
    norms = [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    layer.train()
    for norm in norms:
        norm.eval()  # as Ultralytics does with the norms of frozen layers
    layer(torch.randn(4, 8, 6, 6))
    assert all(map(torch.equal, before, (norm.running_mean for norm in norms)))
