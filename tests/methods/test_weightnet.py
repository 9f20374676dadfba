# SPDX-License-Identifier: Apache-2.0
"""WeightNet beside the contract: the golden vectors, the formula, its published networks' sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convary as cv
from tests.golden.case import COUNTS, Case, cases
from tests.nets import excite


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def like_theirs(C: int, O: int, k: int, stride: int, groups: int = 1) -> cv.WeightNet2d:
    return cv.WeightNet2d(C, O, k, stride, k // 2, groups=groups, bias=False, dtype=torch.float64)


def with_reduce(state: dict[str, torch.Tensor], layer: cv.WeightNet2d) -> dict[str, torch.Tensor]:
    """The layer's tensors and, as the authors keep it in the block, any ``reduce``."""
    reduce = layer.router.reduce
    return state | {"reduce.weight": reduce.weight.detach()[..., None, None], "reduce.bias": reduce.bias.detach()}


@pytest.mark.parametrize("name", [c for c in cases("weightnet_*") if "block" not in c])
@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm"])
def test_layers_of_the_released_code(name, strategy):
    case = Case(name)
    k = case.kwargs
    depthwise = "oup" not in k
    layer = like_theirs(k["inp"], k.get("oup", k["inp"]), k["ksize"], k["stride"], k["inp"] if depthwise else 1)
    case.state = with_reduce(case.state, layer)
    cv.load_released(layer, case.state)
    case.released(layer)
    x, reduced = (case.inputs[name].requires_grad_() for name in ("x", "x_gap"))
    activations = layer.router.expand(reduced.flatten(1))
    case.close("attention.hidden", activations.splits.transpose(1, 2))
    case.close("kernel.generated", layer.kernels(activations).flatten(0, 1))
    with cv.ops.strategy(strategy):
        out = layer(x, activations)
    case.close("out", out)
    case.backward(out)
    fc1 = layer.router.linear
    grads = {"x": x.grad, "x_gap": reduced.grad, "wn_fc1.weight": fc1.weight.grad, "wn_fc1.bias": fc1.bias.grad}
    case.check_gradients(grads | {"wn_fc2.weight": layer.weight.grad.flatten(1).T})


