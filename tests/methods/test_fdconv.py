# SPDX-License-Identifier: Apache-2.0
"""FDConv beside the contract: the authors' numbers, its spectra and bands by their definitions, where it starts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import convary as cv
from convary.methods import fdconv
from tests.nets import excite
from tests.test_golden import Case, cases


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layer_of(case: Case) -> nn.Module:
    k = {name: value for name, value in case.kwargs.items() if name != "convert_param"}
    layer = cv.FDConv2d(**{"kernels" if name == "kernel_num" else name: k[name] for name in k}, dtype=torch.float64)
    (row, column), half = case.expected["indices"][0].long().flatten(1), layer.weight.shape[1]
    number = torch.arange(len(row)) * layer.K // len(row)
    layer.group_of[row * half + column] = number.to(torch.uint8)  # frequencies of one radius in their order
    return layer.train(case.training)


@pytest.mark.parametrize("name", cases("fdconv_*"))
def test_follows_the_released_layer(name):
    """Values, and gradients by the authors' names through the map of their layout."""
    case = Case(name)
    layer = layer_of(case)
    x = case.inputs["x"].requires_grad_()
    theirs = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in case.state.items()}
    seen = {}
    layer.router.register_forward_hook(lambda m, a, out: seen.update(out=out))
    state = layer.from_released(theirs)
    out = torch.func.functional_call(layer, state, (x,))
    case.close("out", out)
    print(layer)
