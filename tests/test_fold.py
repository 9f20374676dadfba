# SPDX-License-Identifier: Apache-2.0
"""fold_norms is exact, fold says how lossy it is, frozen routers stay as they are."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import convary as cv
from convary import METHODS
from tests.nets import Net, dynamic_net, excite

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FOLDABLE = [c() for c in METHODS if c.layers[2].absorbs]
every_method = pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def outside(model, kind):
    """Modules of a kind that are not part of a dynamic layer."""
    inside = {m for layer in model.modules() if isinstance(layer, cv.nn.DynamicLayer) for m in layer.modules()}
    return [m for m in model.modules() if isinstance(m, kind) and m not in inside]


def norms(model: nn.Module) -> list[nn.Module]:
    return outside(model, nn.BatchNorm2d)


@pytest.mark.parametrize("config", FOLDABLE, ids=lambda c: c.name)
def test_norms_are_folded_exactly(config):
    model = dynamic_net(config).double()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    want, before = model(x), copy.deepcopy(model.state_dict())
    folded = cv.fold_norms(model.train(), x)
    torch.testing.assert_close(folded(x), want, rtol=1e-9, atol=1e-9)
    assert len(norms(folded)) == sum(type(m) is nn.Conv2d for m in model.modules())  # those behind static ones
    assert not folded.training and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("config", FOLDABLE, ids=lambda c: c.name)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_behind_a_bias_are_folded_exactly(config, rank, affine):
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank](4, 6, 3, groups=2)
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank](6, affine=affine)
    model = excite(nn.Sequential(config.build(conv), norm, nn.ReLU())).double().train()
    with torch.no_grad():
        for p in (model[0].bias, *norm.parameters()):
            p.normal_()
    x = torch.randn(5, 4, *(5,) * rank, dtype=torch.float64)
    model(x)  # running statistics
    torch.testing.assert_close(cv.fold_norms(model, x)(x), model.eval()(x), rtol=1e-9, atol=1e-9)


def test_what_stays_of_a_norm_evaluates_with_its_network():
    for training in (True, False):
        for bias in (True, False):
            layer = excite(cv.DyConv2d(3, 4, 3, bias=bias)).train(training)
            folded = cv.fold_norms(nn.Sequential(layer, nn.BatchNorm2d(4).train(training)), torch.randn(2, 3, 6, 6))
            assert not [m for m in folded.modules() if m.training]


def test_filters_that_share_their_cells_can_not_be_scaled_one_by_one():
    model = nn.Sequential(cv.KernelWarehouse2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(cv.ConfigError, match="share cells"):
        cv.fold_norms(model, torch.randn(2, 3, 5, 5))


class Tapped(nn.Module):
    """Uses a convolution's output beside its normalisation, in the way that is asked for."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.conv, self.norm, self.other = way, cv.DyConv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        return {
            "sum": lambda: z + y,
            "output": lambda: (z, y),
            "twice": lambda: self.norm(self.conv(z)),
            "between": lambda: self.other(self.conv(z) * 2),
        }[self.way]()


@pytest.mark.parametrize("way", ["sum", "output", "twice", "between"])
def test_a_norm_that_is_not_the_only_user_stays(way):
    with pytest.raises(cv.ConfigError, match="nothing to fold"):
        cv.fold_norms(Tapped(way), torch.randn(2, 3, 4, 4))


def test_norms_with_an_activation_keep_it():
    timm = pytest.importorskip("timm")
    model = excite(cv.convert(timm.create_model("mobilenetv3_small_050", num_classes=4), cv.ODConv(experts=2)))
    model, x = model.double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    folded = cv.fold_norms(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-6, atol=1e-6)
    assert len(norms(folded)) < len(norms(model)) // 3


class Frozen(nn.Module):
    """Frozen as detectron2 and others write it; ``slope`` makes it something else with the same buffers."""

    def __init__(self, channels: int, slope: float = 1.0):
        super().__init__()
        self.eps, self.slope = 1e-5, slope
        for name, value in (("weight", 1.5), ("bias", 0.2), ("running_mean", -0.3), ("running_var", 0.7)):
            self.register_buffer(name, value + 0.1 * torch.randn(channels))

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        return self.slope * x


