# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse beside the contract and the golden vectors: sharing, starting as a static layer, released defects."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.mobilenetv2 import InvertedResidual

import convary as cv
from convary.methods import kernelwarehouse_plan as plan
from convary.nn import sites
from tests.nets import Net, excite, onnx_session


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def warehouses(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    found: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, cv.nn.DynamicLayer):
            found.setdefault(module.weight, []).append(name)
    return found


def test_the_layers_of_a_stage_share_their_cells():
    """N7: n is 224, 188, 188, 108 in ResNet-18 4x; what reads a stage's output belongs to that stage."""
    with torch.device("meta"):
        plan = cv.plan(models.resnet18(), cv.KernelWarehouse(cell_ratio=4))
        model = plan.apply()
    shared = warehouses(model)
    assert [tuple(w.shape) for w in shared] == [(224, 64, 64), (188, 128, 128), (188, 256, 256), (108, 512, 512)]
    first = ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1"]
    assert next(iter(shared.values())) == [*first, "layer2.0.downsample.0"]
    notes = {row.name: row.note for row in plan.rows}
    assert notes["layer1.0.conv1"] == "" and notes["layer2.0.conv1"] == "weights shared with layer1.0.conv1"
    assert "KernelWarehouse2d 64->64 3x3 9 parts of 224 cells" in str(plan)


def test_depthwise_layers_and_opening_ones_are_apart():
    """The cells of MobileNetV2, as listed with its published parameter counts."""
    with torch.device("meta"):
        made = {s: cv.convert(models.mobilenet_v2(), cv.KernelWarehouse(sharing=s)) for s in ("stage", "role", "layer")}
    cells = {s: [len(w) for w in warehouses(m)] for s, m in made.items()}
    assert cells["stage"] == [9, 36, 34, 78, 18, 42, 27, 102, 36, 120, 27, 58, 27]
    assert len(cells["role"]) == 19 and len(cells["layer"]) == 52


def test_sharing_survives_copying_moving_saving_and_training():
    model = excite(cv.convert(Net(), cv.KernelWarehouse(), cv.where.all()))
    count = len(warehouses(model))
    assert count < sum(map(len, warehouses(model).values()))
    x = torch.randn(2, 3, 16, 16)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = cv.convert(Net(), cv.KernelWarehouse(), cv.where.all(), upcycle=False).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert len(warehouses(twin)) == count
        assert len(warehouses(twin.to(torch.bfloat16))) == count  # and it runs: the released one fails there
        assert twin(x.bfloat16()).dtype == torch.bfloat16
    cells = next(w for w, names in warehouses(model).items() if len(names) > 1)
    model.train()(x).square().sum().backward()
    alone = copy.deepcopy(cells.grad)
    assert alone.abs().sum() > 0 and sum(p is cells for p in model.parameters()) == 1


def test_tau_and_beta_are_saved_and_moved():
    layer = cv.KernelWarehouse2d(4, 6, 3, cell_ratio=2)
    cv.set_temperature(layer, 0.25)
    state = layer.state_dict()
    assert state["router.temperature"] == 0.25 and state["router.starts"].tolist() == list(range(0, 18, 2))
    assert all(b.is_meta for b in copy.deepcopy(layer).to("meta").buffers())


@pytest.mark.parametrize("ratio", [1.0, 2.5, 4.0])
def test_an_upcycled_layer_stays_close_while_it_learns_to_mix(ratio):
    static = nn.Conv2d(8, 12, 3, padding=1)
    layer = cv.convert(static, cv.KernelWarehouse(cell_ratio=ratio), cv.where.all())
    x = torch.randn(3, 8, 6, 6)
    want = static(x)
    for tau, limit in ((1.0, 1e-6), (0.5, 1e-3), (0.0, 1e-3)):
        cv.set_temperature(layer, tau)
        assert (layer(x) - want).abs().max() <= limit * want.abs().max()
    layer(x).square().sum().backward()
    assert layer.router.heads.weight.grad.abs().max() > 0
    assert layer.router.heads.weight.grad.isfinite().all()


