# SPDX-License-Identifier: Apache-2.0
"""SE, CBAM, ECA and weight excitation: published sizes, places, exact starts."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from convary.errors import ConfigError
from convary.models import CBAM, COMPARATORS, ECA, SE, WE, attend, build, fold_excitation
from convary.models.excitation import WeightExcitation

GATES = (SE(), CBAM(), ECA())
SMALL = ("resnet20", "mobilenet_v2_tiny", "convnet_nano", "torchvision:mobilenet_v2@0.25", "timm:mobilenetv2_035")


def params(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("config", "millions"), [(SE(), 11.78), (CBAM(), 11.78), (ECA(), 11.69)], ids=str)
def test_published_sizes_of_resnet18(config, millions):
    for static in (torchvision.models.resnet18(), timm.create_model("resnet18")):
        assert round(params(attend(static, config)) / 1e6, 2) == millions


def test_se_counts_two_layers_with_biases_in_every_block():
    static = torchvision.models.resnet50()
    channels = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    extra = sum(2 * c * (c // 16) + c + c // 16 for c in channels)
    assert params(attend(static, SE())) == params(static) + extra == 28_088_024  # Hu et al.: 28.1 million


@pytest.mark.parametrize("config", GATES, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_an_upcycled_network_computes_what_it_computed(name, config):
    torch.manual_seed(0)
    static = build(name, 10, image_size=(32, 32)).double()
    for module in static.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(3, 3, 32, 32, dtype=torch.double)
    for mode in (True, False):
        want = copy.deepcopy(static).train(mode)(x)
        torch.testing.assert_close(attend(static.train(mode), config, upcycle=True)(x), want)
        assert not torch.allclose(attend(static, config)(x), want)


@pytest.mark.parametrize("config", GATES, ids=str)
def test_gates_stand_where_published(config):
    res, mobile = attend(build("resnet20", 10), config), attend(build("mobilenet_v2_tiny", 10), config)
    kind = type(config.gate(8))
    assert isinstance(res.layer1[0].bn2[1], kind)  # type: ignore[index]
    assert sum(isinstance(m, kind) for m in res.modules()) == 9
    assert isinstance(mobile.features[2].conv[1][1], kind)  # type: ignore[index]  # after the depthwise one
    assert sum(isinstance(m, kind) for m in mobile.modules()) == 6


def test_a_network_without_a_place_is_refused():
    with pytest.raises(ConfigError, match="has no place for SE"):
        attend(build("one_conv", 4), SE())
    with pytest.raises(ConfigError, match="takes no layer's place"):
        SE().build(nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weight_excitation_is_the_formula_and_folds(rank):
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](32, 6, 3).double()
    net = attend(nn.Sequential(conv), WE()).double()
    (made,) = (m for m in net.modules() if isinstance(m, WeightExcitation))
    W = conv.weight.detach().reshape(6, 32, -1)
    W = (W - W.mean((1, 2), keepdim=True)) / (W.std((1, 2), keepdim=True) + 1e-5)
    first, _, second, _ = made.location
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and first.out_features == 2
    hidden = (W.mean(2) @ first.weight.T + first.bias).relu()
    W = W * (hidden @ second.weight.T + second.bias).sigmoid()[:, :, None]
    M = 1.1 * W.abs().max()
    want = M / 2 * torch.log((1 + W / M) / (1 - W / M))
    torch.testing.assert_close(net[0].weight, want.reshape(conv.weight.shape))  # type: ignore[index]
    x = torch.randn(2, 32, *[5] * rank, dtype=torch.double)
    before = net(x)
    folded = fold_excitation(copy.deepcopy(net))
    torch.testing.assert_close(net(x), before)  # a folded copy leaves it alone
    torch.testing.assert_close(folded(x), before)
    assert params(folded) == params(conv) and not any(isinstance(m, WeightExcitation) for m in folded.modules())


def test_weight_excitation_leaves_depthwise_kernels_and_exact_starts_alone():
    net = attend(build("mobilenet_v2_tiny", 10), WE())
    depthwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise and not any(hasattr(m, "parametrizations") for m in depthwise)
    with pytest.raises(ConfigError, match="standardises kernels"):
        attend(build("resnet20", 10), WE(), upcycle=True)


@pytest.mark.parametrize("config", [kind() for kind in COMPARATORS], ids=str)
def test_gradients_reach_everything(config):
    torch.manual_seed(0)
    net = attend(build("resnet20", 10), config)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    reached = [p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters()]
    assert sum(reached) > 0.9 * len(reached)  # a hidden unit or two may sleep


@pytest.mark.parametrize("config", [kind() for kind in COMPARATORS], ids=str)
def test_batches_autocast_and_double_backward(config):
    torch.manual_seed(0)
    net = attend(build("resnet20@0.25", 10), config).eval()
    for count in (1, 3) if config.name == "eca" else (0, 1, 3):  # timm's ECA takes no empty batch
        assert net(torch.randn(count, 3, 16, 16)).shape == (count, 10)
    x = torch.randn(3, 3, 16, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert (net(x).float() - net(x)).isfinite().all()
    twin, x = copy.deepcopy(net).double(), x.double().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(twin(x).sum(), x, create_graph=True), torch.autograd.grad(twin(x).sum(), x)
    )


@pytest.mark.slow
@pytest.mark.parametrize("config", [kind() for kind in COMPARATORS], ids=str)
def test_exports_and_compiles(config):
    torch.manual_seed(0)
    net, x = attend(build("resnet20@0.25", 10), config).eval(), torch.randn(3, 3, 16, 20)
    sizes = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3)}
    program = torch.export.export(
        fold_excitation(copy.deepcopy(net)), (torch.randn(2, 3, 32, 32),), dynamic_shapes=(sizes,)
    )
    torch.testing.assert_close(program.module()(x), net(x))
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x), net(x))


def test_kernels_of_zeros_stay_so():
    conv = nn.Conv2d(4, 4, 3)
    nn.init.zeros_(conv.weight)
    assert not attend(nn.Sequential(conv), WE())[0].weight.any()  # type: ignore[index, union-attr]
