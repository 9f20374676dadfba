# SPDX-License-Identifier: Apache-2.0
"""Published parameter counts and static MACs, exactly (tests/golden/param_counts.json)."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

import convary as cv
from convary import where
from tests.golden.case import COUNTS

NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenetv2_050", "mobilenetv2_075", "mobilenetv2_100")
MOBILE = NETS[4:]


def static(name: str) -> nn.Module:
    with torch.device("meta"):
        if name.startswith("mobilenetv2"):
            return models.mobilenet_v2(width_mult=int(name[-3:]) / 100)
        return getattr(models, name)()


def without_classifier_bias(model: nn.Module) -> nn.Module:
    """The ODConv paper's CondConv networks have a classifier without bias."""
    head = model.fc if hasattr(model, "fc") else model.classifier[1]
    head.register_parameter("bias", None)
    return model


def cases():
    all_but_stem = where.all() & ~where.first()
    for net in NETS:
        yield f"static_{net}", net, None, None
        for K in (1, 2, 4):
            yield f"od_{net}_K{K}", net, cv.ODConv(experts=K), None
    for net in ("resnet18", "resnet50"):
        yield f"dyconv_{net}_4x", net, cv.DyConv(), None
        yield f"condconv_{net}_8e", net, cv.CondConv(experts=8, router="block"), None
    for net in MOBILE:
        yield f"dyconv_{net}_4x", net, cv.DyConv(), all_but_stem
        yield f"dyconv_{net}_4x_last_static", net, cv.DyConv(), None
        for K in (4, 8):
            yield f"cond_{net}_{K}e", net, cv.CondConv(experts=K, router="block"), None
    for K in (1, 2, 4):
        yield f"kw{K}x_resnet18", "resnet18", cv.KernelWarehouse(cell_ratio=K), None
    half = cv.KernelWarehouse(cell_ratio=1 / 2, in_ratio=1 / 2, out_ratio=1 / 2)
    yield "kw1d2x_resnet18", "resnet18", half, None
    yield "kw1d4x_resnet18", "resnet18", dataclasses.replace(half, cell_ratio=1 / 4), None
    for K in (1, 4):
        yield f"kw{K}x_resnet50", "resnet50", cv.KernelWarehouse(cell_ratio=K), None
    yield "kw1d2x_resnet50", "resnet50", dataclasses.replace(half, nonlocal_ratio=1 / 16), None
    for net in (MOBILE[0], MOBILE[2]):
        yield f"kw1x_{net}", net, cv.KernelWarehouse(), None
        yield f"kw4x_{net}", net, cv.KernelWarehouse(cell_ratio=4, sharing="role"), None
    yield "kw1x_convnext_tiny", "convnext_tiny", cv.KernelWarehouse(norm="layer"), None
    for net in NETS[:4]:
        yield f"{net}_dcd", net, cv.DCD(), None
    for net in MOBILE:
        for squeeze in (8, 16):
            yield f"{net.replace('_', '_dcd_')}_squeeze{squeeze}", net, cv.DCD(squeeze=squeeze), None
    yield "cgc_resnet50", "resnet50", cv.CGC(), None
    for net in NETS[:4]:
        yield f"kaijieshi7_dy_{net}", net, cv.DyConv(extra_hidden=1), all_but_stem


@pytest.mark.parametrize(
    ("name", "net", "config", "selector"), list(cases()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_parameters(name, net, config, selector):
    model = static(net)
    if isinstance(config, cv.CondConv):
        without_classifier_bias(model)
    if config is not None:
        planned = cv.plan(model, config, selector, upcycle=False)
        with torch.device("meta"):
            model = planned.apply()
        promised = planned._model_params + sum(r.params_after - r.params_before for r in planned.rows)
        assert promised == COUNTS[name]
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("experts", [4, 8])
def test_condconv_efficientnet(experts):
    import timm

    with torch.device("meta"):
        config = cv.CondConv(experts=experts, router="block")
        selector = where.paper(config) & ~where.classifier()
        model = cv.convert(timm.create_model("efficientnet_b0"), config, selector, upcycle=False)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[f"efficientnet_cc_b0_{experts}e"]


# Millions of multiply-adds of convolutions and linear layers at 224x224, counted on the authors' networks (ODConv).
# torchvision's ResNet-50 and -101 stride in the 3x3, as the released code does.
MACS = {
    "resnet18": "1814.07", "resnet50": "4089.18", "resnet101": "7801.41", "mobilenetv2_100": "300.77",
    "mobilenetv2_075": "209.07", "mobilenetv2_050": "97.13",
}  # fmt: skip


@pytest.mark.parametrize("net", MACS)
def test_static_macs(net):
    model, x = static(net), torch.empty(1, 3, 224, 224, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.eval()(x)
    told = cv.summary(model, x)
    assert told.macs == counter.get_total_flops() // 2
    assert f"{told.macs / 1e6:.2f}" == MACS[net]
    assert (told.routing, told.assembly, told.other, told.dynamic_layers) == (0, 0, 0, 0)
