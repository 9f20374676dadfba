# SPDX-License-Identifier: Apache-2.0
"""CGC beside the contract: the golden vectors, the formula, and what the released code can't do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import convary as cv
from convary import where
from tests.golden.case import Case, cases
from tests.nets import excite


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", cases("cgc_*"))
@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm"])
def test_layers_of_the_released_code(name, strategy):
    case = Case(name)
    layer = cv.CGC2d(**case.kwargs, dtype=torch.float64)
    cv.load_released(layer, case.state)
    case.released(layer)
    layer.train(case.training)
    x = case.inputs["x"].requires_grad_()
    seen = []
    layer.router.register_forward_hook(lambda m, a, out: seen.append(out))
    with cv.ops.strategy(strategy):
        out = layer(x)
    case.close("out", out)
    (gate,) = seen
    want = (gate.channel.unsqueeze(1) + gate.filter.unsqueeze(2)).sigmoid()
    case.close("attention.gate", want)
    torch.testing.assert_close(layer.kernels(gate), want.unflatten(3, (3, 3)) * layer.weight[0])
    case.backward(out)
    case.check_gradients(case.released_gradients(layer) | {"x": x.grad})
    theirs = layer.to_released()
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, theirs[key.removeprefix("post.")])


def by_hand(layer: cv.CGC2d, x: torch.Tensor) -> torch.Tensor:
    """Sample by sample, filter by filter and channel by channel; eval mode."""
    router, (O, C_group, kh, kw) = layer.router, layer.kernel_shape
    outs = []
    for image in x:
        z = F.adaptive_avg_pool2d(image, (kh, kw)).flatten(1) @ router.encoder.weight.T  # (C, D)

        def norm(bn: nn.Module, values: torch.Tensor) -> torch.Tensor:
            scale = bn.weight / (bn.running_var + bn.eps).sqrt()
            return F.relu((values - bn.running_mean[:, None]) * scale[:, None] + bn.bias[:, None])

        u = norm(router.channel_norm, z) @ router.heads["channel"].weight.T
        groups = norm(router.interaction_norm, z).chunk(router.groups)
        mixed = torch.cat([router.interaction.weight @ group for group in groups])
        v = norm(router.filter_norm, mixed) @ router.heads["filter"].weight.T
        kernel = layer.weight[0].detach().clone()
        for o in range(O):
            for c in range(C_group):
                channel = o // (O // layer.groups) * C_group + c
                kernel[o, c] *= (u[channel] + v[o]).sigmoid().reshape(kh, kw)
        outs.append(F.conv2d(image[None], kernel, layer.bias, layer.stride, layer.padding, groups=layer.groups))
    return torch.cat(outs)


@pytest.mark.parametrize(
    ("C", "O", "k", "options"),
    [
        (6, 4, 3, {}),  # their code: only square maps
        (6, 4, 3, {"bias": True}),  # drops the bias
        (8, 12, 3, {"groups": 4}),  # fails on groups
        (6, 6, 3, {"groups": 6}),
        (6, 4, (3, 1), {}),  # and on tuples
        (6, 4, 1, {}),
        (24, 36, 3, {}),  # and where 16 does not divide the channels
        (32, 6, 3, {"stride": 2}),
    ],
)
def test_the_formula_where_the_released_code_fails(C, O, k, options):
    layer = excite(cv.CGC2d(C, O, k, padding=1, **({"bias": False} | options), dtype=torch.float64))
    for name, buffer in layer.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(3, C, 7, 10, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("C", "O", "groups"), [(64, 128, 4), (3, 64, 1), (48, 16, 2), (40, 60, 2), (8, 8, 1)])
def test_groups_of_the_interaction_divide_both_sides(C, O, groups):
    interaction = cv.CGC2d(C, O, 3).router.interaction
    assert (interaction.in_features, interaction.out_features) == (C // groups, O // groups)


def test_plans_leave_kernels_of_one_tap_and_say_why():
    with torch.device("meta"):
        model = models.resnet50()
    for selector in (None, where.all()):
        plan = cv.plan(model, cv.CGC(), selector)
        rows = {row.name: row for row in plan.rows}
        assert len(plan.converted) == 17 and rows["conv1"].after and rows["layer1.0.conv2"].after  # 3x3s and the stem
        assert "leaves those of one tap static" in rows["layer1.0.conv1"].reason
        assert f"36 stay: {rows['layer1.0.conv1'].reason}" in plan.summary


def test_the_layout_has_no_bias():
    layer = cv.CGC2d(4, 4, 3)
    with pytest.raises(cv.CheckpointError, match="never adds its bias"):
        cv.released_state(layer)
    with pytest.raises(cv.CheckpointError, match="never adds its bias"):
        cv.load_released(layer, cv.released_state(cv.CGC2d(4, 4, 3, bias=False)))
