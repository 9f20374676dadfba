# SPDX-License-Identifier: Apache-2.0
"""FDConv beside the contract: the authors' numbers, its spectra and bands by their definitions, where it starts."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import convary as cv
from convary.methods.fdconv import Modulation
from convary.nn.bands import FrequencyBands, _box, _lowpass
from tests.nets import excite, onnx_session
from tests.test_golden import Case, cases

SIZES = [(1,), (37,), (8, 10), (9, 12), (7, 1), (65, 64), (5, 3, 6)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class FDCase(Case):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        if "fbm.out" in self.expected:  # which the authors compute in float32
            self.settings["checks"]["float64_noise"] = 1e-8

    def layer(self) -> nn.Module:
        names = {"kernel_num": "kernels"}
        k = {names.get(name, name): value for name, value in self.kwargs.items() if name != "convert_param"}
        layer = cv.FDConv2d(**k, dtype=torch.float64)
        row, column = self.expected["indices"][0].long().flatten(1)
        number = torch.arange(len(row)) * layer.K // len(row)
        layer.group_of[row * layer.weight.shape[1] + column] = number.to(torch.uint8)  # equal radii in their order
        return layer.train(self.training)


@pytest.mark.parametrize("name", cases("fdconv_*"))
def test_equals_the_released_layer(name):
    """Values, and gradients by the authors' names through the map of their layout."""
    case = FDCase(name)
    layer = case.layer()
    x = case.inputs["x"].requires_grad_()
    theirs = {key: value.clone() for key, value in case.state.items()}
    for key in (key for key in case.expected if key.startswith("grad.") and key != "grad.x"):
        theirs[key.removeprefix("grad.")].requires_grad_()
    seen = []
    layer.router.register_forward_hook(lambda module, args, out: seen.append(out))
    state = layer.from_released(theirs)
    out = torch.func.functional_call(layer, state, (x,))
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"x": x.grad} | {key: value.grad for key, value in theirs.items()})
    (found,) = seen
    for axis, value in found.factors().items():
        if axis != "local":
            case.close(f"attention.{ {'tap': 'spatial', 'frequency': 'kernel'}.get(axis, axis) }", value)
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, state[key.replace("post.KSM_Global.bn", "router.norm")])

    layer.load_state_dict(state)
    if "attention.local_logit" in case.expected:
        logits = found.local.unflatten(2, (layer.in_channels, -1)).div(2).logit()  # (B, O, C, T)
        case.close("attention.local_logit", logits.permute(0, 2, 1, 3).flatten(2))
    if "kernel.aggregated" in case.expected:
        if case.settings["branch"] == "feature-side gating":  # there these two scale features
            found = found.replace(channel=None, filter=None)
        case.close("kernel.aggregated", layer.kernels(found).flatten(0, 1))
    if "fbm.out" in case.expected:
        case.close("fbm.out", layer.bands(x))
        masks = [_box(masks) for masks in layer.bands.kept(x)]
        assert torch.equal(torch.stack(masks).double(), case.expected["fbm.masks"][:, 0])


@pytest.mark.parametrize("name", cases("fdconv_*"))
def test_the_released_layout_there_and_back(name):
    case = FDCase(name)
    layer = case.layer().eval()
    cv.load_released(layer, case.state)
    if "dft_weight" in case.state:
        case.released(layer)
    else:  # convert_param=False: the weight is saved as a kernel, and goes back as frequencies
        twin = case.layer().eval()
        cv.load_released(twin, cv.released_state(layer))
        assert torch.equal(twin(case.inputs["x"]), layer(case.inputs["x"]))


def test_published_parameters_of_resnet50():
    with torch.device("meta"):
        static = models.resnet50()
        model = cv.convert(static, cv.FDConv())
    added = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in static.parameters())
    assert added == 3_647_120  # counted on the authors' network
    assert type(model.layer1[0].downsample[0]) is nn.Conv2d and type(model.conv1) is nn.Conv2d