class Block(nn.Module):
    """A ShuffleNetV2 block as the authors have it: one reduction of its input serves all of its layers."""

    def __init__(self, C: int, O: int, middle: int, stride: int, **factory):
        super().__init__()
        self.stride = stride
        self.reduce = nn.Conv2d(C, max(16, C // 16), 1, **factory)
        shapes = [(C, middle, 1, 1, 1), (middle, middle, 3, stride, middle), (middle, O - C, 1, 1, 1)]
        if stride == 2:
            shapes += [(C, C, 3, stride, C), (C, C, 1, 1, 1)]
        for i, (c, o, k, s, groups) in enumerate(shapes):
            layer = cv.WeightNet2d(c, o, k, s, k // 2, groups=groups, bias=False, **factory)
            layer.router.reduce = nn.Identity()  # the block's
            name = f"{i + 1}" if i < 3 else f"_proj_{i - 2}"
            self.add_module(f"wnet{name}", layer)
            self.add_module(f"bn{name}", nn.BatchNorm2d(o, **factory))

    def forward(self, x):
        kept, x = x[:, ::2], x[:, 1::2]
        context = self.reduce(x.mean((2, 3), keepdim=True)).flatten(1)
        for i in (1, 2, 3):
            layer, norm = self.get_submodule(f"wnet{i}"), self.get_submodule(f"bn{i}")
            x = norm(layer(x, layer.router.expand(context)))
            x = x if i == 2 else F.relu(x)
        return torch.cat([kept, x], 1)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        own = {}
        for name, value in state.items():
            if name.endswith("wn_fc2.weight"):
                layer = self.get_submodule(name.partition(".")[0])
                own[name.replace("wn_fc2.", "")] = value.flatten(1).T.reshape(layer.weight.shape)
            else:
                value = value.flatten(1) if name.endswith("fc1.weight") else value
                own[name.replace("wn_fc1", "router.linear")] = value
        self.load_state_dict(own)


def test_a_block_of_the_released_network_with_one_reduction_for_its_layers():
    case = Case("weightnet_shufflev2_block_s1_eval")
    block = Block(12, 24, 12, 1, dtype=torch.float64).eval()
    block.load(case.state)
    x = case.inputs["old_x"].requires_grad_()
    case.close("context", block.reduce(x[:, 1::2].mean((2, 3), keepdim=True)))
    out = block(x)
    case.close("out", out)
    case.backward(out)
    case.check_gradients(
        {
            "old_x": x.grad,
            "reduce.weight": block.reduce.weight.grad,
            "wnet1.wn_fc1.weight": block.wnet1.router.linear.weight.grad,
            "wnet2.wn_fc2.weight": block.wnet2.weight.grad.flatten(1).T,
            "wnet3.wn_fc1.bias": block.wnet3.router.linear.bias.grad,
        }
    )


@pytest.mark.parametrize(("name", "width"), [("0.5x", 48), ("1.0x", 112), ("1.5x", 176), ("2.0x", 248)])
def test_the_published_networks_have_as_many_parameters(name, width):
    """ShuffleNetV2 of trimmed widths (the authors' note), every convolution of its blocks a WeightNet."""
    with torch.device("meta"):
        parts = [nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24)]
        C = 24
        for stage, repeats in enumerate((4, 8, 4)):
            O = width << stage
            for i in range(repeats):
                parts.append(Block(C if i == 0 else C // 2, O, O // 2, 2 if i == 0 else 1))
                C = O
        parts += [nn.Conv2d(C, 1024, 1), nn.BatchNorm2d(1024), nn.Linear(1024, 1000)]
    found = sum(p.numel() for part in parts for p in part.parameters())
    assert found == COUNTS[f"weightnet_shufflenetv2_{name}"]


@pytest.mark.parametrize("geometry", [{"groups": 1}, {"groups": 2}, {"groups": 8}])
@pytest.mark.parametrize("expansion", [2, 8])
def test_is_the_published_grouped_linear_layer(geometry, expansion):
    """Eq. 3 read literally: a 1x1 convolution with G O groups, of which the released code has only groups 1 and C."""
    layer = excite(cv.WeightNet2d(8, 8, 3, padding=1, expansion=expansion, **geometry))
    x = torch.randn(2, 8, 5, 7)
    activations = layer.router(x)
    K, (O, C_group, *k) = expansion // 2, layer.kernel_shape
    splits = 1 if C_group == 1 else 2
    flat = activations.splits.transpose(1, 2).reshape(2, O * splits * K, 1, 1)
    numbers = layer.weight.flatten(1).T.reshape(-1, K, 1, 1)
    want = F.conv2d(flat, numbers, groups=O * splits).reshape(2, O, C_group, *k)
    torch.testing.assert_close(layer.kernels(activations), want, rtol=1e-4, atol=1e-5)
    hidden = layer.router.reduce(x.mean((2, 3)))
    want = layer.router.linear(hidden).sigmoid().reshape(2, -1, K).transpose(1, 2)
    torch.testing.assert_close(activations.splits, want)


def test_splits_that_do_not_divide_a_filter():
    """27 numbers in two splits are 14 and 13; a filter of one number is one split."""
    layer = excite(cv.WeightNet2d(3, 2, 3))
    scaled = layer.kernels(layer.router(torch.randn(1, 3, 4, 4))) / layer.weight
    assert [len(row.unique(dim=0)) for row in scaled.flatten(2)[0].round(decimals=5)] == [2, 2]
    first = scaled.flatten(2)[0, 0]
    assert torch.allclose(first[:14], first[:1]) and torch.allclose(first[14:], first[-1:])
    assert cv.WeightNet2d(1, 4, 1).router.linear.out_features == 4


def test_experts_of_a_split_differ_after_upcycling():
    static = nn.Conv2d(6, 4, 3)
    layer = cv.WeightNet(expansion=8).build(static)
    layer.load_static(static.weight, static.bias, noise=0.5)
    assert len(layer.weight) == 4 and layer.weight.std(0).min() > 0
    torch.testing.assert_close(layer.weight.mean(0), static.weight)


def test_the_released_layout_has_no_bias():
    with pytest.raises(cv.CheckpointError, match="without bias"):
        cv.released_state(cv.WeightNet2d(4, 4, 3))
