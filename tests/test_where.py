# SPDX-License-Identifier: Apache-2.0
"""Placement in other people's models: heads, prediction layers and frozen constants stay, and a backbone is found."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models import detection, segmentation

import convary as cv
from convary import METHODS, where
from convary.nn import sites
from convary.papers import COUNTS
from tests.nets import Net

CLASSIFIERS = (
    "resnet50 mobilenet_v2 mobilenet_v3_small squeezenet1_0 densenet121 vgg11 convnext_tiny shufflenet_v2_x0_5 "
    "mnasnet0_5 efficientnet_b0 resnext50_32x4d"
).split()
KINDS = ("classification", "regression")
DETECTORS = {
    "fasterrcnn_resnet50_fpn": ["rpn.head.cls_logits", "rpn.head.bbox_pred"],
    "fasterrcnn_mobilenet_v3_large_fpn": ["rpn.head.cls_logits", "rpn.head.bbox_pred"],
    "maskrcnn_resnet50_fpn": ["rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"],
    "retinanet_resnet50_fpn": ["head.classification_head.cls_logits", "head.regression_head.bbox_reg"],
    "fcos_resnet50_fpn": [
        "head.classification_head.cls_logits", "head.regression_head.bbox_reg", "head.regression_head.bbox_ctrness"
    ],
    "ssd300_vgg16": [f"head.{kind}_head.module_list.{i}" for kind in KINDS for i in range(6)],
    "ssdlite320_mobilenet_v3_large": [
        f"head.{kind}_head.module_list.{i}.1" for kind in KINDS for i in range(6)
    ],
}  # fmt: skip
SEGMENTERS = {
    "fcn_resnet50": ["classifier.4", "aux_classifier.4"],
    "deeplabv3_resnet50": ["classifier.4", "aux_classifier.4"],
    "deeplabv3_mobilenet_v3_large": ["classifier.4", "aux_classifier.4"],
    "lraspp_mobilenet_v3_large": ["classifier.low_classifier", "classifier.high_classifier"],
}


def build(name: str, **options) -> nn.Module:
    if name not in DETECTORS:
        if not name.startswith("lraspp"):
            options["aux_loss"] = True
        return getattr(segmentation, name)(weights=None, weights_backbone=None, **options)
    return getattr(detection, name)(weights=None, weights_backbone=None, **options)


@pytest.fixture(scope="module", params=[*DETECTORS, *SEGMENTERS])
def network(request):
    with torch.device("meta"):
        return request.param, build(request.param)


def picked(model: nn.Module, selector: where.Selector) -> list[str]:
    return [site.name for site in sites(model) if selector(site)]


def test_predictions_are_found_in_every_head(network):
    name, model = network
    assert picked(model, where.prediction()) == (DETECTORS | SEGMENTERS)[name]
    assert set(picked(model, where.prediction())) <= set(picked(model, where.all()))


def test_papers_change_the_backbone_of_a_detector_alone(network):
    name, model = network
    body = "backbone.body." if "rcnn" in name or name.startswith(("retina", "fcos")) else "backbone."
    everywhere = [site for site in sites(model) if site.is_conv]
    assert picked(model, where.backbone()) == [s.name for s in everywhere if s.name.startswith(body)]
    for config in METHODS:
        names = picked(model, where.paper(config))
        assert names and all(n.startswith(body) for n in names), config
    alone = model.get_submodule(body[:-1])
    for config in METHODS:
        inside = [f"{body}{n}" for n in picked(alone, where.paper(config))]
        assert [n for n in picked(model, where.paper(config)) if "extra" not in n] == [
            n for n in inside if "extra" not in n
        ], config


def test_the_plan_says_why_a_layer_stays():
    with torch.device("meta"):
        plan = cv.plan(build("fasterrcnn_resnet50_fpn"), cv.ODConv())
    reasons = {row.name: row.reason for row in plan.rows}
    assert "makes predictions" in reasons["rpn.head.cls_logits"]
    assert (
        "outside the backbone" in reasons["rpn.head.conv.0.0"] and "outside" in reasons["backbone.fpn.layer_blocks.0.0"]
    )
    assert reasons["backbone.body.conv1"] == "not selected"
    assert "outside the backbone" in plan.summary
    # ODConv's README: Faster R-CNN with ResNet-50 goes from 43.80 to 108.91 million, by its backbone's banks alone
    grown = sum(row.params_after - row.params_before for row in plan.rows)
    assert grown == COUNTS["od_resnet50_K4"] - COUNTS["static_resnet50"]


def test_a_frozen_backbone_converts_like_a_trainable_one():
    with torch.device("meta"):
        model = build("fasterrcnn_resnet50_fpn")
    model.backbone.requires_grad_(False)
    assert picked(model, where.constant()) == []
    names = picked(model, where.paper(cv.ODConv))
    model.requires_grad_(True)
    assert names == picked(model, where.paper(cv.ODConv)) and len(names) == 48


class Own(nn.Module):
    """A segmenter without a known name: functional activations, a frozen blur, two heads side by side."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.blur = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False).requires_grad_(False))
        self.mask, self.edge = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 1, 1)
        self.act, self.loss = nn.Sigmoid(), nn.BCELoss()

    def forward(self, x):
        x = self.blur(F.relu(self.two(F.relu(self.one(x)))))
        return self.act(self.mask(x)), self.act(self.edge(x))