@pytest.mark.parametrize(
    ("C", "O", "k", "groups"),
    [(32, 32, 3, 1), (48, 48, 1, 1), (6, 4, 3, 2), (8, 8, 3, 8), (7, 5, (3, 1), 1), (1, 1, 1, 1)],
)
def test_kernels_are_the_groups_of_one_spectrum(C, O, k, groups):
    """Also where the released code stops: 64 does not divide the frequencies, groups, odd C k."""
    layer = cv.FDConv2d(C, O, k, groups=groups, dtype=torch.float64)
    sizes = layer.group_of.long().bincount(minlength=layer.K)
    assert len(sizes) == layer.K == min(64, len(layer.group_of)) and sizes.max() - sizes.min() <= 1
    static = nn.Conv2d(C, O, k, groups=groups, dtype=torch.float64)
    layer.load_static(static.weight, static.bias, noise=0.0)
    bank = layer.kernels(Modulation(frequency=torch.eye(layer.K, dtype=torch.float64)))  # one group each
    torch.testing.assert_close(bank.sum(0) / layer.K, static.weight, rtol=1e-12, atol=1e-12)

    rows, half = layer.weight.shape[:2]
    matrices = bank.movedim(2, -2).reshape(layer.K, rows, -1)
    held = torch.fft.rfft2(matrices).abs().flatten(1)
    for number in (0, layer.K // 2, layer.K - 1):
        mine = torch.zeros(rows, half, dtype=torch.bool)
        mine.view(-1)[layer.group_of == number] = True
        mine |= mine.roll(-1, 0).flip(0) & (torch.arange(half) % max(matrices.shape[2] / 2, 1) == 0)  # real: both signs
        assert held[number][~mine.flatten()].sum() < 1e-9


def test_groups_go_from_low_to_high_frequencies():
    layer = cv.FDConv2d(20, 18, 3, kernels=6)
    rows = len(layer.weight)
    radius = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(60)).flatten()
    bounds = [(radius[layer.group_of == k].min(), radius[layer.group_of == k].max()) for k in range(6)]
    assert bounds[0][0] == 0
    assert all(before[1] <= after[0] + 1e-6 for before, after in itertools.pairwise(bounds))


def test_a_trained_network_keeps_its_outputs_whatever_flows_in():
    """The released layer, whose filter attention starts at random, is up to 77 % off for activations behind a ReLU."""
    static = models.resnet50(num_classes=7).eval()
    for module in static.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model = cv.convert(static, cv.FDConv())
        want = static(x)
        assert (model(x) - want).abs().max() <= 1e-5 * want.abs().max()
        layer = model.layer2[1].conv2
        factors = layer.coefficients(torch.rand(3, 128, 8, 8)).factors()
        features = torch.rand(3, 128, 8, 8)
        assert torch.equal(layer.bands(features), features)
    assert all((value == (1 / 64 if axis == "frequency" else 1)).all() for axis, value in factors.items())
    nn.init.kaiming_normal_(
        layer.router.heads.weight[128 : 128 + 128].data, mode="fan_out"
    )  # as released: the filters'
    y, was = layer(features), static.layer2[1].conv2(features)
    assert (y - was).abs().max() > 0.1 * was.abs().max()


def test_everything_learns_from_the_first_step_or_the_second():
    layer = cv.FDConv2d(6, 8, 3, padding=1)
    layer.load_static(torch.randn(8, 6, 3, 3), torch.zeros(8), noise=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.rand(4, 6, 7, 7)).square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_bands_are_what_masks_of_the_spectrum_leave(size):
    """Gates by the paper's sum of gated bands, masks by resizing those of 64 positions, as released."""
    rank = len(size)
    bands = FrequencyBands(3, (2, 4, 8), rank, dtype=torch.float64)
    nn.init.normal_(bands.weight)
    nn.init.normal_(bands.bias)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    axes = tuple(range(2, rank + 2))
    frequencies = [torch.fft.fftfreq(64)] * (rank - 1) + [torch.fft.rfftfreq(64)]
    distance = torch.stack(torch.meshgrid(*frequencies, indexing="ij")).abs().amax(0)
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    gates = 2 * conv(x, bands.weight, bands.bias, padding=1).sigmoid()
    spectrum = torch.fft.rfftn(x, dim=axes)
    rest, want = x, torch.zeros_like(x)
    for i, band in enumerate((2, 4, 8)):
        mask = (distance < 0.5 / band + 1e-8).double()
        mask = F.interpolate(mask[None, None], spectrum.shape[2:], mode="nearest")
        low = torch.fft.irfftn(spectrum * mask, s=size, dim=axes)
        want, rest = want + gates[:, i : i + 1] * (rest - low), low
    torch.testing.assert_close(bands(x), want + rest, rtol=1e-10, atol=1e-10)
    for low, masks in zip(bands.lows(x), bands.kept(x), strict=True):  # and by matrix products, which graphs record
        torch.testing.assert_close(_lowpass(x, masks), low, rtol=1e-10, atol=1e-10)


