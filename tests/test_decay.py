# SPDX-License-Identifier: Apache-2.0
"""param_groups: what weight decay leaves alone."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

import convary as cv
from convary import METHODS, where


def spared(model: nn.Module, **options) -> set[str]:
    names = {p: name for name, p in model.named_parameters()}
    decayed, free = cv.param_groups(model, **options)
    assert (decayed["weight_decay"], free["weight_decay"]) == (options.get("weight_decay", 1e-4), 0.0)
    found = [names[p] for group in (decayed, free) for p in group["params"]]
    assert sorted(found) == sorted(n for n, p in model.named_parameters() if p.requires_grad)  # each once
    return {names[p] for p in free["params"]}


@pytest.mark.parametrize("config", [*(c() for c in METHODS), cv.CondConv(router="block")], ids=str)
def test_routers_norms_biases_and_gates_are_spared(config):
    model = cv.convert(models.mobilenet_v3_small(num_classes=5), config, where.all() & ~where.gate())
    model.features[0][0].weight.requires_grad_(False)
    free = spared(model, weight_decay=0.05)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        keep = "router." in name or name.endswith("bias") or isinstance(owner, nn.modules.batchnorm._BatchNorm)
        keep = keep or "fc1" in name or "fc2" in name  # torchvision's squeeze-and-excitation
        assert (name in free) == keep, name
    assert any("router.linear." in n or "router.heads." in n for n in free)


def test_a_bias_bank_has_two_axes_and_is_spared():
    assert "bias" in spared(cv.DyConv2d(3, 4, 3))


def test_what_the_model_itself_exempts():
    model = timm.create_model("deit_tiny_patch16_224", depth=1)
    assert {"pos_embed", "cls_token"} <= spared(model)


def test_only_decay_shrinks():
    layer = cv.ODConv2d(4, 4, 3, bias=False)
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    optimizer = torch.optim.SGD(cv.param_groups(layer, 0.1), lr=1.0)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.9 if name == "weight" else 1.0))


def test_bad_arguments():
    with pytest.raises(cv.ConfigError, match="weight_decay must be"):
        cv.param_groups(nn.Conv2d(3, 3, 1), -1)
    with pytest.raises(cv.ConfigError, match="no parameter that requires a gradient"):
        cv.param_groups(nn.Conv2d(3, 3, 1).requires_grad_(False))
    (only,) = cv.param_groups(nn.BatchNorm2d(3))
    assert only["weight_decay"] == 0
