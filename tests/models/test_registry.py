# SPDX-License-Identifier: Apache-2.0
"""Networks by name."""

import pytest
import torch
from torch import nn

import convary as cv
from convary.errors import CheckpointError, ConfigError
from convary.models import build, create
from convary.papers import COUNTS


def params(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet20_is_the_published_one():
    model = build("resnet20", 10)  # He et al. 2016, Table 6: 0.27M; option A shortcuts have no parameters
    assert params(model) == 269_722
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 20
    assert cv.summary(model, torch.zeros(1, 3, 32, 32)).macs == 40_551_040  # 0.041 G


def test_mobilenet_v2_tiny_is_small():
    model = build("mobilenet_v2_tiny", 10, 1, (28, 28))
    assert params(model) == 64_402
    assert model.features(torch.zeros(1, 1, 28, 28)).shape == (1, 128, 4, 4)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2_tiny", "resnet20", "torchvision:resnet18", "timm:mobilenetv3_small_050"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_channels_and_classes(name, channels):
    model = build(name, 7, channels, (32, 32))
    assert model.training
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mobilenet_v2_tiny", "torchvision:mobilenet_v2"])
def test_the_seed_decides_the_weights_and_nothing_else_changes(name):
    before = torch.get_rng_state()
    one, same, other = (build(name, 10, 1, (28, 28), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("method", cv.METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["mobilenet_v2_tiny", "resnet20"])
def test_every_paper_finds_its_layers(name, method):
    plan = cv.plan(build(name, 10), method())
    assert len(plan.converted) >= 4
    assert plan.apply()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet2O", "unknown model 'resnet2O'; did you mean 'resnet20'"),
        ("torchvision:resnet19", "torchvision has no classification model 'resnet19'; did you mean 'resnet18'"),
        ("timm:resnet18q", "timm has no model 'resnet18q'; did you mean 'resnet18'"),
        ("torchvision:", "unknown model 'torchvision:'"),
        ("torchvision:alexnet", r"does not take images of shape \(3, 32, 32\).*choose another model"),
    ],
)
def test_unknown_and_unfit_names(name, message):
    with pytest.raises(ConfigError, match=message):
        build(name, 10)


def test_shufflenets_and_timms_resnets_and_mobilenets_come_in_any_width():
    with torch.device("meta"):
        shuffle, residual, mobile = (
            create(f"{name}@0.5")
            for name in ("torchvision:shufflenet_v2_x1_0", "timm:resnet50", "timm:mobilenetv1_100")
        )
    assert [shuffle.conv1[0].out_channels, shuffle.stage2[0].branch1[2].out_channels] == [24, 29]
    assert [residual.conv1.out_channels, residual.layer1[0].conv2.out_channels, residual.fc.in_features] == [
        64,
        32,
        1024,
    ]
    assert mobile.classifier.in_features == 512
    assert build("timm:resnet18@0.25", 7, 1).fc.weight.shape == (7, 128)
    with pytest.raises(CheckpointError, match="there are none of another width"):
        create("torchvision:shufflenet_v2_x1_0@0.5", pretrained=True)


@pytest.mark.parametrize("name", ["torchvision:resnet18@0.5", "timm:resnet26d@0.5", "resnet20@0.5"])
def test_networks_of_the_authors_have_a_width_only_where_their_builder_has(name):
    with torch.device("meta"):
        narrow = create("torchvision:mobilenet_v2@0.5")
    assert sum(p.numel() for p in narrow.parameters()) == COUNTS["static_mobilenetv2_050"]
    with pytest.raises(ConfigError, match=r"no width to choose|want torchvision:NAME"):
        create(name)
