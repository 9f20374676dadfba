# SPDX-License-Identifier: Apache-2.0
"""What tools that take networks apart see of dynamic layers: graphs, hooks, int8, initialisers, bytes, numpy."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import convary as cv
from convary import METHODS
from convary.ops.coefficients import Factors

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
every_method = pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)


def layer_of(config, rank=2, C=4, O=6):
    torch.manual_seed(0)
    return config.build(CONVS[rank](C, O, 3, padding=1)).eval()


def images(rank=2, C=4, B=2):
    return torch.randn(B, C, *[9, 7, 5][:rank])


OTHERS = {
    "MixedLinear": (lambda: cv.MixedLinear(8, 4), (8,)),
    "DCDLinear": (lambda: cv.DCDLinear(8, 4), (8,)),
    "Involution2d": (lambda: cv.Involution2d(16, 3), (16, 8, 8)),
    "CARAFE": (lambda: cv.CARAFE(8), (8, 6, 6)),
    "DynamicConvModule": (lambda: cv.DynamicConvModule(8, 8, 3), (8, 6, 6)),
    "DFNConv2d": (lambda: cv.DFNConv2d(4, 4, 3), (4, 6, 6)),
    "DFNLocalFilter2d": (lambda: cv.DFNLocalFilter2d(4, 3), (4, 6, 6)),
    "DepthDC": (lambda: _Guided(), (8, 6, 6)),
}
every_other = pytest.mark.parametrize(("make", "shape"), OTHERS.values(), ids=OTHERS.keys())


class _Guided(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = cv.DepthDC(8, 8, 4)

    def forward(self, x):
        return self.layer(x, x.relu())


class Block(nn.Module):
    """A block that shares a router, as CondConv has it."""

    def __init__(self, C):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


def shared_blocks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Block(4), Block(4))
    config = cv.CondConv(experts=2, router="block")
    net = cv.convert(net, config, cv.where.all() & ~cv.where.first(), upcycle=False, blocks=(Block,))
    return net.eval()


@every_method
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fx_records_a_layer_as_one_node(config, rank):
    net = nn.Sequential(layer_of(config, rank), nn.ReLU())
    graph = symbolic_trace(net)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    for x in (images(rank), images(rank, B=1)):
        torch.testing.assert_close(graph(x), net(x), rtol=0, atol=0)


@every_other
def test_fx_records_the_other_layers_too(make, shape):
    torch.manual_seed(0)
    net = nn.Sequential(make(), nn.ReLU()).eval()
    x = torch.randn(2, *shape)
    graph = symbolic_trace(net)
    assert sum(node.op == "call_module" for node in graph.graph.nodes) <= 3
    torch.testing.assert_close(graph(x), net(x), rtol=0, atol=0)


def test_fx_goes_through_blocks_that_share_a_router():
    net, x = shared_blocks(), torch.randn(2, 3, 9, 9)
    graph = symbolic_trace(net)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == ["0", "1.router", "1.conv1", "1.conv2", "2.router", "2.conv1", "2.conv2"]
    torch.testing.assert_close(graph(x), net(x), rtol=0, atol=0)


def test_fx_keeps_the_gradient_and_coefficients_that_are_given():
    layer = layer_of(cv.DyConv(experts=2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, coeffs=self.layer.router(x))

    x = images()
    graph = symbolic_trace(Net())
    torch.testing.assert_close(graph(x), layer(x))
    graph(x).sum().backward()
    assert layer.weight.grad is not None


def test_feature_extraction_and_fx_quantisation():
    torchvision = pytest.importorskip("torchvision")
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    net = cv.convert(torchvision.models.resnet18(num_classes=3), cv.ODConv(experts=2), cv.where.name("layer3.*")).eval()
    x, seen = torch.randn(1, 3, 32, 32), {}
    handle = net.layer3.register_forward_hook(lambda m, args, out: seen.update(layer3=out))
    net(x)
    handle.remove()
    found = create_feature_extractor(net, {"layer3": "layer3", "layer4": "layer4"})(x)
    torch.testing.assert_close(found["layer3"], seen["layer3"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(net, get_default_qconfig_mapping(), (x,))
    torch.testing.assert_close(prepared(x), net(x))


@every_method
def test_jit_script_says_what_works_and_trace_does(config):
    net = nn.Sequential(layer_of(config), nn.ReLU())
    with pytest.raises(cv.ExportError, match=r"torch.jit.trace.*convary.export"):
        torch.jit.script(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, images())
    torch.testing.assert_close(traced(images(B=3)).shape, net(images(B=3)).shape)


def test_jit_script_of_a_block_that_shares_a_router():
    with pytest.raises(cv.ExportError, match="trace"):
        torch.jit.script(shared_blocks())


@every_method
def test_hooks_see_tensors_and_backward_hooks_change_nothing(config):
    layer, x = layer_of(config), images().requires_grad_()
    want = torch.autograd.grad(layer(x).square().sum(), x)[0]
    seen, gradients = [], []
    for module in layer.modules():
        module.register_forward_hook(lambda m, args, out: seen.append(out))
        module.register_full_backward_hook(lambda m, before, after: gradients.append(after))
    got = torch.autograd.grad(layer(x).square().sum(), x)[0]
    torch.testing.assert_close(got, want)
    for out in seen:
        assert isinstance(out, torch.Tensor) or (len(out) and all(isinstance(t, torch.Tensor) for t in out))
    (coeffs,) = [out for out in seen if isinstance(out, Factors)]
    assert list(coeffs.factors().values()) == list(coeffs)


@every_method
def test_factors_are_a_tuple_by_name(config):
    layer = layer_of(config)
    with torch.no_grad():
        coeffs = layer.router(images())
    assert isinstance(coeffs, layer.takes) and len(coeffs) == len(coeffs.factors()) > 0
    for again in (pickle.loads(pickle.dumps(coeffs)), copy.deepcopy(coeffs), type(coeffs)(*coeffs), coeffs.replace()):
        assert type(again) is type(coeffs)
        torch.testing.assert_close(again.factors(), coeffs.factors())
    (name, value), *_ = coeffs.factors().items()
    assert getattr(coeffs, name) is value and name in repr(coeffs)
    with pytest.raises(AttributeError):
        setattr(coeffs, name, None)
    with pytest.raises(TypeError, match="nonsense"):
        layer.takes(nonsense=value)
    if layer.takes.__dict__.get(name, ...) is None:
        assert getattr(coeffs.replace(**{name: None}), name) is None
    else:
        with pytest.raises(TypeError, match=f"takes {name}"):
            coeffs.replace(**{name: None})


@every_method
def test_coefficients_of_another_kind_are_refused(config):
    layer, x = layer_of(config), images()
    coeffs = layer.router(x)
    torch.testing.assert_close(layer(x, coeffs), layer(x))
    with pytest.raises(cv.ConfigError, match=layer.takes.__name__):
        layer(x, [1.0])
    weights = torch.rand(2, layer.num_experts)
    if layer.takes is not cv.Coefficients:
        with pytest.raises(cv.ConfigError, match=r"a tensor \(2, "):
            layer(x, weights)
        return
    torch.testing.assert_close(layer(x, weights), layer(x, cv.Coefficients(kernel=weights)))
    with pytest.raises(cv.ConfigError, match=r"a tensor \(2,\)"):
        layer(x, weights[:, 0])


@every_method
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_bytes_are_refused_in_words(config, dtype, rank):
    with pytest.raises(cv.DtypeError, match=r"floating-point.*x.float\(\) / 255"), torch.no_grad():
        layer_of(config, rank)(images(rank).to(dtype))


@every_other
def test_bytes_are_refused_by_the_other_layers(make, shape):
    with pytest.raises(cv.DtypeError, match="floating-point"):
        make().eval()(torch.zeros(2, *shape, dtype=torch.uint8))


@every_method
def test_takes_integers_of_numpy(config):
    numpy = pytest.importorskip("numpy")
    wide, three = numpy.int64(4), numpy.int32(3)
    layer = type(layer_of(config))(wide, wide, three, groups=numpy.int64(2), padding=three // three)
    assert layer.eval()(images()).shape == (2, 4, 9, 7)
    assert type(layer.in_channels) is int and type(layer.groups) is int
    fields = {name: numpy.int64(v) for name, v in config.options().items() if type(v) is int}
    same = type(config)(**fields)
    assert same == config and cv.config_from_json(same.to_json()) == config
    with pytest.raises(cv.ConfigError, match="ints above 0"):
        type(layer)(numpy.float64(4.0), 4, 3)


def test_the_other_layers_take_integers_of_numpy():
    numpy = pytest.importorskip("numpy")
    n = numpy.int64
    assert cv.Involution2d(n(16), n(3), group_channels=n(8))(torch.randn(1, 16, 5, 5)).shape == (1, 16, 5, 5)
    assert cv.CARAFE(n(8), n(2), kernel_size=n(3))(torch.randn(1, 8, 5, 5)).shape == (1, 8, 10, 10)
    assert cv.DynamicConvModule(n(4), n(6), n(3))(torch.randn(2, 4, 5, 5)).shape == (2, 6, 5, 5)
    assert cv.DFNConv2d(n(4), n(6), n(3))(torch.randn(2, 4, 5, 5)).shape == (2, 6, 3, 3)
    assert cv.DFNLocalFilter2d(n(4), n(3))(torch.randn(2, 4, 5, 5)).shape == (2, 1, 5, 5)
    assert cv.MixedLinear(n(4), n(6), experts=n(2))(torch.randn(2, 4)).shape == (2, 6)


QUANTISED = [*(config() for config in METHODS), "block", "MixedLinear", "DCDLinear"]


@pytest.mark.parametrize("config", QUANTISED, ids=lambda c: getattr(c, "name", c))
def test_dynamic_quantisation_of_linear_layers(config):
    """Routers in int8 work, and move the output by less than a percent; random mixtures of all cells by a few."""
    most = 0.05 if config == cv.KernelWarehouse() else 0.01
    torch.manual_seed(0)
    if config == "block":
        net, x = shared_blocks(), torch.randn(4, 3, 9, 9)
    elif isinstance(config, str):
        net, x = nn.Sequential(getattr(cv, config)(8, 6)).eval(), torch.randn(4, 8)
    else:
        net, x = nn.Sequential(layer_of(config)), images(B=4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
        want = net(x)
        assert any("quantized" in type(module).__module__ for module in small.modules())
        assert float((small(x) - want).norm() / want.norm()) < most


@every_method
def test_synchronised_norms_take_a_batch_of_one(config):
    torch.manual_seed(0)
    net = nn.Sequential(layer_of(config), nn.Conv2d(6, 2, 1))
    x = images(B=3)
    want = net(x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert not any(type(module) is nn.SyncBatchNorm for module in synced.modules())
    assert synced.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(synced(x), want)
    torch.testing.assert_close(synced[0].kernels(synced[0].router(x)), net[0].kernels(net[0].router(x)))
    one = torch.randn(1, 4, 1, 1)
    alone = synced.train()(one)
    torch.testing.assert_close(alone, net.train()(one))
    alone.sum().backward()
    torch.testing.assert_close(synced.train()(x), net.train()(x))  # statistics of the batch, as any norm
    assert pickle.loads(pickle.dumps(synced))


def test_initialisers_that_go_by_class_name():
    def init(module):
        if "Conv" in type(module).__name__:
            nn.init.kaiming_normal_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    layers = [layer_of(config(), rank, C=6) for config in METHODS for rank in (1, 2, 3)]
    layers += [cv.DynamicConvModule(8, 8, 3), cv.DFNConv2d(8, 8, 3), cv.DDPM(64, 64, 64), cv.Involution2d(16, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's word on the kernel that DFNConv2d does not have
        for layer in layers:
            layer.apply(init)
