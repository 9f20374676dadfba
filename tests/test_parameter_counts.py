# SPDX-License-Identifier: Apache-2.0
"""Published parameter counts and static MACs, exactly (convary.papers.COUNTS)."""

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convary as cv
from convary.models import create
from convary.nn.modes import shapes_only
from convary.papers import COUNTS, TABLES
from convary.selector import selector

NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenetv2_050", "mobilenetv2_075", "mobilenetv2_100")
MOBILE = NETS[4:]


def static(network: str) -> nn.Module:
    with shapes_only():
        return create(network)


def network(net: str) -> str:
    """``mobilenetv2_050`` as ``convary.models.create`` calls it."""
    name, _, width = net.partition("_")
    return f"torchvision:mobilenet_v2@{int(width) / 100}" if width else f"torchvision:{name}"


def rows():
    """Those of the published tables whose network was counted, each network once."""
    for table in TABLES:
        for row in table.rows:
            if row.count and row.network and not row.conversions:
                yield row


def others():
    """Networks of the authors' code that are in no table."""
    all_but_stem = "all & ~first"
    for net in NETS:
        yield f"static_{net}", net, None, "paper"
        for K in (1, 2, 4):
            yield f"od_{net}_K{K}", net, cv.ODConv(experts=K), "paper"
    for net in MOBILE:
        yield f"cond_{net}_4e", net, cv.CondConv(experts=4, router="block"), "paper"
        for squeeze in (8, 16):
            yield f"{net.replace('_', '_dcd_')}_squeeze{squeeze}", net, cv.DCD(squeeze=squeeze), "paper"
    for net in NETS[:4]:
        yield f"{net}_dcd", net, cv.DCD(), "paper"
        yield f"kaijieshi7_dy_{net}", net, cv.DyConv(extra_hidden=1), all_but_stem


DEEP = re.compile("resnet34|resnet101|_075")  # left to the slow tests: shallower and wider ones have the same layers


def cases():
    found = {row.count: (row.network, row.method, row.where, row.classifier_bias) for row in rows()}
    for name, net, config, where in others():
        found.setdefault(name, (network(net), config, where, not name.startswith("cond_")))
    return [
        pytest.param(name, *case, marks=pytest.mark.slow if DEEP.search(name) else ()) for name, case in found.items()
    ]


@pytest.mark.parametrize(
    ("name", "net", "config", "where", "bias"), cases(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_parameters(name, net, config, where, bias):
    model = static(net)
    if not bias:  # as in the networks that the ODConv paper compares with
        (model.fc if hasattr(model, "fc") else model.classifier[1]).register_parameter("bias", None)
    if config is not None:
        planned = cv.plan(model, config, selector(where, config), upcycle=False)
        with shapes_only():
            model = planned.apply(inplace=True)
        promised = planned._model_params + sum(r.params_after - r.params_before for r in planned.rows)
        assert promised == COUNTS[name]
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_most_counts_are_of_published_rows():
    assert len({row.count for row in rows()}) > 50


# Millions of multiply-adds of convolutions and linear layers at 224x224, counted on the authors' networks (ODConv).
# torchvision's ResNet-50 and -101 stride in the 3x3, as the released code does.
MACS = {
    "resnet18": "1814.07", "resnet50": "4089.18", "resnet101": "7801.41", "mobilenetv2_100": "300.77",
    "mobilenetv2_075": "209.07", "mobilenetv2_050": "97.13",
}  # fmt: skip


@pytest.mark.parametrize(
    "net",
    [net if net in ("resnet18", "mobilenetv2_100") else pytest.param(net, marks=pytest.mark.slow) for net in MACS],
)
def test_static_macs(net):
    model, x = static(network(net)), torch.empty(1, 3, 224, 224, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.eval()(x)
    told = cv.summary(model, x)
    assert told.macs == counter.get_total_flops() // 2
    assert f"{told.macs / 1e6:.2f}" == MACS[net]
    assert (told.routing, told.assembly, told.other, told.dynamic_layers) == (0, 0, 0, 0)
