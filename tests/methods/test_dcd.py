# SPDX-License-Identifier: Apache-2.0
"""DCD: the authors' numbers, the formula, its kernels, where it starts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import convary as cv
from convary.methods.dcd_fusion import halves
from tests.golden.case import Case, cases
from tests.nets import excite


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


LATENT = {"conv_basic_dy": "basic", "conv_dy": "bottleneck", "dymodule": "pointwise"}


@pytest.mark.parametrize("name", cases("dcd_*"))
def test_dcd(name):
    case = Case(name)
    k = case.kwargs
    if "dycls" in name:
        layer = cv.DCDLinear(k["inp"], k["oup"], dtype=torch.float64)
    else:
        latent = next(v for part, v in LATENT.items() if part in name)
        C, O = (k.get(a, k.get(b)) for a, b in (("inplanes", "inp"), ("planes", "oup")))
        size = 1 if latent == "pointwise" else 3
        layer = cv.DCDConv2d(
            C, O, size, k.get("stride", 1), size // 2, bias=False, latent=latent, squeeze=k.get("fc_squeeze", 16),
            dtype=torch.float64,
        )  # fmt: skip
    cv.load_released(layer, case.state)
    case.released(layer)
    layer.train(case.training)
    x = case.inputs["x"].requires_grad_()
    seen = []
    layer.router.register_forward_hook(lambda m, a, out: seen.append(out))
    out = layer(x)
    case.close("out", out)
    case.close("attention.phi", seen[0].latent)
    case.close("attention.scale", seen[0].filter)
    case.backward(out)
    case.check_gradients(case.released_gradients(layer) | {"x": x.grad})
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, layer.get_buffer(key.removeprefix("post.bn").replace("1.", "norm1.").replace("2.", "norm2.")))


@pytest.mark.parametrize("name", cases("mobilenetv2_dcd_*"))
def test_dcd_mobilenetv2(name):
    """In torchvision's network, whose parts the authors name otherwise."""
    case = Case(name)
    config = cv.DCD(squeeze=case.kwargs["fc_squeeze"])
    static = models.mobilenet_v2(width_mult=case.kwargs["width_mult"], dropout=0.0)
    model = cv.convert(static, config, upcycle=False).double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    assert len(cv.load_released(model, case.state).dynamic) == 33
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["x"]))


@pytest.mark.parametrize("size", [(6,), (7, 4), (5, 3, 1)])
def test_halves_are_adaptive_pooling_to_two(size):
    x = torch.randn(2, 3, *size)
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    torch.testing.assert_close(halves(x), pool(x, 2).flatten(1))


@pytest.mark.parametrize("latent", ["pointwise", "basic", "bottleneck"])
def test_follows_the_released_formula(latent):
    layer = excite(cv.DCDConv2d(16, 24, 3, stride=2, padding=1, latent=latent)).eval()
    nn.init.normal_(layer.norm1.bias)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 16, 7, 9)
    fusion = layer.router(x)
    scaled = fusion.filter.transpose(1, 2)[..., None] * F.conv2d(x, layer.weight[0], layer.bias, 2, 1)
    q = layer.norm1(F.conv2d(x, layer.q[..., None, None], stride=2)).flatten(2)
    residual = layer.p @ (layer.norm2(fusion.latent @ q) + q)
    torch.testing.assert_close(layer(x), scaled + residual.reshape(scaled.shape), rtol=1e-4, atol=1e-5)
    assert (0 <= fusion.filter).all() and (fusion.filter <= 2).all()


def test_every_block_gets_its_own_latent_space():
    with torch.device("meta"):
        made = [cv.convert(make(), cv.DCD()) for make in (models.resnet18, models.resnet50, models.mobilenet_v2)]
    assert [
        net.get_submodule(name).config.latent
        for net, name in zip(made, ("layer1.0.conv1", "layer1.0.conv1", "features.2.conv.0.0"), strict=True)
    ] == ["basic", "bottleneck", "pointwise"]
    assert isinstance(made[0].fc, cv.DCDLinear) and type(made[2].features[1].conv[1]) is nn.Conv2d


def test_a_trained_residual_folds_to_a_convolution():
    """Frozen coefficients make an ordinary convolution, dense where the layer has groups."""
    for groups in (1, 2):
        layer = excite(cv.DCDConv2d(4, 6, 3, padding=1, groups=groups)).eval()
        layer.router.neutral_()
        folded = cv.fold(layer, [torch.randn(2, 4, 5, 5)])
        assert folded.error < 1e-6 and folded.model.groups == 1
        x = torch.randn(2, 4, 6, 7)
        torch.testing.assert_close(folded.model(x), layer(x), rtol=1e-4, atol=1e-5)
    head = excite(cv.DCDLinear(8, 3)).eval()
    head.router.neutral_()
    x = torch.randn(4, 8)
    torch.testing.assert_close(cv.fold(head, [x]).model(x), head(x), rtol=1e-4, atol=1e-5)


def test_the_classifier_takes_every_shape_and_is_upcycled_exactly():
    static = nn.Linear(8, 5)
    layer = cv.DCD().build(static)
    layer.load_static(static.weight, static.bias, noise=0.1)
    for mode in (True, False):
        layer.train(mode)
        for shape in ((3, 8), (8,), (2, 7, 8), (0, 8), (1, 8), (2, 3, 4, 8)):
            x = torch.randn(*shape)
            torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(cv.ShapeError, match=r"wants x of shape \(B, \*, 8\)"):
        layer(torch.randn(3, 9))


def test_statistics_of_one_number_are_left_alone():
    """The released code raises for one image whose map has one position."""
    layer = cv.DCDConv2d(4, 4, 3).train()
    before = layer.norm1.running_var.clone()
    assert layer(torch.randn(1, 4, 3, 3)).isfinite().all()
    assert torch.equal(layer.norm1.running_var, before)
    layer(torch.randn(1, 4, 4, 4))
    assert not torch.equal(layer.norm1.running_var, before)


def test_the_layout_has_no_bias():
    with pytest.raises(cv.CheckpointError, match="without bias"):
        cv.released_state(cv.DCDConv2d(4, 4, 3))
