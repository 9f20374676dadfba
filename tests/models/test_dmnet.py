"""DMNet whole: its head as released, its backbone as dilated as torchvision's, recorded for every size."""

from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

import convary as cv
from convary.errors import ConfigError
from convary.models.backbone import RandomWeightsWarning
from convary.models.dmnet import DMHead, DMNet, dilate
from tests.golden.case import Case
from tests.nets import onnx_session


def small(**options):
    torch.manual_seed(0)
    return DMNet(5, backbone="resnet18", channels=8, **options)


@pytest.fixture(scope="module")
def net():
    model = small()
    with torch.no_grad():  # statistics that are not the initial ones
        for _ in range(2):
            model(torch.randn(2, 3, 64, 64))
    return model.eval()


def test_golden_head():
    case = Case("dmnet_head_eval")
    k = case.kwargs
    head = DMHead(
        k["in_channels"], k["channels"], k["num_classes"],
        kernel_sizes=k["filter_sizes"], fusion=k["fusion"], dropout=k["dropout_ratio"],
    )  # fmt: skip
    head.double().eval().load_state_dict(case.state)
    x = case.inputs["inputs"].requires_grad_()
    out = head(x)
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"inputs": x.grad} | {key: p.grad for key, p in head.named_parameters()})


def features(resnet, x):
    stages = (resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
    return nn.Sequential(*stages, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)(x)


def test_dilated_as_torchvision_does():
    ours = dilate(resnet50()).eval()
    theirs = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 33, 48)
    with torch.no_grad():
        assert torch.equal(features(ours, x), features(theirs, x))


def test_dilation_keeps_what_the_strided_network_computes():
    net, x = resnet18().eval().double(), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        strided = features(net, x)
        dense = features(dilate(net), x)
    assert dense.shape[2:] == (8, 12)
    assert torch.allclose(dense[..., ::4, ::4], strided)


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (5, 9)])
def test_logits_have_the_images_size(net, size):
    with torch.no_grad():
        assert net(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_training_gives_both_heads(net):
    model = small().train()
    out = model(torch.randn(2, 3, 40, 40))
    assert [part.shape for part in out] == [(2, 5, 40, 40)] * 2
    sum(part.square().mean() for part in out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_parameters_as_published():
    """The released heads on a ResNet-50: 4096 -> 512 3x3, four modules of 2048 -> 512, auxiliary 1024 -> 256."""
    with torch.device("meta"):
        model = DMNet(19)
    module = 2048 * 512 + 512 + 2048 * 512 + 2 * 512 + 2 * 512
    head = 4 * module + 4096 * 512 * 9 + 2 * 512 + 512 * 19 + 19
    assert sum(p.numel() for p in model.decode_head.parameters()) == head
    assert sum(p.numel() for p in model.auxiliary_head.parameters()) == 1024 * 256 * 9 + 2 * 256 + 256 * 19 + 19
    assert sum(p.numel() for p in model.backbone.parameters()) == 23_508_032


def test_says_that_the_backbone_is_random(monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.warns(RandomWeightsWarning, match="resnet18 starts from random"):
        small(pretrained=True)


def test_there_is_no_such_backbone():
    with pytest.raises(ConfigError, match=r"resnet18.*got 'vgg16'"):
        DMNet(3, backbone="vgg16")


@pytest.mark.slow
def test_one_graph_serves_every_batch_and_size(net, tmp_path):
    program = cv.export(net, torch.randn(2, 3, 48, 64), tmp_path / "dmnet.onnx").module()
    session = onnx_session(tmp_path / "dmnet.onnx")
    for shape in [(1, 3, 64, 40), (3, 3, 61, 33)]:
        x = torch.randn(shape)
        (onnx,) = session(x)
        with torch.no_grad():
            want = net(x)
            assert torch.allclose(program(x), want, atol=1e-4)
        assert (onnx - want).abs().max() < 1e-4


@pytest.mark.slow
def test_compiles_and_autocasts(net):
    x = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        want = net(x)
        assert torch.allclose(torch.compile(net, backend="aot_eager", fullgraph=True)(x), want, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            got = net(x)
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()