def test_fewer_cells_than_parts_hold_no_trained_kernel():
    config = cv.KernelWarehouse(cell_ratio=0.5)
    with pytest.raises(cv.ConfigError, match="fewer cells.*upcycle=False"):
        cv.convert(nn.Conv2d(4, 4, 3), config, cv.where.all())
    assert len(cv.convert(nn.Conv2d(4, 4, 3), config, cv.where.all(), upcycle=False).weight) == 4


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.3])
def test_ratios_that_do_not_come_out_even(ratio):
    """The released code stops with an assertion for 9 parts at a ratio of 1/2."""
    layer = cv.KernelWarehouse2d(4, 6, 3, cell_ratio=ratio)
    n = len(layer.weight)
    starts = layer.router.starts.tolist()
    assert [s for s in starts if s < n] == list(range(len([s for s in starts if s < n])))
    assert n == max(int(9 * ratio), 1)
    cv.set_temperature(layer, 1.0)
    assert (
        layer.kernels(layer.coefficients(torch.randn(1, 4, 5, 5))).flatten(3).abs().amax((0, 1, 2)) > 0
    ).tolist() == [s < n for s in starts]


def test_the_attention_may_be_negative_and_is_l1_normalised():
    layer = excite(cv.KernelWarehouse2d(8, 8, 3, cell_ratio=2)).eval()
    weights = layer.coefficients(torch.randn(5, 8, 6, 6)).cells
    assert weights.shape == (5, 18, 9) and weights.min() < 0
    assert (weights.abs().sum(1) <= 1).all()


def test_a_stage_without_common_divisor_shares_nothing():
    """Cells of one channel would make an attention of billions of weights."""
    with torch.device("meta"):
        blocks = [InvertedResidual(C, O, 1, expand_ratio=4) for C, O in ((61, 67), (64, 128))]
        counts = [len(warehouses(cv.convert(nn.Sequential(b), cv.KernelWarehouse(), cv.where.all()))) for b in blocks]
    assert counts == [3, 2]


@pytest.mark.parametrize("make", [models.convnext_tiny, lambda: timm.create_model("convnext_tiny")])
def test_convnext_shares_as_published(make):
    """Downsampling layers alone; of each stage the depthwise layers, and the linear ones."""
    with torch.device("meta"):
        model = cv.convert(make(), cv.KernelWarehouse(norm="layer"))
    cells = [tuple(w.shape) for w in warehouses(model)]
    wide = [(n, C, c) for C, m in ((96, 3), (192, 3), (384, 9), (768, 3)) for n, c in ((49 * m, 1), (8 * m, C))]
    assert sorted(cells) == sorted([(16, 96, 3), (4, 192, 96), (4, 384, 192), (4, 768, 384), *wide])
    assert sum(p.numel() for p in model.parameters()) == 39_370_674


@pytest.mark.parametrize(
    ("name", "most"), [("ghostnet_100", 6.5e6), ("efficientnet_b0", 8.3e6), ("resnext50_32x4d", 38e6)]
)
def test_stages_of_many_shapes_keep_the_budget(name, most):
    """They had 39.5, 24.5 and 127 million parameters when whole stages shared, of 5.2, 5.3 and 25 million."""
    with torch.device("meta"):
        static = timm.create_model(name)
        plan = cv.plan(static, cv.KernelWarehouse())
        assert sum(p.numel() for p in plan.apply().parameters()) < most
    assert not plan.growth


def test_a_plan_beyond_the_budget_says_so():
    with torch.device("meta"):
        config = cv.KernelWarehouse(out_ratio=1 / 8, in_ratio=1 / 8)
        plan = cv.plan(models.resnet18(), config)
        assert "multiplies the parameters of these layers by 19.7, where its budget is 1" in str(plan)
        with pytest.warns(cv.GrowthWarning, match=r"most in layer4\.0\.conv2"):
            plan.apply()
        with warnings.catch_warnings():
            warnings.simplefilter("error", cv.GrowthWarning)
            for fine in (cv.KernelWarehouse(cell_ratio=4), cv.ODConv(experts=8), cv.CondConv(experts=8)):
                cv.convert(models.resnet18(), fine)
        with pytest.warns(cv.GrowthWarning, match="DyNet multiplies .* where its budget is 6") as told:
            cv.convert(models.mobilenet_v2(), cv.DyNet())
    assert told[0].filename == __file__


def test_stages_of_convolutions_that_change_nothing_end_where_one_between_blocks_stands():
    """A convolution after all blocks belongs to the last stage, a linear layer outside blocks to none."""
    with torch.device("meta"):
        found = plan.stages(list(sites(models.convnext_tiny())))
        last = plan.stages(list(sites(models.mobilenet_v2())))
    assert found["features.1.2.block.5"] == "stage 0" and found["features.3.0.block.0"] == "stage 1"
    assert not {"features.0.0", "features.2.1", "classifier.2"} & found.keys()
    assert last["features.18.0"] == last["features.17.conv.2"] and "classifier.1" not in last