def test_a_network_of_ones_own():
    model = Own()
    assert picked(model, where.prediction()) == ["mask", "edge"]
    assert picked(model, where.constant()) == ["blur.0"]
    assert picked(model, where.paper(cv.ODConv)) == ["two"]
    assert picked(model, where.all()) == ["one", "two", "blur.0", "mask", "edge"]
    assert cv.plan(model, cv.ODConv(), where.all()).converted == ("one", "two", "blur.0", "mask", "edge")
    reasons = {row.name: row.reason for row in cv.plan(model, cv.ODConv()).rows}
    assert reasons["blur.0"] == "it is a frozen constant" and "predictions" in reasons["edge"]
    with pytest.raises(cv.ConfigError, match=r"where.backbone\(\) knows no feature extractor in this model"):
        cv.plan(model, cv.ODConv(), where.backbone())
    with pytest.raises(cv.ConfigError, match="knows no feature extractor"):
        cv.plan(model, cv.ODConv(), where.all() & ~where.backbone())


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Conv2d(3, 4, 3), []),  # a layer alone is what was asked for
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)), ["2"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 3), nn.ReLU()), []),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.PixelShuffle(2), nn.Tanh()), ["1"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.InstanceNorm2d(8), nn.Tanh()), []),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)), []),
        (nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)]), ["2"]),
        (nn.ModuleList([nn.Conv2d(8, 2, 3), nn.Conv2d(16, 2, 3)]), ["0", "1"]),
    ],
    ids=lambda v: "" if isinstance(v, nn.Module) else "-".join(v) or "none",
)
def test_predictions_by_structure(model, names):
    assert picked(model, where.prediction()) == names


def test_published_networks_are_as_they_were():
    """Classification: no convolution is set aside, unless it is the classifier."""
    with torch.device("meta"):
        for name in CLASSIFIERS:
            assert not any(site.aside for site in sites(models.get_model(name, weights=None))), name
        bit = timm.create_model("resnetv2_50x1_bit")
        assert [site.name for site in sites(bit) if site.aside] == ["head.fc"]


def test_timm_backbones():
    with torch.device("meta"):
        features = timm.create_model("resnet18", features_only=True)
        wrapped = nn.ModuleDict({"net": features, "head": nn.Conv2d(512, 4, 1)})
    assert picked(features, where.backbone()) == picked(features, where.all())
    assert picked(features, where.prediction()) == []
    assert picked(wrapped, where.backbone()) == [f"net.{name}" for name in picked(features, where.all())]
    assert "head" not in picked(wrapped, where.paper(cv.ODConv))


def test_a_classifier_around_a_backbone_is_no_detector():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.fc = models.resnet18(), nn.Linear(1000, 3)

    with torch.device("meta"):
        model = Classifier()
    assert picked(model, where.paper(cv.CondConv))[-1] == "fc"  # the published dynamic classifier
    assert not any(site.outside for site in sites(model))


MADE = {config.name: cv.convert(Net(), config(), where.all()) for config in METHODS}
MADE["block router"] = cv.convert(Net(), cv.CondConv(router="block"), where.blocks())
MADE["perceptrons"] = cv.convert(cv.convert(Net(), cv.DCD(), where.all()), cv.DCD(), where.linear())
MADE["involution"] = cv.convert(
    nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)),
    cv.Involution(group_channels=4),
    where.kernel_size(3),
    upcycle=False,
)


@pytest.mark.parametrize("name", MADE)
def test_nothing_inside_a_router_is_a_place(name):
    """A second conversion sees what the first one left, and no part of what makes kernels."""
    model = MADE[name]
    made = [n for n, m in model.named_modules() if isinstance(m, cv.nn.Router | cv.nn.Placed)]
    assert made
    for selector in (where.all(), where.linear(), where.name("*"), where.type(nn.Linear, nn.Conv2d), ~where.first()):
        assert not [n for n in picked(model, selector) if any(n.startswith(f"{m}.") for m in made)]
    hint = "" if name == "involution" else ".*routers are made of is left out"
    with pytest.raises(cv.ConfigError, match=f"nothing to convert.*(none of them|not) selected{hint}"):
        cv.plan(model, cv.DyConv(), where.name("*.router.*", "*.span", "*.reduce.*"))


def test_a_second_conversion_takes_the_classifier_alone():
    model = cv.convert(MADE["odconv"], cv.DyConv(experts=2), where.linear())
    told = cv.recipe(model)
    assert [n for n, layer in told["layers"].items() if layer["method"] == "dyconv"] == ["classifier"]
    cv.reconvert(Net(), told).load_state_dict(model.state_dict())
