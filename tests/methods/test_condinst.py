# SPDX-License-Identifier: Apache-2.0
"""CondInst's dynamic mask head: golden vectors, the split of its first layer, its memory, its errors."""

import pytest
import torch
import torch.nn.functional as F

import convary as cv
from convary.errors import ConfigError, ShapeError
from convary.methods.condinst import MaskHead, aligned_bilinear, dice_loss, mask_logits, split_params
from tests.golden.case import Case


def problem(N=5, B=2, H=6, W=7, head=None, dtype=torch.float64):
    torch.manual_seed(0)
    head = head or MaskHead()
    features = torch.randn(B, head.features, H, W, dtype=dtype)
    params = torch.randn(N, head.num_params, dtype=dtype)
    location, size = 50 * torch.rand(N, 2, dtype=dtype), torch.tensor([64.0, 128, 256, 512, 1024], dtype=dtype)[:N]
    return features, params, torch.arange(N) % B, location, size, head


def plain(features, params, index, location, size, head, stride=8):
    """By the formula, an instance at a time, its features copied beside its own coordinates."""
    H, W = features.shape[2:]
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    pixels = torch.stack((x, y)) * stride + stride // 2
    kernels = split_params(params, head)
    rows = []
    for n in range(len(params)):
        m = features[index[n]]
        if head.coordinates:
            m = torch.cat(((location[n, :, None, None] - pixels) / size[n], m))
        for number, (weight, bias) in enumerate(kernels):
            m = F.conv2d(m.relu() if number else m, weight[n], bias[n])
        rows.append(m)
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["condinst_mask_head_n3", "condinst_mask_head_no_coords"])
@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm"])
def test_golden_mask_head(name, strategy):
    case = Case(name)
    settings = case.settings
    features, params = (case.inputs[key].requires_grad_() for key in ("mask_feats", "params"))
    soi = torch.tensor(settings["sizes_of_interest"]).double()
    head = MaskHead(coordinates=case.kwargs["rel_coords"])
    location = torch.tensor(settings["locations"]).double()
    with cv.ops.strategy(strategy):
        logits = mask_logits(
            features, params, torch.tensor(settings["im_inds"]), location, soi[settings["fpn_levels"]], head
        )
    case.close("logits_feature_stride", logits)
    out = aligned_bilinear(logits, 2)
    case.close("out", out)
    case.close("out.scores", out.sigmoid())
    case.backward(out)
    case.check_gradients({"mask_feats": features.grad, "params": params.grad})


def test_golden_split_params():
    case = Case("condinst_parse_params_169")
    kernels = split_params(case.inputs["params"], MaskHead())
    for number, (weight, bias) in enumerate(kernels):
        case.close(f"out.w{number}", weight)
        case.close(f"out.b{number}", bias)


def test_split_params_by_layer():
    """The order of other ports: the same kernels after their numbers are moved."""
    head = MaskHead()
    params = torch.arange(head.num_params).expand(2, -1)
    moved = torch.cat(
        [params[:, i:j] for i, j in ((0, 80), (152, 160), (80, 144), (160, 168), (144, 152), (168, 169))], 1
    )
    for one, other in zip(split_params(params, head), split_params(moved, MaskHead(order="by_layer")), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("factor", [2, 4])
def test_golden_aligned_bilinear(factor):
    case = Case(f"condinst_aligned_bilinear_x{factor}")
    x = case.inputs["x"].requires_grad_()
    out = aligned_bilinear(x, factor)
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"x": x.grad})


def test_aligned_bilinear_keeps_positions_and_is_linear_between_them():
    ramp = torch.arange(6.0).expand(1, 1, 1, 6)
    for factor in (2, 3, 4):
        got = aligned_bilinear(ramp, factor)[0, 0, 0]
        assert torch.allclose(got[factor // 2 :: factor], ramp[0, 0, 0], atol=1e-6)
        assert torch.allclose(got[factor // 2 : 1 - factor].diff(), torch.tensor(1 / factor), atol=1e-6)
    assert aligned_bilinear(ramp, 1) is ramp


def test_golden_dice_loss():
    case = Case("condinst_dice_loss")
    logits = case.inputs["logits"].requires_grad_()
    loss = dice_loss((3 * logits).sigmoid(), case.inputs["gt"])
    case.close("out", loss)
    case.close("out.mean", loss.mean())
    loss.mean().backward()
    case.check_gradients({"logits": logits.grad})


@pytest.mark.parametrize(
    "head",
    [
        MaskHead(),
        MaskHead(coordinates=False),
        MaskHead(order="by_layer"),
        MaskHead(layers=1),
        MaskHead(layers=2, features=4, channels=3),
    ],
)
def test_equals_the_plain_form(head):
    """The split of the first layer is an identity; with float32 and the native kernels up to rounding."""
    arguments = problem(head=head)
    assert torch.allclose(mask_logits(*arguments), plain(*arguments), rtol=1e-10, atol=1e-10)
    single = [a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
    want = plain(*arguments)
    assert mask_logits(*single).double().sub(want).abs().max() <= 2e-5 * want.abs().max()


def test_gradients_reach_everything():
    features, params, index, location, size, head = problem(N=2)
    leaves = [t.clone().requires_grad_() for t in (features, params)]
    assert torch.autograd.gradcheck(lambda f, p: mask_logits(f, p, index, location, size, head), leaves)


def test_no_instances():
    features, params, index, location, size, head = problem(N=0)
    leaves = [t.requires_grad_() for t in (features, params)]
    out = mask_logits(*leaves, index, location, size, head)
    assert out.shape == (0, 1, 6, 7)
    out.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in leaves)
    assert dice_loss(out.sigmoid(), out).shape == (0,)


def test_the_features_are_not_copied_per_instance():
    """One more instance costs its activations (8 channels), never its image's features (8 + 2) beside them."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(t.shape for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t))
            return out

    head = MaskHead(features=16, channels=4)
    features, params, index, location, size, head = problem(N=5, head=head, dtype=torch.float32)
    with Watch(), cv.ops.strategy("native"):
        mask_logits(features, params, index, location, size, head)
    assert max(shape.numel() for shape in seen if shape[0] == 5) < 5 * 16 * 6 * 7


def test_errors_say_what_is_wanted():
    features, params, index, location, size, head = problem()
    with pytest.raises(ShapeError, match=r"\(N, 169\); got \(5, 168\)"):
        split_params(params[:, 1:], head)
    with pytest.raises(ShapeError, match=r"features must be \(B, 8, H, W\)"):
        mask_logits(features[:, 1:], params, index, location, size, head)
    with pytest.raises(ShapeError, match=r"5 instances want index \(5,\)"):
        mask_logits(features, params, index[1:], location, size, head)
    with pytest.raises(ShapeError, match="make them equal"):
        dice_loss(features, features[1:])
    with pytest.raises(ConfigError, match="order"):
        MaskHead(order="w0b0")
    with pytest.raises(ConfigError, match="layers must be at least 1"):
        MaskHead(layers=0)
    with pytest.raises(ConfigError, match="factor"):
        aligned_bilinear(features, 0)
