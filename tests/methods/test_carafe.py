"""CARAFE: operator and layer as released, at every scale."""

import pytest
import torch
import torch.nn.functional as F

import convary as cv
from convary.errors import ConfigError, ShapeError
from tests.golden.case import Case, cases
from tests.nets import check_graphs


@pytest.mark.parametrize("name", cases("carafe_op_*"))
def test_golden_operator(name):
    case = Case(name)
    k = case.kwargs
    x, masks = case.inputs["features"].requires_grad_(), case.inputs["masks"].requires_grad_()
    out = cv.ops.pixel_conv(
        x,
        masks.unflatten(1, (k["group_size"], -1)),
        kernel_size=k["kernel_size"],
        padding=k["kernel_size"] // 2,
        scale_factor=k["scale_factor"],
    )
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"features": x.grad, "masks": masks.grad})


def test_golden_layer():
    case = Case("carafe_pack_x2")
    k = case.kwargs
    layer = cv.CARAFE(
        k["channels"],
        k["scale_factor"],
        kernel_size=k["up_kernel"],
        groups=k["up_group"],
        encoder_kernel=k["encoder_kernel"],
        compressed_channels=k["compressed_channels"],
        dtype=torch.float64,
    )
    layer.load_state_dict(case.state)
    x = case.inputs["x"].requires_grad_()
    case.close("mask.normalised", layer.kernels(x))
    out = layer(x)
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"x": x.grad} | {key: p.grad for key, p in layer.named_parameters()})


@pytest.mark.parametrize(("scale", "groups", "k"), [(1, 1, 3), (2, 3, 5), (3, 2, 1)])
def test_is_a_weighted_sum_around_the_source(scale, groups, k):
    layer = cv.CARAFE(6, scale, kernel_size=k, groups=groups, compressed_channels=4, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    kernels = layer.kernels(x)
    assert torch.allclose(kernels.sum(2), torch.ones(()).double())
    columns = F.unfold(x, k, padding=k // 2).reshape(2, groups, 6 // groups, k * k, 5, 4)
    columns = columns.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    assert torch.allclose(layer(x), (columns * kernels.unsqueeze(2)).sum(3).flatten(1, 2))


@pytest.mark.parametrize(("k", "d"), [(3, 2), (5, 3), (1, 4)])
def test_a_dilated_encoder_sees_further(k, d):
    layer = cv.CARAFE(6, encoder_kernel=k, encoder_dilation=d, compressed_channels=4, dtype=torch.float64)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    columns = F.unfold(layer.channel_compressor(x), k, dilation=d, padding=d * (k // 2))
    encoder = layer.content_encoder
    maps = (encoder.weight.flatten(1) @ columns + encoder.bias[:, None]).unflatten(2, (9, 8))
    want = F.pixel_shuffle(maps, 2).unflatten(1, (1, -1)).softmax(2)
    torch.testing.assert_close(layer.kernels(x), want)
    assert layer(x).shape == (2, 6, 18, 16)


def test_starts_as_an_average():
    torch.manual_seed(0)
    x = torch.rand(1, 64, 9, 9)
    want = F.interpolate(F.avg_pool2d(x, 5, 1, 2), scale_factor=2)
    assert (cv.CARAFE(64)(x) - want).abs().max() < 0.01


@pytest.mark.slow
def test_exports_compiles_and_autocasts(tmp_path):
    layer = cv.CARAFE(6, kernel_size=3, compressed_channels=4)
    check_graphs(layer, (torch.randn(2, 6, 8, 9),), (torch.randn(3, 6, 11, 6),), tmp_path)


def test_refuses_wrong_sizes():
    for options in (
        {"groups": 4},
        {"kernel_size": 4},
        {"encoder_kernel": 2},
        {"compressed_channels": 0},
        {"encoder_dilation": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            cv.CARAFE(6, **options)
    with pytest.raises(ShapeError, match=r"\(B, 6, H, W\); got \(1, 5, 8, 8\)"):
        cv.CARAFE(6)(torch.randn(1, 5, 8, 8))
