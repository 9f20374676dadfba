"""HDFNet against the authors' numbers; sizes, export, compilation, precision, bad input."""

import json

import pytest
import torch

import convary as cv
from convary.models.hdfnet import hdfnet
from tests.test_golden import GOLDEN, Case, cases


@pytest.mark.parametrize("name", cases("hdfnet_vgg16*"))
def test_whole_network_agrees_with_the_authors(name):
    case = Case(name)
    with torch.device("meta"):  # every tensor is loaded
        model = hdfnet(pretrained=False).double()
    model = model.to_empty(device="cpu")
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    report = cv.load_released(model, case.state)
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["in_data"], case.inputs["in_depth"]).sigmoid())


@pytest.mark.parametrize(
    ("backbone", "theirs"), [("vgg16", "HDFNet_VGG16"), ("vgg19", "HDFNet_VGG19"), ("resnet50", "HDFNet_Res50")]
)
def test_parameter_counts(backbone, theirs):
    with torch.device("meta"):
        model = hdfnet(backbone, pretrained=False)
    counts = json.loads((GOLDEN / "param_counts.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == counts["counts"][theirs]["params"]
