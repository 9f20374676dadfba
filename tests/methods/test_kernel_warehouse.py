# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse beside the contract and the golden vectors: sharing, starting as a static layer, released defects."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.mobilenetv2 import InvertedResidual

import convary as cv
from tests.nets import Net, excite


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
