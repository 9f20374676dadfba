# SPDX-License-Identifier: Apache-2.0
"""Other people's batch-norm fusion meets every kind of dynamic layer: refused in words, never another function."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import convary as cv
from convary import METHODS

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# Sizes that happen to fit what a fuser computes: as many experts as filters, or one.
FITTING = [cv.CondConv(experts=6), cv.DyNet(experts=6), cv.ODConv(experts=1), cv.CondConv(experts=1)]
CONFIGS = [*(config() for config in METHODS), *FITTING]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=[f"{c.name}{i}" for i, c in enumerate(CONFIGS)])


def torchs(conv, bn):
    return fuse_conv_bn_eval(conv, bn)


def mmcvs(conv, bn):
    bias = conv.bias if conv.bias is not None else torch.zeros_like(bn.running_mean)
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    points = [1] * len(conv.kernel_size)
    conv.weight = nn.Parameter(conv.weight * factor.reshape([conv.out_channels, 1, *points]))
    conv.bias = nn.Parameter((bias - bn.running_mean) * factor + bn.bias)
    return conv


def in_place(conv, bn):
    scale = torch.diag(bn.weight / torch.sqrt(bn.eps + bn.running_var))
    conv.weight.data = (scale @ conv.weight.view(conv.out_channels, -1)).view(conv.weight.shape)
    conv.register_parameter("bias", nn.Parameter(bn.bias - bn.running_mean @ scale))
    return conv


def pair(config, rank, bias):
    torch.manual_seed(0)
    conv = config.build(CONVS[rank](6, 6, 3, padding=1, bias=bias)).eval()
    bn = NORMS[rank](6).eval()
    nn.init.uniform_(bn.running_var, 0.5, 2)
    nn.init.normal_(bn.running_mean)
    return conv, bn


@every_config
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_torchs_own_is_refused_by_name(config, rank, bias):
    conv, bn = pair(config, rank, bias)
    before = copy.deepcopy(conv.state_dict())
    with pytest.raises(cv.FusionError, match="fold_norms"):
        torchs(conv, bn)
    torch.testing.assert_close(conv.state_dict(), before, rtol=0, atol=0)


@every_config
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_put_into_the_layer_is_refused(config, rank, bias):
    with pytest.raises(RuntimeError):
        mmcvs(*pair(config, rank, bias))
    if not bias:  # as detectors have it: their convolutions have none
        with pytest.raises(RuntimeError):
            in_place(*pair(config, rank, bias))


@pytest.mark.parametrize("layer", [cv.MixedLinear(6, 6, experts=6), cv.DCDLinear(6, 6)], ids=lambda m: type(m).__name__)
def test_linear_layers_too(layer):
    with pytest.raises(RuntimeError):
        fuse_linear_bn_eval(layer.eval(), nn.BatchNorm1d(6).eval())


def test_torch_is_as_it_was_until_the_first_dynamic_layer_is_made():
    program = """
from torch.nn.utils import fusion
before = fusion.fuse_conv_bn_weights
import convary as cv, convary.nn, convary.integrations
assert fusion.fuse_conv_bn_weights is before
cv.ODConv2d(3, 4, 3), cv.CondConv2d(3, 4, 3)
assert fusion.fuse_conv_bn_weights.__wrapped__ is before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_torchs_fuser_still_fuses_convolutions():
    torch.manual_seed(0)
    for rank in (1, 2, 3):
        conv, bn = CONVS[rank](4, 6, 3).eval(), NORMS[rank](6).eval()
        nn.init.normal_(bn.running_mean)
        x = torch.randn(2, 4, *[5] * rank)
        torch.testing.assert_close(fuse_conv_bn_eval(conv, bn)(x), bn(conv(x)))


@every_config
def test_what_may_exchange_parameters(config):
    conv, _ = pair(config, 2, True)
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    conv.load_state_dict(state, assign=True)
    assert conv.weight.data_ptr() == state["weight"].data_ptr()
    with torch.device("meta"):
        empty = config.build(nn.Conv2d(6, 6, 3, padding=1))
    empty.weight = nn.Parameter(state["weight"])  # as libraries fill what they built on the meta device
    weight = nn.Parameter(torch.zeros_like(conv.weight))
    with pytest.raises(cv.FusionError, match="data.copy_"):
        conv.weight = weight
    del conv.weight
    conv.weight = weight
    assert conv.weight is weight
    conv.bias = None
    assert conv.bias is None


@every_config
def test_neither_state_dict_goes_into_the_other_network(config):
    static = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1))
    dynamic = cv.convert(static, config, cv.where.all())
    for target, source in ((static, dynamic), (dynamic, static)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            copy.deepcopy(target).load_state_dict(source.state_dict(), strict=False)