def whole_kernel(layer: nn.Module, coeffs) -> torch.Tensor:
    """By the definition: a loop over parts, each put where it belongs; (B, O, C/G, *k)."""
    cells = layer.weight.unflatten(0, (1, -1)).expand(len(coeffs.cells), *layer.weight.shape)
    O, C, *k = layer.kernel_shape
    co, ci, *k_cell = layer.weight.shape[1:]
    taps = [()] if k_cell else list(itertools.product(*map(range, k)))
    kernel = torch.zeros(len(cells), O, C, *k, dtype=cells.dtype)
    places = itertools.product(taps, range(0, O, co), range(0, C, ci))
    for weights, (tap, o, c) in zip(coeffs.cells.unbind(2), places, strict=True):
        part = (weights.reshape(*weights.shape, *[1] * (cells.ndim - 2)) * cells).sum(1)
        kernel[(slice(None), slice(o, o + co), slice(c, c + ci), *tap)] = part
    return kernel


@pytest.mark.parametrize("options", [{}, {"spatial_partition": False}, {"norm": "layer", "cell_ratio": 2.5}])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kernels_are_mixtures_of_cells_at_their_places(rank, options):
    k = (3, 2, 2)[:rank]
    static = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](8, 6, k, groups=2, dtype=torch.float64)
    layer = excite(cv.KernelWarehouse(out_ratio=1 / 2, in_ratio=1 / 2, **options).build(static))
    taps = () if options.get("spatial_partition", True) else k
    assert tuple(layer.weight.shape[1:]) == (3, 2, *taps)
    coeffs = layer.coefficients(torch.randn(2, 8, *(5,) * rank, dtype=torch.float64))
    torch.testing.assert_close(layer.kernels(coeffs), whole_kernel(layer, coeffs))
    layer.load_static(static.weight, static.bias, noise=0.1)
    x = torch.randn(2, 8, *(6, 5, 4)[:rank], dtype=torch.float64)
    torch.testing.assert_close(layer(x), static(x))


def test_a_part_of_all_taps_makes_few_of_them():
    """The depthwise layers of a stage: one part each; layers of another kernel size have a warehouse of their own."""
    with torch.device("meta"):
        model = cv.convert(models.convnext_tiny(), cv.KernelWarehouse(spatial_partition=False, norm="layer"))
        mixed = cv.convert(models.resnet18(), cv.KernelWarehouse(spatial_partition=False))
    assert tuple(model.features[1][0].block[0].weight.shape) == (3, 96, 1, 7, 7)
    assert mixed.layer2[0].downsample[0].weight is not mixed.layer1[0].conv1.weight
    assert sum(p.numel() for p in model.parameters()) < 33e6


@pytest.mark.parametrize("shape", [(5, 12), (3, 4, 12), (2, 3, 4, 12), (0, 12), (12,)])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_linear_layer_is_one_matrix_per_sample(shape, norm):
    static = nn.Linear(12, 8, dtype=torch.float64)
    layer = excite(cv.KernelWarehouse(out_ratio=1 / 2, in_ratio=1 / 3, norm=norm).build(static))
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.reshape(1, 1, 12) if x.ndim == 1 else x.reshape(len(x), -1, 12) if len(x) else x[:, None]
    coeffs = layer.coefficients(rows.mT)
    want = torch.einsum("bpc,boc->bpo", rows, whole_kernel(layer, coeffs).squeeze(3)) + layer.bias
    torch.testing.assert_close(layer(x), want.reshape(*shape[:-1], 8))
    layer.load_static(static.weight, static.bias, noise=0.1)
    torch.testing.assert_close(layer.train()(x), static(x))


def test_linear_layers_keep_the_contract():
    layer = excite(cv.KernelWarehouse(norm="layer").build(nn.Linear(6, 4, dtype=torch.float64)))
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)
    other = x.detach().clone()
    other[1] += 1
    assert torch.equal(layer(x)[[0, 2]], layer(other)[[0, 2]]) and not torch.equal(layer(x)[1], layer(other)[1])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert layer.macs(2)["convolution"] == 48 and "parts=1, cells=1" in repr(layer)
    with pytest.raises(cv.ShapeError, match=r"wants x of shape \(B, \*, 6\)"):
        layer(torch.randn(3, 5))


