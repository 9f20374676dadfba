"""DMNet's dynamic convolution module: as released, for every size of kernel, sample by sample."""

import pytest
import torch
import torch.nn.functional as F

from convary.errors import ConfigError, ShapeError
from convary.methods.dmnet import DynamicConvModule
from tests.golden.case import Case, cases


@pytest.mark.parametrize("name", cases("dmnet_dcm_*"))
def test_golden(name):
    case = Case(name)
    k = case.kwargs
    module = DynamicConvModule(
        k["in_channels"], k["channels"], k["filter_size"], fusion=k["fusion"], dtype=torch.float64
    ).train(case.training)
    module.load_state_dict(case.state)
    x = case.inputs["x"].requires_grad_()
    case.close("kernel.generated", module.kernels(x))
    out = module(x)
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"x": x.grad} | {key: p.grad for key, p in module.named_parameters()})
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, module.get_buffer(key.removeprefix("post.")))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 7])
def test_an_image_is_filtered_with_its_own_kernels(k):
    module = DynamicConvModule(6, 4, k).eval()
    x = torch.randn(3, 6, 8, 5)
    out = module(x)
    for image, got in zip(x.split(1), out, strict=True):
        before, after = k // 2, (k - 1) // 2
        kernels = module.filter_gen_conv(F.adaptive_avg_pool2d(image, k)).transpose(0, 1)
        padded = F.pad(module.input_redu_conv(image), (before, after, before, after))
        want = F.relu(module.norm(F.conv2d(padded, kernels, groups=4)))
        assert torch.allclose(got, want[0], atol=1e-5)


@pytest.mark.parametrize("fusion", [False, True])
def test_without_norm_there_are_biases(fusion):
    """The names are those of the released module that is built with ``norm_cfg=None``."""
    module = DynamicConvModule(6, 4, 3, norm=False, fusion=fusion)
    parts = ["filter_gen_conv", "input_redu_conv.conv", *(["fusion_conv.conv"] if fusion else [])]
    assert set(module.state_dict()) == {f"{part}.{leaf}" for part in parts for leaf in ("weight", "bias")}
    x = torch.randn(2, 6, 8, 5)
    want = []
    for image in x.split(1):
        kernels = module.filter_gen_conv(F.adaptive_avg_pool2d(image, 3)).transpose(0, 1)
        y = F.relu(F.conv2d(F.relu(module.input_redu_conv.conv(image)), kernels, padding=1, groups=4))
        want.append(F.relu(module.fusion_conv.conv(y)) if fusion else y)
    torch.testing.assert_close(module(x), torch.cat(want), atol=1e-5, rtol=1e-5)


def test_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="kernel_size=0"):
        DynamicConvModule(4, 4, 0)
    with pytest.raises(ShapeError, match=r"\(B, 4, H, W\).*\(1, 5, 8, 8\)"):
        DynamicConvModule(4, 4, 3)(torch.randn(1, 5, 8, 8))


def test_takes_no_images_and_bf16():
    module = DynamicConvModule(6, 4, 3).eval()
    assert module(torch.randn(0, 6, 8, 5)).shape == (0, 4, 8, 5)
    x = torch.randn(2, 6, 8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got = module(x)
    assert torch.allclose(got.float(), module(x), atol=0.1)
