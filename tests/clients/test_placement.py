# SPDX-License-Identifier: Apache-2.0
"""Placement in networks that Ultralytics, segmentation_models_pytorch, MONAI and transformers build."""

import pytest
import torch

import convary as cv
from convary import where
from convary.nn import sites


def picked(model, selector):
    return [site.name for site in sites(model) if selector(site)]


@pytest.fixture(scope="module", params=["yolo11n.yaml", "yolov8n.yaml"])
def yolo(request):
    return pytest.importorskip("ultralytics.nn.tasks").DetectionModel(request.param, verbose=False)


def test_yolo(yolo):
    detect = f"model.{len(yolo.model) - 1}"
    last = [f"{detect}.cv{branch}.{i}.2" for branch in (2, 3) for i in range(3)]
    assert picked(yolo, where.prediction()) == last
    assert picked(yolo, where.constant()) == [f"{detect}.dfl.conv"]
    count = len(yolo.yaml["backbone"])
    inside = picked(yolo, where.backbone())
    assert inside and all(int(name.split(".")[1]) < count for name in inside)
    assert f"{detect}.dfl.conv" in picked(yolo, where.all()) and set(last) <= set(picked(yolo, where.all()))
    for method in cv.METHODS:
        assert set(picked(yolo, where.paper(method))) <= set(inside), method
    neck = where.all() & ~where.prediction() & ~where.constant()
    assert len(picked(yolo, neck)) == len(picked(yolo, where.all())) - 7


def test_yolo_as_planned_computes_the_same(yolo):
    yolo.eval()
    plan = cv.plan(yolo, cv.ODConv(experts=2))
    reasons = {row.name: row.reason for row in plan.rows}
    detect = f"model.{len(yolo.model) - 1}"
    assert reasons[f"{detect}.dfl.conv"] == "it is a frozen constant"
    assert "makes predictions" in reasons[f"{detect}.cv3.0.2"]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want, got = yolo(x)[0], plan.apply()(x)[0]
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("name", ["Unet", "DeepLabV3Plus", "FPN", "MAnet", "PSPNet"])
def test_smp(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, name)("resnet18", encoder_weights=None)
    assert picked(model, where.prediction()) == ["segmentation_head.0"]
    inside = picked(model, where.backbone())
    assert inside == [n for n in picked(model, where.all()) if n.startswith("encoder.")]
    assert all(n.startswith("encoder.") for method in cv.METHODS for n in picked(model, where.paper(method)))


def test_monai():
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1
    )
    assert picked(model, where.prediction()) == ["model.2.1.conv.unit0.conv"]
    plan = cv.plan(model, cv.ODConv(experts=2), where.all())
    assert sum("transposed" in (row.reason or "") for row in plan.rows) == 2
    with pytest.raises(cv.ConfigError, match="knows no feature extractor"):
        cv.plan(model, cv.ODConv(), where.backbone())


def test_transformers():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        segmenter = transformers.MobileViTForSemanticSegmentation(transformers.MobileViTConfig())
        classifier = transformers.ResNetForImageClassification(transformers.ResNetConfig())
        backbone = transformers.ResNetBackbone(transformers.ResNetConfig())
    assert picked(segmenter, where.prediction()) == ["segmentation_head.classifier.convolution"]
    assert all(n.startswith("mobilevit.") for n in picked(segmenter, where.paper(cv.ODConv)))
    assert picked(classifier, where.backbone()) == picked(classifier, where.all())
    assert picked(backbone, where.backbone()) == picked(backbone, where.all())
    assert not any(site.aside for site in [*sites(classifier), *sites(backbone)])