@pytest.mark.slow
def test_a_network_with_linear_layers_from_end_to_end(tmp_path):
    """Upcycled, trained for a step, told of, folded, exported and loaded."""
    static = Small()
    model = cv.convert(static, cv.KernelWarehouse(norm="layer"), cv.where.all() | cv.where.linear())
    x = torch.randn(2, 3, 8, 8)
    static.eval(), model.eval()
    assert (model(x) - static(x)).abs().max() <= 1e-5 * static(x).abs().max()
    model.train()(x).square().sum().backward()
    model = excite(model)
    told = cv.summary(model, x)
    assert told.dynamic_layers == 5 and told.routing and told.assembly
    assert set(cv.routing(model, x)) == {n for n, m in model.named_modules() if isinstance(m, cv.nn.DynamicLayer)}
    assert len(cv.diagnose(model, [x]).layers) == 5
    folded = cv.fold(model, [x]).model
    assert type(folded.block.block[1]) is nn.Linear and folded(x).shape == model(x).shape
    program = cv.export(model, x, tmp_path / "model.onnx").module()
    other = torch.randn(3, 3, 11, 9)
    with torch.no_grad():
        want = model(other)
        for got in (program(other), onnx_session(tmp_path / "model.onnx")(other)[0]):
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    target = cv.convert(Small(), cv.KernelWarehouse(norm="layer"), cv.where.all() | cv.where.linear()).eval()
    cv.load_released(target, cv.released_state(model))
    cv.set_temperature(target, 0.0)
    assert torch.equal(target(x), model(x))


class CNBlock(nn.Module):
    """ConvNeXt's block, small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.block(self.conv(x).movedim(1, -1)).movedim(-1, 1)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 2, 2), CNBlock(), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def test_layers_of_ones_own_share():
    config = cv.KernelWarehouse(cell_ratio=2)
    layers = [config.build(nn.Conv2d(8, 16, 3)), config.build(nn.Linear(16, 8)), config.build(nn.Conv2d(8, 8, 1))]
    cv.share_warehouse(layers)
    assert len({layer.weight for layer in layers}) == 1
    assert [layer.router.starts.tolist() for layer in layers] == [list(range(0, 36, 2)), [36, 38], [40]]
    static = nn.Linear(16, 8)
    layers[1].load_static(static.weight, static.bias, noise=0.0)
    x = torch.randn(3, 16)
    torch.testing.assert_close(layers[1](x), static(x))
    other = cv.KernelWarehouse().build(nn.Linear(16, 8))
    for wrong, reason in ([*layers, other], "same options"), ([nn.Linear(2, 2)], "only layers"), ([], "no layer"):
        with pytest.raises(cv.ConfigError, match=reason):
            cv.share_warehouse(wrong)
    with pytest.raises(cv.ConfigError, match="same options, dtype"):
        cv.share_warehouse([layers[0], config.build(nn.Linear(16, 8, dtype=torch.float64))])


def test_what_replaces_parameters_leaves_the_warehouses_shared():
    model = excite(cv.convert(Net(), cv.KernelWarehouse(), cv.where.all()))
    count, x = len(warehouses(model)), torch.randn(2, 3, 16, 16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        empty = cv.convert(Net(), cv.KernelWarehouse(), cv.where.all()).eval()
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(state, assign=True)
    empty.to_empty(device="cpu").load_state_dict(state)
    for twin in (assigned, empty, copy.deepcopy(assigned).to(torch.float64).float(), pickle.loads(pickle.dumps(empty))):
        assert len(warehouses(twin)) == count
        assert torch.equal(twin(x), model(x))


def test_blocks_of_which_only_the_shortcuts_are_left():
    model = cv.convert(models.resnet18(), cv.ODConv(), cv.where.name("*.conv?"))
    plan = cv.plan(model, cv.KernelWarehouse(), cv.where.all())
    assert "layer2.0.downsample.0" in plan.converted


def test_layers_of_different_dtypes_share_nothing():
    model = models.resnet18().eval()
    model.layer3.double()
    dynamic = cv.convert(model, cv.KernelWarehouse())
    dtypes = {name: parameter.dtype for name, parameter in dynamic.named_parameters(remove_duplicate=False)}
    assert all(
        dtype is (torch.float64 if name.startswith("layer3") else torch.float32) for name, dtype in dtypes.items()
    )


def test_a_checkpoint_of_other_sizes_is_named():
    source = cv.KernelWarehouse2d(16, 16, 3, cell_ratio=2.0)
    with pytest.raises(cv.CheckpointError, match="weight"):
        cv.load_released(cv.KernelWarehouse2d(16, 16, 3), cv.released_state(source))
