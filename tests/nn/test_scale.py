# SPDX-License-Identifier: Apache-2.0
"""``scale``, the gain of a neutral router where no optimizer sees it, in everything that reads or writes a layer."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import convary as cv
from convary import METHODS, where
from convary.nn import DynamicLayer
from tests.nets import Net, dynamic_net, excite

X = torch.randn(2, 8, 7, 6, generator=torch.Generator().manual_seed(2))


def upcycled(config, bias: bool = True) -> DynamicLayer:
    """A layer that a static one was loaded into, whose samples get different kernels."""
    torch.manual_seed(0)
    static = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
    layer = config.build(static)
    layer.load_static(static.weight, static.bias, noise=0.5)
    return excite(layer)


every_method = pytest.mark.parametrize("config", [config() for config in METHODS], ids=lambda config: config.name)
SCALED = [config() for config in METHODS if upcycled(config()).scale is not None]
scaled_ones = pytest.mark.parametrize("config", SCALED, ids=lambda config: config.name)


def without_a_scale(layer: DynamicLayer) -> dict[str, torch.Tensor]:
    """The state dict that a convary without scales would have made: the bank holds it."""
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    scale = state.pop("scale", torch.ones(()))
    for name in ("weight", "bias"):
        if name in state and (name == "weight" or state[name].ndim == 2):
            state[name] = state[name] * scale
    return state


@every_method
def test_there_is_one_only_where_it_is_not_1(config):
    static = nn.Conv2d(8, 8, 3)
    layer = config.build(static)
    assert layer.scale is None
    assert "scale" not in layer.state_dict()
    layer.load_static(static.weight, static.bias, noise=0.1)
    held, layer.scale = layer.scale, None
    assert (held is None) == torch.allclose(layer.eval()(X), static(X), atol=1e-5)
    layer.scale = held
    spread = layer.weight.std() / static.weight.std()
    assert 0.9 < spread < 1.1  # as large as the static weights
    layer.reset_parameters()
    assert layer.scale is None or layer.scale == 1


class MixedBias(cv.ODConv2d):
    """A user's layer whose bias is mixed too: the channel and tap factors, of 1/2 each, do not act on it."""

    mixed_bias = True


def test_a_mixed_bias_is_upcycled_exactly_whatever_does_not_act_on_it():
    static = nn.Conv2d(8, 8, 3)
    layer = MixedBias(8, 8, 3, experts=3)
    layer.load_static(static.weight, static.bias, noise=0.5)
    torch.testing.assert_close(layer.eval()(X), static(X), rtol=1e-4, atol=1e-5)


def test_odconv_is_scaled_by_8():
    """All its attentions are 1/2 at the start, and those of the kernels 1/K."""
    assert upcycled(cv.ODConv()).scale == 8


@scaled_ones
def test_coefficients_are_the_routers_own(config):
    layer = upcycled(config)
    got, want = layer.coefficients(X), layer.router(X)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    torch.testing.assert_close(layer(X, got), layer(X))
    if "kernel" in got.factors():
        assert got.kernel.max() <= 1
    kernels, biases = layer.kernels(got), layer.biases(got)
    x = layer.features(X)
    one_by_one = [nn.functional.conv2d(x[i], kernels[i], biases[i], padding=1) for i in range(2)]
    torch.testing.assert_close(torch.stack(one_by_one), layer(X), rtol=1e-4, atol=1e-5)


