"""Involution: as released, in place of convolutions, at every stride; what it can't replace, and why."""

import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, resnet50

import convary as cv
from convary import where
from convary.errors import ConfigError, ShapeError
from tests.golden.case import Case, cases
from tests.nets import check_graphs


@pytest.mark.parametrize("name", cases("involution_*"))
def test_golden(name):
    case = Case(name)
    k = case.kwargs
    layer = cv.Involution2d(k["channels"], k["kernel_size"], k["stride"], dtype=torch.float64).eval()
    layer.load_state_dict(case.state)
    x = case.inputs["x"].requires_grad_()
    case.close("kernel.generated", layer.kernels(x))
    out = layer(x)
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"x": x.grad} | {key: p.grad for key, p in layer.named_parameters()})


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (3, 1), ((1, 2), 1), (1, 2), (2, 3)])
def test_filters_each_position_with_the_kernel_made_there(size, stride, dilation):
    layer = cv.Involution2d(8, 3, stride, dilation, group_channels=4, dtype=torch.float64).eval()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    kernels = layer.kernels(x)
    out_size = [-(-n // s) for n, s in zip(size, layer.stride, strict=True)]
    assert list(kernels.shape) == [2, 2, 9, *out_size]
    columns = F.unfold(x, 3, dilation, dilation, layer.stride).reshape(2, 2, 4, 9, *out_size)
    want = (columns * kernels.unsqueeze(2)).sum(3).flatten(1, 2)
    assert torch.allclose(layer(x), want)


def test_replaces_a_resnets_convolutions():
    """RedNet-50 has 15.54 M parameters; its stem (3x3, involution, 3x3) has 10,450 more than ResNet-50's 7x7."""
    with torch.device("meta"):
        model = resnet50()
    plan = cv.plan(model, cv.Involution(), upcycle=False)
    assert len(plan.converted) == 16 and all(name.endswith("conv2") for name in plan.converted)
    params = sum(p.numel() for p in plan.apply().parameters())
    stem = (3 * 32 * 9 + 2 * 32) + (32 * 8 + 2 * 8 + 8 * 18 + 18) + (32 * 64 * 9 + 2 * 64) - (3 * 64 * 49 + 2 * 64)
    assert round((params + stem) / 1e6, 2) == 15.54
    assert sum(row.params_after for row in plan.rows if row.after) == 1_290_572


def test_a_converted_network_trains_and_has_the_same_sizes():
    torch.manual_seed(0)
    model = resnet18(num_classes=3)
    converted = cv.convert(model, cv.Involution(kernel_size=None, group_channels=8), where.all(), upcycle=False)
    kinds = {name: type(m).__name__ for name, m in converted.named_modules() if isinstance(m, cv.Involution2d)}
    assert "layer1.0.conv1" in kinds and "layer2.0.conv1" not in kinds  # 64 to 128 channels
    assert converted.layer1[0].conv1.kernel_size == (3, 3)
    x = torch.randn(2, 3, 45, 64)
    out = converted(x)
    assert out.shape == model(x).shape
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())


def test_says_that_it_cannot_upcycle():
    for call in (cv.plan, cv.convert):
        with pytest.raises(ConfigError, match=r"Involution can't compute what a trained .* pass upcycle=False"):
            call(resnet18(), cv.Involution())


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), "makes 32 of 16"),
        (nn.Conv2d(24, 24, 3, padding=1), "24 channels are no multiple of group_channels=16"),
        (nn.Conv2d(16, 16, 3), r"padding .* got \(3, 3\) and \(0, 0\)"),
        (nn.Conv2d(16, 16, 4, padding=2), "odd kernel"),
        (nn.Conv2d(16, 16, 1), "1x1"),
        (nn.Conv1d(16, 16, 3, padding=1), "2-D"),
        (nn.Linear(16, 16), "2-D"),
    ],
)
def test_gives_the_reason_why_a_layer_stays(conv, reason):
    config = cv.Involution()
    with pytest.raises(ConfigError, match=reason):
        config.build(conv)
    net = nn.Sequential(conv, nn.Conv2d(16, 16, 3, padding=1))
    plan = cv.plan(net, config, where.all() | where.linear(), upcycle=False)
    assert re.search(reason, plan.rows[0].reason) and plan.rows[0].reason in str(plan)
    assert plan.converted == ("1",)


def test_takes_over_geometry_dtype_and_mode():
    conv = nn.Conv2d(32, 32, (3, 5), (2, 1), (2, 4), (2, 2), padding_mode="reflect", dtype=torch.float64).eval()
    layer = cv.Involution(kernel_size=None).build(conv)
    x = torch.randn(1, 32, 11, 12, dtype=torch.float64)
    assert layer(x).shape == conv(x).shape and not layer.training
    assert (layer.kernel_size, layer.stride, layer.dilation) == ((3, 5), (2, 1), (2, 2))


def test_plans_its_multiply_adds():
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(32, 32, 3, padding=1, bias=False)))
    plan = cv.plan(net, cv.Involution(), where.all(), upcycle=False, example=torch.zeros(1, 32, 6, 5))
    (row,) = plan.rows
    assert row.macs_before == 32 * 32 * 9 * 30
    assert row.macs_after == (32 * 49 + 32 * 8 + 8 * 2 * 49) * 30


def test_config_round_trips_and_checks():
    config = cv.Involution(kernel_size=None, group_channels=8)
    assert cv.config_from_json(config.to_json()) == config
    for options in ({"kernel_size": 4}, {"group_channels": 0}, {"reduction": 0}, {"kernel_size": 3.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            cv.Involution(**options)
    with pytest.raises(ConfigError, match="no option 'experts'"):
        cv.method("involution", experts=4)


def test_refuses_wrong_sizes():
    with pytest.raises(ConfigError, match="must divide channels"):
        cv.Involution2d(24, 3)
    with pytest.raises(ConfigError, match="odd"):
        cv.Involution2d(16, 4)
    with pytest.raises(ConfigError, match="padding_mode"):
        cv.Involution2d(16, 3, padding_mode="reflected")
    with pytest.raises(ShapeError, match=r"\(B, 16, H, W\); got \(16, 8, 8\)"):
        cv.Involution2d(16, 3)(torch.randn(16, 8, 8))


@pytest.mark.slow
def test_exports_compiles_and_autocasts(tmp_path):
    layer = cv.Involution2d(16, 3, 2).eval()
    check_graphs(layer, (torch.randn(2, 16, 8, 9),), (torch.randn(3, 16, 11, 6),), tmp_path)