def freeze_norms(model: nn.Module, make) -> nn.Module:
    """Exchange every batch normalisation for a frozen one with numbers of its own."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                frozen = make(norm.num_features)
                frozen.weight.uniform_(0.5, 1.5)
                frozen.running_var.uniform_(0.5, 1.5)
                setattr(parent, name, frozen)
    return model


@pytest.mark.parametrize("make", [FrozenBatchNorm2d, Frozen], ids=["torchvision", "functional"])
@pytest.mark.parametrize("config", FOLDABLE, ids=lambda c: c.name)
def test_frozen_norms_fold(config, make):
    model = freeze_norms(dynamic_net(config), make).double()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    folded = cv.fold_norms(model, x)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-9, atol=1e-9)
    left = len(outside(folded, make))
    assert left == sum(type(m) is nn.Conv2d for m in model.modules()) < len(outside(model, make))
    assert not any(m.training for m in folded.modules())


def test_frozen_norms_of_timm_keep_their_activation():
    timm = pytest.importorskip("timm")
    model = timm.layers.freeze_batch_norm_2d(timm.create_model("efficientnet_lite0", num_classes=3))
    model = cv.convert(model.eval(), cv.ODConv(experts=2)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    folded = cv.fold_norms(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-6, atol=1e-6)
    counts = [sum("FrozenBatchNorm" in type(m).__name__ for m in net.modules()) for net in (folded, model)]
    assert counts[0] == 1 < counts[1]  # the stem's


def test_what_only_looks_like_a_frozen_norm_stays():
    conv = cv.DyConv2d(3, 3, 1)
    cv.fold_norms(nn.Sequential(conv, Frozen(3)), torch.randn(1, 3, 4, 4))
    with pytest.raises(cv.ConfigError, match="nothing to fold"):
        cv.fold_norms(nn.Sequential(conv, Frozen(3, slope=2.0)), torch.randn(1, 3, 4, 4))


@every_method
def test_a_routing_that_ignores_the_input_is_folded_exactly(config):
    model = cv.convert(Net(), config, cv.where.all(), noise=1.0).double().eval()  # upcycled: neutral routers
    batches = [torch.randn(3, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    folded = cv.fold(model, batches)
    assert folded.error < 1e-5 and max(folded.spread.values()) < 1e-3 and not folded.kept
    torch.testing.assert_close(folded.model(batches[0]), model(batches[0]), rtol=1e-4, atol=1e-6)
    assert {type(m) for _, m in folded.model.named_modules()} == {type(m) for m in Net().modules()}


@every_method
def test_folding_says_how_lossy_it_is(config):
    model = dynamic_net(config)
    loader = [(torch.randn(4, 3, 16, 16) * (1 + i), torch.zeros(4)) for i in range(3)]
    folded = cv.fold(model, iter(loader))  # an iterator can be gone through once only
    x = torch.cat([x for x, _ in loader])
    with torch.no_grad():
        want = model(x)
        error = (folded.model(x) - want).norm() / want.norm()
    assert folded.error == pytest.approx(float(error), rel=1e-3)
    assert folded.error > 1e-3
    assert "relative error of the outputs" in str(folded) and next(iter(folded.spread)) in str(folded)


@pytest.mark.parametrize("kind", [cv.ODConv2d, cv.DyConv2d])  # whose bias is static, and mixed
def test_the_mean_kernel_is_the_mean_of_the_kernels(kind):
    layer = excite(kind(3, 4, 3, padding=1, experts=3)).eval()
    x = torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        layer.bias.normal_()
        coeffs = layer.coefficients(x)
        kernels, biases = cv.ops.mix_kernels(layer.weight, coeffs), layer.biases(coeffs)
    folded = cv.fold(layer, [x[:17], x[17:]])
    torch.testing.assert_close(folded.model.weight, kernels.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(folded.model.bias, biases.mean(0), rtol=1e-4, atol=1e-6)
    spread = (kernels - kernels.mean(0)).norm() / kernels.norm()
    assert folded.spread[""] == pytest.approx(float(spread), rel=1e-3)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tensorflows_padding_with_a_stride_becomes_a_static_layer(rank, mode):
    layer = cv.CondConv.layers[rank](4, 6, 3, stride=2, padding="same", padding_mode=mode, groups=2, experts=2)
    model = nn.Sequential(layer).double().eval()
    with torch.no_grad():
        for router in (m for m in model.modules() if isinstance(m, cv.nn.Router)):
            for p in router.parameters():
                p.zero_()  # whatever the input
    for size in (8, 7, 5):  # pads are even, odd and none
        x = torch.randn(2, 4, *[size] * rank, dtype=torch.float64)
        static = cv.fold(model, [x]).model
        assert isinstance(static[0], CONVS[rank]) and static(x).shape[2:] == (-(-size // 2),) * rank
        torch.testing.assert_close(static(x), model(x))
    again = cv.convert(static, cv.ODConv(experts=2), cv.where.all())
    torch.testing.assert_close(again.eval()(x), static(x))


def test_only_layers_below_a_spread_are_folded():
    model = dynamic_net(cv.CondConv(router="block"))
    x = torch.randn(6, 3, 16, 16)
    spread = cv.fold(model, [x]).spread
    limit = sorted(spread.values())[len(spread) // 2]
    folded = cv.fold(model, [x], below=limit)
    assert set(folded.kept) == {name for name, value in spread.items() if value >= limit} and folded.kept
    assert folded.error < cv.fold(model, [x]).error
    whole = cv.fold(model, [x]).model
    assert not any("router" in name for name in whole.state_dict())
    assert type(whole.features[1]) is type(Net().features[1])


@every_method
def test_frozen_routers_stay_as_they_are(config):
    model = dynamic_net(config)
    cv.freeze_routing(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("router" in name for name in changed)
    cv.freeze_routing(model, False)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "router" in name)


def test_nothing_to_do_is_an_error():
    for act in (cv.freeze_routing, lambda m: cv.fold(m, []), lambda m: cv.fold_norms(m, torch.randn(1, 3, 8, 8))):
        with pytest.raises(cv.ConfigError):
            act(Net())
    with pytest.raises(cv.ConfigError, match="at least one batch"):
        cv.fold(cv.DyConv2d(3, 4, 3), [])
