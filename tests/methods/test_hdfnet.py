"""HDFNet's layers against the authors' numbers, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F

import convary as cv
from convary.errors import ConfigError, ShapeError
from convary.methods.hdfnet import DDPM, DenseLayer, DenseTransLayer, DepthDC
from tests.golden.case import Case, cases


def depth_dc(in_xC, in_yC, out_C, down_factor, dilation):
    return DepthDC(in_xC, in_yC, out_C, dilation=dilation, depth=down_factor)


BUILD = {
    "depthdc3x3_1": lambda **k: depth_dc(**k, dilation=1),
    "depthdc3x3_3": lambda **k: depth_dc(**k, dilation=3),
    "depthdc3x3_5": lambda **k: depth_dc(**k, dilation=5),
    "denselayer": lambda in_C, out_C, down_factor, k: DenseLayer(in_C, out_C, reduction=down_factor, depth=k),
    "densetranslayer": lambda in_C, out_C: DenseTransLayer(in_C, out_C),
    "ddpm": lambda in_xC, in_yC, out_C, kernel_size, down_factor: DDPM(
        in_xC, in_yC, out_C, kernel_size, depth=down_factor
    ),
}


@pytest.mark.parametrize("name", cases("hdfnet_d*"))
def test_layers_agree_with_the_authors(name):
    case = Case(name)
    layer = BUILD[name.split("_", 1)[1].rsplit("_eval")[0].rsplit("_train")[0]](**case.kwargs).double()
    cv.load_released(layer, case.state)
    case.released(layer)
    layer.train(case.training)
    inputs = {key: value.requires_grad_() for key, value in case.inputs.items()}
    if "kernel.generated" in case.expected:
        case.close("kernel.generated", layer.kernels(inputs["y"]))
    out = layer(*inputs.values())
    case.close("out", out)
    case.backward(out)
    grads = {key: value.grad for key, value in inputs.items()}
    grads |= {layer.released_name(key): p.grad for key, p in layer.named_parameters()}
    case.check_gradients(grads)
    released = cv.released_state(layer)
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, released[key.removeprefix("post.")])


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 2), (5, 1), ((1, 7), (1, 2)), (2, 2)])
def test_any_kernel_size_and_dilation(kernel_size, dilation):
    """Against torch's unfold, which is what the authors use."""
    torch.manual_seed(0)
    layer = DepthDC(4, 8, 6, kernel_size, dilation=dilation).double().eval()
    x, guide = torch.randn(2, 4, 9, 11).double(), torch.randn(2, 8, 9, 11).double()
    k, d = layer.kernel_size, layer.dilation
    padding = [d * (k - 1) // 2 for k, d in zip(k, d, strict=True)]
    columns = F.unfold(x, k, dilation=d, padding=padding).unflatten(1, (4, -1)).unflatten(3, (9, 11))
    torch.testing.assert_close(layer(x, guide), layer.fuse((columns * layer.kernels(guide)).sum(2)))


def test_a_pyramid_of_any_dilations():
    layer = DDPM(12, 8, 16, 5, dilations=(1, 2), reduction=2)
    assert layer(torch.randn(2, 12, 9, 7), torch.randn(2, 8, 9, 7)).shape == (2, 16, 9, 7)
    assert [branch.dilation for branch in layer.branches] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_the_released_down_factor_is_the_depth(depth):
    """Counted by the released layers: m = D / 4 whatever the factor, and as many blocks of m as the factor says."""
    D, inner, O = 16, 4, 16

    def conv(C, O, k, bias=True):
        return C * O * k * k + O * bias

    m = D // 4
    dense = conv(D, m, 1) + sum(conv(m * i, m, 3, bias=False) + 2 * m for i in range(1, depth + 1))
    dense += conv(D + m, D, 3, bias=False) + 2 * D
    branch = conv(D, D, 3) + dense + conv(D, inner * 9, 1) + conv(inner, inner, 3)
    layer = DDPM(8, D, O, depth=depth)
    want = conv(8, inner, 1) + 3 * branch + conv(4 * inner, O, 3, bias=False) + 2 * O
    assert sum(p.numel() for p in layer.parameters()) == want
    assert {len(b.embed[1].dense) for b in layer.branches} == {depth}
    assert layer(torch.randn(2, 8, 6, 5), torch.randn(2, D, 6, 5)).shape == (2, O, 6, 5)


def test_gradients_of_recomputed_kernels():
    torch.manual_seed(0)
    layer = DepthDC(2, 4, 2, recompute=True).double().eval()
    x, guide = torch.randn(1, 2, 4, 3).double().requires_grad_(), torch.randn(1, 4, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, guide))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: DepthDC(4, 8, 4, 2), "dilation \\* \\(kernel_size - 1\\) must be even"),
        (lambda: DepthDC(4, 6, 4), "reduction must divide 6 channels; got 4"),
        (lambda: DenseLayer(4, 8, depth=0), "depth must be at least 1"),
        (lambda: DenseTransLayer(12, 8), "out_channels must divide 12 channels; got 8"),
        (lambda: DDPM(4, 8, 8, depth=0), "depth must be at least 1"),
        (lambda: DDPM(4, 8, 6), "reduction must divide 6 channels"),
        (lambda: DDPM(4, 8, 8, dilations=()), "dilations is empty"),
    ],
)
def test_impossible_options_are_refused(build, match):
    with pytest.raises(ConfigError, match=match):
        build()


def test_a_guide_of_another_size_is_refused():
    for guide in (torch.randn(2, 8, 5, 6), torch.randn(1, 8, 6, 6)):
        with pytest.raises(ShapeError, match=r"x is \(2, 4, 6, 6\) but the guide .* only their channels may differ"):
            DepthDC(4, 8, 4)(torch.randn(2, 4, 6, 6), guide)
