# SPDX-License-Identifier: Apache-2.0
"""The methods with usual and unusual options, for tests that hold all of them to something."""

import torch
from torch import nn

import convary as cv
from convary import METHODS

RANKS = (1, 2, 3)
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
VARIANTS = [
    *(config() for config in METHODS),
    cv.CondConv(experts=3, activation="softmax"),
    cv.DyConv(experts=3, activation="sigmoid", hidden_bias=True, extra_hidden=1, temperature=30.0),
    cv.DyNet(experts=2, reduction=2),
    cv.ODConv(experts=1),
    cv.ODConv(experts=3, sharing="per_kernel", temperature=30.0),
    cv.ODConv(experts=2, attentions=("filter", "kernel", "channel"), kernel_activation="sigmoid", norm="layer"),
    cv.ODConv(experts=2, attentions=("channel",), norm="none"),
    cv.DCD(latent="basic"),
    cv.KernelWarehouse(cell_ratio=2.5, in_ratio=0.5, out_ratio=0.5, min_hidden=4),
    cv.KernelWarehouse(spatial_partition=False, norm="layer"),
    cv.WeightNet(expansion=9, splits=3, min_hidden=4),
    cv.CGC(interaction=2),
    cv.FDConv(kernels=5, bands=(3,), min_hidden=4, band_activation="tanh", lowest_band=True),
    cv.FDConv(kernels=1, local=False, bands=()),
    cv.FDConv(kernels=3, param_ratio=2, kernel_attention_only=True, activation="softmax", local_activation="tanh"),
]
SIZE = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}


def excite(layer: nn.Module) -> nn.Module:
    """Random routers and biases, so that samples really get different kernels."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "router" in name or name == "bias":
                p.copy_(torch.randn_like(p))
    return layer


def _layers():
    """Names and makers of networks for x (2, 4, 12, 10)."""
    for method in METHODS:
        for groups in (1, 2):
            conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=groups)
            yield f"{method.name}-{groups}", lambda method=method, conv=conv: method().build(conv)
    yield "odconv-1-per_kernel", lambda: cv.ODConv2d(4, 6, 3, experts=2, sharing="per_kernel")
    yield "odconv-2-per_kernel", lambda: cv.ODConv2d(4, 6, 3, experts=2, sharing="per_kernel", groups=2)
    yield "odconv-1-one", lambda: cv.ODConv2d(4, 6, 3, experts=1)
    yield "dcd-1-basic", lambda: cv.DCDConv2d(4, 6, 3, latent="basic")
    yield "weightnet-1-wide", lambda: cv.WeightNet2d(4, 6, 3, expansion=4)
    yield "carafe", lambda: cv.CARAFE(4, groups=2)
    yield "involution", lambda: cv.Involution2d(4, 3, 2, group_channels=2)
    yield "dmnet", lambda: cv.DynamicConvModule(4, 6, 3)
    yield "mixedlinear", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), cv.MixedLinear(4, 3))
    yield "dcdlinear", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), cv.DCDLinear(4, 3))


LAYERS = dict(_layers())
