# SPDX-License-Identifier: Apache-2.0
"""The dynamic perceptron."""

import pytest
import torch
from torch import nn

import convary as cv


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", [None, 4])
def test_mixed_linear_follows_the_formula(activation, reduction):
    layer = cv.MixedLinear(8, 5, experts=3, activation=activation, reduction=reduction)
    nn.init.normal_(layer.bias)
    x = torch.randn(4, 8)
    pi = layer.coefficients(x).kernel
    if activation == "softmax":
        torch.testing.assert_close(pi.sum(1), torch.ones(4))
        assert (pi >= 0).all()
    want = torch.stack([sum(pi[b, k] * (layer.weight[k] @ x[b] + layer.bias[k]) for k in range(3)) for b in range(4)])
    torch.testing.assert_close(layer(x), want)


def test_mixed_linear_with_axes_between_and_upcycled():
    static = nn.Linear(8, 5)
    for config in (cv.CondConv(), cv.DyConv(temperature=30.0)):
        layer = config.build(static)
        assert isinstance(layer, cv.MixedLinear)
        layer.load_static(static.weight, static.bias, noise=0.2)
        for shape in ((3, 8), (8,), (2, 7, 8), (0, 8), (2, 3, 4, 8)):
            x = torch.randn(*shape)
            torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradcheck(
        cv.MixedLinear(3, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    )
    with pytest.raises(cv.ShapeError, match=r"wants x of shape \(B, \*, 8\)"):
        layer(torch.randn(3, 9))
    with pytest.raises(cv.ConfigError, match="experts"):
        cv.MixedLinear(3, 3, experts=0)
    with pytest.raises(cv.ConfigError, match="activation"):
        cv.MixedLinear(3, 3, activation="tanh")


def test_mixed_linear_is_routed_per_sample():
    layer = cv.MixedLinear(6, 4).eval()
    x = torch.randn(5, 6)
    changed = x.clone()
    changed[3] += 1
    assert torch.equal(layer(x)[:3], layer(changed)[:3])
