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


def test_with_a_rate_banks_routers_gates_and_the_rest_are_groups():
    model = cv.convert(models.mobilenet_v3_small(num_classes=5), cv.CondConv(), where.all() & ~where.gate())
    names = {p: name for name, p in model.named_parameters()}
    groups = cv.param_groups(model, 0.05, lr=0.1)
    assert [group["name"] for group in groups] == [
        "bank x8", "router, no decay", "gate, no decay", "rest", "rest, no decay",
    ]  # fmt: skip
    assert {group["lr"] for group in groups} == {0.1}
    found = {group["name"]: [names[p] for p in group["params"]] for group in groups}
    assert sorted(member for members in found.values() for member in members) == sorted(names.values())
    for name, members in found.items():
        assert name.startswith("router") == all("router." in member for member in members)
        assert name.startswith("gate") == all(".fc1." in member or ".fc2." in member for member in members)
    assert all(isinstance(model.get_submodule(n.removesuffix(".weight")), cv.nn.DynamicLayer) for n in found["bank x8"])
    free = {p for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {names[p] for p in free} == spared(model, weight_decay=0.05)


@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
def test_sgd_gets_the_kernels_that_a_bank_sums(config):
    model = cv.convert(nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)), config, where.all())
    K = {"condconv": 8, "dyconv": 4, "dynet": 6, "odconv": 4}.get(config.name, 1)
    groups = {group["name"].partition(",")[0]: group for group in cv.param_groups(model, 0.1, lr=0.2, optimizer="sgd")}
    bank = groups["bank" if K == 1 else f"bank x{K}"]
    assert bank["lr"] == pytest.approx(0.2 * K)
    assert groups["router"]["lr"] == groups["rest"]["lr"] == 0.2
    decayed = [g for g in cv.param_groups(model, 0.1, lr=0.2, optimizer="sgd") if g["weight_decay"]]
    assert decayed[0]["weight_decay"] == pytest.approx(0.1 / K)
    assert decayed[0]["params"][0] is model[0].weight


def test_spectra_of_fdconv_and_banks_of_several_sizes():
    model = cv.convert(
        nn.Sequential(nn.Conv2d(16, 16, 3), nn.Linear(16, 4)), cv.FDConv(kernels=4, param_ratio=3), where.all()
    )
    model = cv.convert(model, cv.DyConv(), where.linear())
    rates = {group["name"]: group["lr"] for group in cv.param_groups(model, lr=1.0, optimizer="sgd")}
    assert (rates["bank x3"], rates["bank x4"], rates["bank x4, no decay"]) == (3.0, 4.0, 4.0)
    static = cv.param_groups(nn.Conv2d(3, 3, 1), lr=1.0, optimizer="sgd")
    assert [(group["name"], group["lr"]) for group in static] == [("rest", 1.0), ("rest, no decay", 1.0)]


def test_groups_fit_an_optimizers_state_after_reconvert():
    def network():
        return models.mobilenet_v3_small(num_classes=5)

    def optimizer(model):
        return torch.optim.SGD(cv.param_groups(model, 0.01, lr=0.1, optimizer="sgd"), momentum=0.9)

    model = cv.convert(network(), cv.ODConv(), where.all() & ~where.gate())
    first = optimizer(model)
    schedule = torch.optim.lr_scheduler.StepLR(first, 1, gamma=0.5)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    first.step()
    schedule.step()
    again = cv.reconvert(network(), cv.recipe(model))
    again.load_state_dict(model.state_dict())
    second = optimizer(again)
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.param_groups, second.param_groups, strict=True):
        assert (a["name"], a["lr"]) == (b["name"], b["lr"])
        assert a["lr"] == (0.2 if a["name"].startswith("bank") else 0.05)  # the schedule keeps the ratios
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(first.state[p]["momentum_buffer"], second.state[q]["momentum_buffer"])


def test_bad_rates():
    for lr in (0, -1, float("nan"), float("inf")):
        with pytest.raises(cv.ConfigError, match="lr must be a finite number above 0"):
            cv.param_groups(nn.Conv2d(3, 3, 1), lr=lr)
    with pytest.raises(cv.ConfigError, match="optimizer must be one of adamw, sgd; got 'adam'.*did you mean 'adamw'"):
        cv.param_groups(nn.Conv2d(3, 3, 1), lr=0.1, optimizer="adam")