@every_method
def test_state_dicts_without_a_scale_load_strictly(config):
    layer = upcycled(config)
    before = without_a_scale(layer)
    for target in (config.build(nn.Conv2d(8, 8, 3, padding=1)), upcycled(config)):
        target.load_state_dict(before)
        assert target.scale is None
        torch.testing.assert_close(target.eval()(X), layer(X), rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.parametrize("assign", [False, True])
def test_todays_load_into_any_layer(config, assign):
    layer = upcycled(config)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    with torch.device("meta" if assign else "cpu"):
        target = config.build(nn.Conv2d(8, 8, 3, padding=1))
    target.load_state_dict(state, assign=assign)
    if assign and (temperature := target.router.temperature) is not None:
        assert not temperature.is_meta
    assert torch.equal(target.eval()(X), layer(X))
    held = target.scale
    target.load_state_dict(state)
    assert target.scale is held  # written to, not exchanged: a compiled graph may hold it


def test_a_part_of_a_state_dict_leaves_it_alone():
    layer = upcycled(cv.ODConv())
    layer.load_state_dict({"router.heads.bias": layer.router.heads.bias.detach().clone()}, strict=False)
    assert layer.scale == 8


@scaled_ones
def test_copies_casts_and_devices(config):
    layer = upcycled(config)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).double().float()):
        assert torch.equal(twin(X), layer(X))
    assert copy.deepcopy(layer).bfloat16().scale.dtype == torch.bfloat16
    half = copy.deepcopy(layer).bfloat16()(X.bfloat16()).float()
    assert (half - layer(X)).abs().max() < 0.1 * layer(X).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_method
def test_upcycling_is_as_exact_in_few_bits(config, dtype):
    torch.manual_seed(0)
    static = nn.Conv2d(8, 8, 3, padding=1)
    layer = config.build(static.to(dtype))
    layer.load_static(static.weight, static.bias, noise=0.0)
    layer, static = layer.float(), static.float()
    torch.testing.assert_close(layer(X), static(X), rtol=0.02, atol=0.01)


@scaled_ones
def test_inference_mode_and_prepared_calls(config):
    layer = upcycled(config, bias=False)  # a mixed bias takes the usual way
    want = layer(X).detach()
    with torch.inference_mode():
        for _ in range(4):  # the third is prepared
            torch.testing.assert_close(layer(X), want, rtol=1e-4, atol=1e-5)
    layer.load_state_dict(without_a_scale(layer))
    with torch.inference_mode():
        for _ in range(4):
            torch.testing.assert_close(layer(X), want, rtol=1e-4, atol=1e-5)
        layer.weight.div_(2)
        layer.scale = torch.tensor(2.0)
        for _ in range(4):
            torch.testing.assert_close(layer(X), want, rtol=1e-4, atol=1e-5)