def test_bands_are_those_of_x_before_it_is_padded():
    layer = cv.FDConv2d(4, 5, 3, padding=1, padding_mode="reflect").eval()
    nn.init.normal_(layer.bands.weight)
    x = torch.randn(2, 4, 6, 7)
    kernels = layer.kernels(layer.coefficients(x))
    padded = F.pad(layer.bands(x), (1, 1, 1, 1), mode="reflect")
    want = cv.ops.sample_conv(padded, kernels, layer.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


EXPORTED = [pytest.param(rank, marks=() if rank == 2 else pytest.mark.slow) for rank in (1, 2, 3)]


@pytest.mark.parametrize("rank", EXPORTED)
def test_gated_bands_are_exported_at_another_batch_and_size(rank, tmp_path):
    """The contract leaves the gates at 1."""
    layer = excite(cv.FDConv.layers[rank](5, 6, 3, stride=2, padding=1))
    nn.init.normal_(layer.bands.weight)
    path, x = tmp_path / "layer.onnx", torch.randn(3, 5, *(10, 13, 5)[:rank])
    program = cv.export(layer, torch.randn(2, 5, *(9, 8, 6)[:rank]), path).module()
    with torch.no_grad():
        for got in (program(x), onnx_session(path)(x)[0]):
            assert (got - layer(x)).abs().max() <= 2e-5 * layer(x).abs().max()


def gated() -> nn.Module:
    layer = excite(cv.FDConv2d(5, 6, 3, stride=2, padding=1))
    nn.init.normal_(layer.bands.weight)
    return layer


@torch.no_grad()
def test_gated_bands_in_other_precisions():
    layer, x = gated(), torch.randn(3, 5, 10, 13)
    want = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (layer(x).float() - want).abs().max() < 0.05 * want.abs().max()
    low = layer.to(torch.bfloat16)(x.bfloat16())
    assert low.dtype == torch.bfloat16 and (low.float() - want).abs().max() < 0.1 * want.abs().max()


@pytest.mark.slow
def test_gated_bands_compiled():
    layer, x = gated(), torch.randn(3, 5, 10, 13)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


def test_gated_bands_are_traced_at_another_size():
    layer = gated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, torch.randn(2, 5, 6, 6), check_trace=False)
    x = torch.randn(3, 5, 9, 12)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


def test_macs_by_hand():
    layer = cv.FDConv2d(8, 16, 1, stride=2)
    told = layer.macs(25)
    assert told["convolution"] == 8 * 16 * 25
    assert told["routing"] == 8 * 16 + 16 * (8 + 16 + 64) + 16 * 3 * 8
    assert told["assembly"] == 2 * 16 * 5 + 1120 + 4 * 128  # 5/4 n log2(n) of n = 128 for the transform
    gated, plain = (cv.FDConv2d(8, 16, 3, stride=2, padding=1, bands=bands).macs(25) for bands in ((2, 4), ()))
    assert gated["convolution"] == plain["convolution"] == 9 * 8 * 16 * 25
    transforms = 3 * 8 * 831  # 5/4 n log2(n) of n = 100 positions, to frequencies and twice back
    assert gated["assembly"] - plain["assembly"] == 2 * 9 * 8 * 100 + transforms


def test_what_can_not_be(tmp_path):
    with pytest.raises(cv.ConfigError, match="kernels must be from 1 to 256; got 300"):
        cv.FDConv(kernels=300)
    with pytest.raises(cv.ConfigError, match="bands must be a tuple of ints above 1"):
        cv.FDConv(bands=(1, 2))
    with pytest.raises(cv.CheckpointError, match="1x1 and 3x3 convolutions without groups"):
        cv.released_state(cv.FDConv2d(4, 4, 5))
