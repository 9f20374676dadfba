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
from convary._runtimes import _openvino_core
from convary.methods.fdconv import Modulation
from convary.methods.fdconv_bands import FrequencyBands, _box, _lowpass
from tests.golden.case import Case, cases
from tests.nets import excite, onnx_session

SIZES = [(1,), (37,), (8, 10), (9, 12), (7, 1), (65, 64), (5, 3, 6)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class FDCase(Case):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        if "fbm.out" in self.expected:  # which the authors compute in float32
            self.settings["checks"]["float64_noise"] = 1e-8
        self.state["indices"] = self.expected["indices"].long()  # the vectors' machine sorted equal radii so

    def layer(self) -> nn.Module:
        names = {"kernel_num": "kernels"}
        k = {names.get(name, name): value for name, value in self.kwargs.items() if name != "convert_param"}
        return cv.FDConv2d(**k, dtype=torch.float64).train(self.training)


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
    back = cv.released_state(layer)
    twin = case.layer().eval()
    cv.load_released(twin, back)
    assert torch.equal(twin(case.inputs["x"]), layer(case.inputs["x"]))
    if "dft_weight" in case.state:  # where the weight was saved as a kernel, it goes back as frequencies
        assert back.keys() - {"indices"} == case.state.keys() - {"indices"}
        assert all(torch.equal(back[k], v.to(back[k].dtype)) for k, v in case.state.items() if k != "indices")


def released_groups(layer: nn.Module) -> torch.Tensor:
    """The authors' calls, of which a layer without ``indices`` in its file takes the order."""
    rows, half = layer.spectrum_shape
    grid = torch.meshgrid(torch.fft.fftfreq(rows), torch.fft.rfftfreq(layer.matrix_shape[1]), indexing="ij")
    _, order = torch.sort(torch.norm(torch.stack(grid, dim=-1), dim=-1).view(-1))
    groups = order.reshape(layer.K, -1)
    return torch.empty(rows * half, dtype=torch.uint8).scatter_(
        0, groups.flatten(), torch.arange(layer.K).repeat_interleave(groups.shape[1]).to(torch.uint8)
    )


@pytest.mark.parametrize(("C", "O", "k"), [(64, 64, 1), (64, 64, 3), (20, 18, 1), (128, 64, 3)])
def test_a_loaded_layer_has_the_released_groups(C, O, k):
    """Up to 0.9 % of the frequencies were in another group, and outputs 6 % off, when ties were sorted our way."""
    kernels = 11 if C == 20 else 64
    layer, plain = (cv.FDConv2d(C, O, k, kernels=kernels) for _ in range(2))
    released = cv.released_state(layer)
    without = {name: value for name, value in released.items() if name != "indices"}
    cv.load_released(plain, without)
    assert torch.equal(plain.group_of, released_groups(plain))
    assert "indices" not in cv.released_state(plain)
    assert ("indices" in released) == (not torch.equal(layer.group_of, plain.group_of))
    cv.load_released(plain, released)  # what a layer of ours writes keeps its own order
    assert torch.equal(plain.group_of, layer.group_of)
    order = torch.randperm(len(layer.group_of))
    half = layer.weight.shape[1]
    cv.load_released(
        plain, without | {"indices": torch.stack([order // half, order % half]).reshape(1, 2, kernels, -1)}
    )
    want = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) * kernels // len(order))
    assert torch.equal(plain.group_of.long(), want)
    with pytest.raises(cv.CheckpointError, match="indices holds 4 frequencies"):
        cv.load_released(plain, without | {"indices": torch.zeros(1, 2, 2, 2)})


OPTIONS = [
    {"param_ratio": 3},
    {"param_reduction": 0.5},
    {"param_ratio": 2, "param_reduction": 0.25, "local": False},
    {"kernel_attention_only": True},
    {"kernel_attention_only": True, "activation": "softmax", "kernel_temperature": 0.5},
    {"activation": "tanh", "local_activation": "tanh", "temperature": 2.0},
    {"temperature": 3.0, "kernel_temperature": 0.5, "param_ratio": 2},
    {"band_activation": "tanh", "lowest_band": True},
]


def reference(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The kernels with the released options, from their definitions: a loop over spectra and groups; (B, O, C, *k)."""
    config, router = layer.config, layer.router
    R, K, (rows, half) = config.param_ratio, layer.K, layer.spectrum_shape
    pooled = x.mean((2, 3))
    z = router.scale * F.relu(router.norm(router.squeeze(pooled))) ** 2 + router.shift
    logits = dict(zip(router.sizes, router.heads(z).split(list(router.sizes.values()), 1), strict=True))

    def double(t, kind):
        return 1 + torch.tanh(t) if kind == "tanh" else 2 * torch.sigmoid(t)

    warm = config.temperature if config.kernel_temperature is None else config.kernel_temperature
    weights = logits.pop("frequency") / warm
    soft = config.activation == "softmax"
    weights = F.softmax(weights, 1) if soft else double(weights, config.activation) / (R * K)
    radius = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(layer.matrix_shape[1])).flatten()
    count = int(rows * half * config.param_reduction)
    whole = count == rows * half
    kept = layer.group_of[:count].argsort(stable=True) if whole else layer.kept
    assert whole or (radius[kept] - radius.sort().values[:count]).abs().max() < 1e-6  # the lowest, sorted
    alpha = min(layer.in_channels, layer.out_channels) // 2 * K * R if whole else 1
    stored = layer.weight.reshape(R, -1, 2)
    kernels = 0
    for r in range(R):
        for g in range(K):
            places = torch.arange(count)[torch.arange(count) * K // count == g]
            mine = kept[places]
            values = stored[r, mine if whole else places]
            spectrum = torch.zeros(rows * half, dtype=torch.complex128)
            spectrum[mine] = torch.view_as_complex(values.contiguous()) * alpha
            made = torch.fft.irfft2(spectrum.reshape(rows, half), layer.matrix_shape)
            kernels = kernels + weights[:, r * K + g, None, None] * made
    O, C, kh, kw = layer.kernel_shape
    kernels = kernels.reshape(-1, O, kh, C, kw).permute(0, 1, 3, 2, 4)
    shapes = {"channel": (1, C, 1, 1), "filter": (O, 1, 1, 1), "tap": (1, 1, kh, kw)}
    for axis, value in logits.items():
        kernels = kernels * double(value / config.temperature, config.activation).reshape(-1, *shapes[axis])
    if config.local:
        rows = F.conv1d(router.local_norm(pooled)[:, None], router.local[:, None], padding=router.local.shape[1] // 2)
        local = double(rows.reshape(-1, O, kh, kw, C).permute(0, 1, 4, 2, 3), config.local_activation)
        kernels = kernels * local
    return kernels


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
def test_released_options_by_their_definitions(options, k):
    layer = excite(cv.FDConv2d(20, 18, k, kernels=3, dtype=torch.float64, **options))
    x = torch.randn(2, 20, 6, 7, dtype=torch.float64)
    got, want = layer.kernels(layer.coefficients(x)), reference(layer, x)
    assert want.abs().max() > 1e-3 and (got - want).abs().max() <= 1e-11 * want.abs().max()
    if layer.count % 3 == 0:
        twin = excite(cv.FDConv2d(20, 18, k, kernels=3, dtype=torch.float64, **options))
        released = cv.released_state(layer)
        assert released["dft_weight"].shape[0] == options.get("param_ratio", 1)
        cv.load_released(twin, released)
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
def test_released_options_start_as_the_static_layer(options):
    static = nn.Conv2d(20, 18, 3, padding=1)
    layer = cv.FDConv(**options).build(static)
    if "param_reduction" in options:
        with pytest.raises(cv.ConfigError, match="param_reduction.*upcycle=False"):
            layer.load_static(static.weight, static.bias, noise=0.1)
        sizes = layer.kernels(layer.coefficients(torch.randn(2, 20, 5, 5))).std()
        assert 0.2 * static.weight.std() < sizes < static.weight.std()  # a low-pass of one
        return
    layer.load_static(static.weight, static.bias, noise=0.1)
    x = torch.randn(2, 20, 5, 5)
    torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-5)
    spectra = layer.weight.reshape(options.get("param_ratio", 1), -1)
    assert len(spectra) == 1 or (spectra[0] - spectra[1]).abs().max() > 0  # they can specialise


def test_options_that_can_not_be():
    for options, reason in [
        ({"activation": "softmax"}, "kernel_attention_only=True"),
        ({"param_ratio": 5}, "from 1 to 256 // kernels = 4; got 5"),
        ({"lowest_band": True, "bands": ()}, "lowest_band=True wants bands"),
        ({"band_activation": "softmax"}, "band_activation must be"),
        ({"param_ratio": 0}, "param_ratio must be from 1 to 256"),
        ({"param_reduction": 0.0}, "param_reduction must be above 0"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"kernel_temperature": "1"}, "kernel_temperature must be a number or None"),
    ]:
        with pytest.raises(cv.ConfigError, match=reason):
            cv.FDConv(**options)
    with pytest.raises(cv.CheckpointError, match="kernels to divide the number of frequencies"):
        cv.released_state(cv.FDConv2d(17, 19, 1))


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


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("size", SIZES)
def test_bands_are_what_masks_of_the_spectrum_leave(size, activation, lowest):
    """Gates by the paper's sum of gated bands, masks by resizing those of 64 positions, as released."""
    rank = len(size)
    bands = FrequencyBands(3, (2, 4, 8), rank, dtype=torch.float64, activation=activation, lowest=lowest)
    nn.init.normal_(bands.weight)
    nn.init.normal_(bands.bias)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    axes = tuple(range(2, rank + 2))
    frequencies = [torch.fft.fftfreq(64)] * (rank - 1) + [torch.fft.rfftfreq(64)]
    distance = torch.stack(torch.meshgrid(*frequencies, indexing="ij")).abs().amax(0)
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    logits = conv(x, bands.weight, bands.bias, padding=1)
    gates = 2 * logits.sigmoid() if activation == "sigmoid" else 1 + logits.tanh()
    spectrum = torch.fft.rfftn(x, dim=axes)
    rest, want = x, torch.zeros_like(x)
    for i, band in enumerate((2, 4, 8)):
        mask = (distance < 0.5 / band + 1e-8).double()
        mask = F.interpolate(mask[None, None], spectrum.shape[2:], mode="nearest")
        low = torch.fft.irfftn(spectrum * mask, s=size, dim=axes)
        want, rest = want + gates[:, i : i + 1] * (rest - low), low
    want = want + (gates[:, 3:] * rest if lowest else rest)
    torch.testing.assert_close(bands(x), want, rtol=1e-10, atol=1e-10)
    for low, masks in zip(bands.lows(x), bands.kept(x), strict=True):  # and by matrix products, which graphs record
        torch.testing.assert_close(_lowpass(x, masks), low, rtol=1e-10, atol=1e-10)


def test_all_gates_are_in_the_released_layout():
    """The released list of gates has one more where the lowest band has one."""
    options = {"kernels": 3, "lowest_band": True, "band_activation": "tanh"}
    layer, twin = (cv.FDConv2d(18, 18, 3, **options).eval() for _ in range(2))
    nn.init.normal_(layer.bands.weight)
    nn.init.normal_(layer.bands.bias)
    released = cv.released_state(layer)
    gates = {f"FBM.freq_weight_conv_list.{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias")}
    assert gates == {name for name in released if name.startswith("FBM.")}
    cv.load_released(twin, released)
    x = torch.randn(2, 18, 6, 7)
    assert torch.equal(twin(x), layer(x))


def test_bands_are_those_of_x_before_it_is_padded():
    layer = cv.FDConv2d(4, 5, 3, padding=1, padding_mode="reflect").eval()
    nn.init.normal_(layer.bands.weight)
    x = torch.randn(2, 4, 6, 7)
    kernels = layer.kernels(layer.coefficients(x))
    padded = F.pad(layer.bands(x), (1, 1, 1, 1), mode="reflect")
    want = cv.ops.sample_conv(padded, kernels, layer.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3])
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


@pytest.mark.parametrize(("layer", "size"), [(cv.FDConv2d(4, 6, 5, padding=1), (9, 8)), (cv.FDConv1d(4, 4, 3), (12,))])
@pytest.mark.parametrize("dynamic", [(), None], ids=["one size", "free"])
def test_openvino_reads_its_transforms(layer, size, dynamic, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net, x = nn.Sequential(layer).eval(), torch.randn(1 if dynamic == () else 2, 4, *size)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        want = net(x)
    cv.export(net, x, tmp_path / "m.onnx", dynamic=dynamic)
    run = _openvino_core().compile_model(str(tmp_path / "m.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(torch.from_numpy(run(x.numpy())[0]), want, rtol=1e-4, atol=1e-4)