@scaled_ones
def test_functional_calls_vmap_and_gradients(config):
    layer = upcycled(config)
    state = dict(layer.named_parameters()) | dict(layer.named_buffers())
    torch.testing.assert_close(torch.func.functional_call(layer, state, (X,)), layer(X))
    doubled = state | {"scale": 2 * layer.scale}
    coeffs = layer.coefficients(X)
    got = torch.func.functional_call(layer, doubled, (X, coeffs))
    plain = layer.biases(coeffs)[..., None, None] if layer.bias.ndim == 1 else 0  # a static bias has none
    torch.testing.assert_close(got - plain, 2 * (layer(X, coeffs) - plain), rtol=1e-4, atol=1e-5)
    if not hasattr(layer, "spectrum"):  # torch.vmap makes no complex numbers of pairs
        ensemble = torch.func.stack_module_state([layer, layer])
        many = torch.vmap(lambda *held: torch.func.functional_call(layer, held, (X,)))(*ensemble)
        torch.testing.assert_close(many, torch.stack([layer(X)] * 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [*(c() for c in METHODS if c is not cv.FDConv), cv.FDConv(kernels=8)], ids=lambda c: c.name
)
def test_released_layouts_absorb_it(config):
    layer = upcycled(config, bias=False)
    if type(layer).released is DynamicLayer.released:
        with pytest.raises(cv.CheckpointError, match="has no released layout"):
            cv.released_state(layer)
        return
    released = {name: value.clone() for name, value in cv.released_state(layer).items()}
    assert "scale" not in released
    other = upcycled(config, bias=False)
    cv.load_released(other, released)
    assert other.scale is None
    torch.testing.assert_close(other.eval()(X), layer(X), rtol=1e-4, atol=1e-5)


@every_method
def test_averages_of_weights_follow(config):
    layer = upcycled(config)
    average = torch.optim.swa_utils.AveragedModel(layer, use_buffers=True)
    for _ in range(2):
        average.update_parameters(layer)
    torch.testing.assert_close(average.eval()(X), layer(X), rtol=1e-4, atol=1e-5)


@every_method
def test_saved_networks_come_back(config, tmp_path):
    model = dynamic_net(config)
    told = cv.recipe(model)
    assert bool(told["scaled"]) == (config in SCALED)
    x = torch.randn(2, 3, 20, 20)
    for name in ("net.pt", "net.safetensors"):
        cv.save(model, tmp_path / name)
        torch.testing.assert_close(cv.load(Net(), tmp_path / name).eval()(x), model(x))
    again = cv.reconvert(Net(), told)
    own = again.state_dict()  # of a loader that looks up what it may fill in
    assert own.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        own[name].copy_(value)
    torch.testing.assert_close(again.eval()(x), model(x))


@pytest.mark.parametrize("config", [c for c in SCALED if c.layers[2].absorbs], ids=lambda config: config.name)
def test_folded_norms_take_it_into_the_bank(config):
    model, x = dynamic_net(config), torch.randn(2, 3, 20, 20)
    folded = cv.fold_norms(model, x)
    assert all(m.scale is None for m in folded.modules() if isinstance(m, DynamicLayer) and m.folded is not None)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
    again = cv.reconvert(Net(), cv.recipe(folded)).eval()
    again.load_state_dict(folded.state_dict())
    torch.testing.assert_close(again(x), folded(x))


def test_one_product_and_only_where_it_is_needed():
    """Of one number per kernel and sample, in graphs too; none in a layer without a scale."""
    graphs = {}
    for name, layer in {"upcycled": upcycled(cv.CondConv()), "fresh": cv.CondConv().build(nn.Conv2d(8, 8, 3))}.items():
        program = torch.export.export(layer.eval(), (X,))
        products = [n for n in program.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
        graphs[name] = [tuple(n.meta["val"].shape) for n in products]
    assert sorted(graphs["upcycled"]) == sorted([*graphs["fresh"], (2, 8)])


def test_a_network_that_starts_again_has_no_gain():
    model = cv.convert(Net(), cv.ODConv(), where.all())
    assert {float(b) for name, b in model.named_buffers() if name.endswith(".scale")} == {4.0, 8.0}
    for module in model.modules():
        if isinstance(module, DynamicLayer):
            module.reset_parameters()
    assert {float(b) for name, b in model.named_buffers() if name.endswith(".scale")} == {1.0}


@scaled_ones
def test_compiles_with_it(config):
    layer = upcycled(config)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), layer(X), rtol=1e-4, atol=1e-5)
    layer.load_state_dict(without_a_scale(layer))
    torch.testing.assert_close(compiled(X), layer(X), rtol=1e-4, atol=1e-5)  # recompiled, without the product


@pytest.mark.parametrize("rank", [1, 2, 3])
@scaled_ones
def test_every_rank_batch_and_order_equals_the_convolution_with_its_kernels(config, rank):
    """In float32, whose kernels are fused, against float64 and torch's own convolution."""
    torch.manual_seed(0)
    static = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](8, 8, 3, padding=1)
    layer = config.build(static)
    layer.load_static(static.weight, static.bias, noise=0.5)
    exact = copy.deepcopy(excite(layer)).double()
    convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[rank - 1]
    assert layer(torch.randn(0, 8, *(6, 5, 4)[:rank])).shape == (0, 8, *(6, 5, 4)[:rank])

    def reference(x):
        coeffs, features = exact.coefficients(x), exact.features(x)
        kernels, biases = exact.kernels(coeffs), exact.biases(coeffs)
        return torch.cat([convolve(features[i, None], kernels[i], biases[i], padding=1) for i in range(len(x))])

    def orders(model, call, x):
        x = x.clone().requires_grad_()
        held = [x, *model.parameters()]
        y = call(x)
        first = torch.autograd.grad(y.sin().sum(), held, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), held)]

    for count in (1, 3):
        x = torch.randn(count, 8, *(6, 5, 4)[:rank])
        for got, want in zip(orders(layer, layer, x), orders(exact, reference, x.double()), strict=True):
            atol = 2e-3 * float(want.detach().abs().max()) + 1e-6
            torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=atol)
