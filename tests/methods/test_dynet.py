# SPDX-License-Identifier: Apache-2.0
"""DyNet: its two forms, and its formula."""

import pytest
import torch
from torch import nn

import convary as cv


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("groups", [1, 2])
def test_dynet_mixing_outputs_equals_mixing_kernels(groups):
    """The paper trains one and infers with the other; values and every gradient agree."""
    layer = cv.DyNetConv2d(4, 6, 3, padding=1, groups=groups, experts=6).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    results = {}
    for strategy in ("outputs", "grouped"):
        with cv.ops.strategy(strategy):
            y = layer(x)
        results[strategy] = (y, *torch.autograd.grad(y.cos().sum(), (x, *layer.parameters())))
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_dynet_follows_the_formula():
    layer = cv.DyNetConv2d(3, 4, 1, bias=False, experts=2)
    x = torch.randn(1, 3, 2, 2)
    eta = layer.router.linear(x.mean((2, 3))).sigmoid().reshape(2, 4)
    kernel = (eta[:, :, None, None, None] * layer.weight).sum(0)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, kernel))
