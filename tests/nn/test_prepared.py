# SPDX-License-Identifier: Apache-2.0
"""Inference by prepared calls: the same numbers, and never those of weights that are gone."""

import copy
import gc
import pickle
import weakref
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as prune_module

import convary as cv
from convary import ops
from convary.nn import VectorBatchNorm
from convary.nn import prepared as module
from convary.ops import native

pytestmark = pytest.mark.skipif(native.available() is not None, reason="the native library is absent")
X = torch.randn(1, 16, 9, 7, generator=torch.Generator().manual_seed(0))
LAYERS = [
    lambda: cv.CondConv2d(16, 12, 3, padding=1, bias=False),
    lambda: cv.DyConv2d(16, 12, 1, stride=2, bias=False),
    lambda: cv.DyNetConv2d(16, 12, 3, dilation=2, bias=False),
    lambda: cv.ODConv2d(16, 12, 3, padding=1),
    lambda: cv.ODConv2d(16, 16, 3, padding=1, groups=16),
    lambda: cv.ODConv2d(16, 12, 1, experts=1),
]


def make(build=LAYERS[3]):
    torch.manual_seed(0)
    layer = build()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer.eval()


def usual(layer, x=X):
    """By the coefficients of the router and the op, each on its own."""
    with torch.no_grad():
        with ops.strategy("native" if layer.weight.dtype is torch.float32 else None):
            return layer(x, layer.router(x))


@torch.no_grad()
def prepared(layer, x=X, forced="native"):
    """The layer's answer, and whether it came from a plan; small layers would choose another strategy."""
    used = []
    run = module._Plan.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Plan, "run", lambda plan, x: used.append(1) or run(plan, x))
        with ops.strategy(forced):
            layer(x)  # a shape is prepared when it comes for the second time
            used.clear()
            y = layer(x)
    return y, bool(used)


@pytest.mark.parametrize("build", LAYERS)
def test_same_numbers(build):
    layer = make(build)
    for x in (X, X, X[:, :, :8, :5].contiguous(), X, torch.cat((X, X + 1, -X)), X):
        y, used = prepared(layer, x)
        assert used
        assert torch.equal(y, usual(layer, x))


@pytest.mark.parametrize("build", LAYERS)
def test_same_numbers_under_autocast(build):
    layer, x = make(build), X.bfloat16()
    for batch in (x, torch.cat((x, x + 1, -x))):
        with torch.autocast("cpu", torch.bfloat16):
            y, used = prepared(layer, batch)
            want = usual(layer, batch)
        assert used
        assert y.dtype is torch.bfloat16
        assert torch.equal(y, want)


@pytest.mark.parametrize("build", LAYERS)
def test_same_numbers_in_bfloat16(build):
    """But that the coefficients, which the op wants in the bank's dtype, are not rounded on their way."""
    layer = make(build).bfloat16()
    y, used = prepared(layer, X.bfloat16())
    assert used == (layer.bias is None)
    assert y.dtype is torch.bfloat16
    want = usual(copy.deepcopy(layer).double(), X.bfloat16().double())
    torch.testing.assert_close(y.double(), want, rtol=2**-6, atol=2**-6 * want.abs().max().item())


def test_another_autocast_is_another_plan():
    layer = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(layer, X.bfloat16())[1]
    for dtype in (torch.bfloat16, torch.float16):  # torch makes float32 features of that dtype
        with torch.autocast("cpu", dtype):
            y, used = prepared(layer)
        assert y.dtype is dtype
        assert not used
    y, used = prepared(layer)
    assert y.dtype is torch.float32
    assert used


def test_ever_new_sizes_are_not_prepared(monkeypatch):
    monkeypatch.setattr(module, "_prepare", None)
    layer = make()
    with torch.no_grad(), ops.strategy("native"):
        for size in (9, 8, 9, 8, 7, 9):
            x = X[:, :, :size].contiguous()
            assert torch.equal(layer(x), usual(layer, x))


def test_another_strategy_is_asked_for_once(monkeypatch):
    layer = make()
    asked = []
    monkeypatch.setattr(module, "decide", lambda *arguments: asked.append(1) or "loop")
    with torch.no_grad():
        for _ in range(4):
            layer(X)
    assert asked == [1]


def test_1d():
    layer = make(lambda: cv.DyConv1d(16, 8, 3, bias=False))
    y, used = prepared(layer, X[..., 0].contiguous())
    assert used
    assert torch.equal(y, usual(layer, X[..., 0].contiguous()))


@torch.no_grad()
def add_in_place(layer):
    layer.weight.add_(1)


def swap_data(layer):
    layer.weight.data = layer.weight.data + 1


def replace_parameter(layer):
    layer.put("weight", nn.Parameter(layer.weight.detach() + 1))


def replace_head(layer):
    layer.router.heads = nn.Linear(16, layer.router.heads.out_features)


def replace_squeeze(layer):
    layer.router.squeeze = nn.Linear(16, 16, bias=False)


def replace_router(layer):
    layer.router = make().router.requires_grad_(False)
    layer.router.heads.bias.add_(1)


def replace_statistics(layer):
    layer.router.norm.running_mean = layer.router.norm.running_mean + 1


def change_temperature(layer):
    cv.set_temperature(layer, 0.3)


def change_stride(layer):
    layer.stride = (2, 2)


def change_activation(layer):
    layer.router.activation = "sigmoid"


def change_epsilon(layer):
    layer.router.norm.eps = 10.0


def give_padding_as_an_int(layer):
    layer.padding = 2


def load_assigned(layer):
    state = {name: t + 0.5 if t.is_floating_point() else t for name, t in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


@pytest.mark.parametrize(
    "change",
    [add_in_place, swap_data, replace_parameter, replace_head, replace_squeeze, replace_router, replace_statistics,
     change_temperature, change_stride, change_activation, change_epsilon, give_padding_as_an_int, load_assigned],
)  # fmt: skip
def test_sees_every_change(change):
    layer = make()
    before, _ = prepared(layer)
    with torch.no_grad(), ops.strategy("native"):
        change(layer)
        first = layer(X)
    after, used = prepared(layer)
    assert torch.equal(first, after)
    assert used
    assert after.shape != before.shape or not torch.equal(after, before)
    assert torch.equal(after, usual(layer))


def hook(layer):
    layer.router.heads.register_forward_hook(lambda *arguments: None)


def hook_the_router(layer):
    layer.router.register_forward_pre_hook(lambda *arguments: None)


def override_forward(layer):
    forward = layer.router.squeeze.forward
    layer.router.squeeze.forward = lambda v: 2 * forward(v)


def train_the_norm(layer):
    layer.router.norm.train()


def prune(layer):
    prune_module.l1_unstructured(layer, "weight", 0.5)


def parametrize(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())


def parametrize_the_bias(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", nn.Tanh())


def normalise_without_affine_map(layer):
    layer.router.norm = VectorBatchNorm(16, affine=False).eval()


def normalise_by_batch(layer):
    layer.router.norm = nn.BatchNorm1d(16, track_running_stats=False).eval()
    layer.router.norm.forward = lambda v: v / (1 + v.abs())


@pytest.mark.parametrize(
    "change",
    [hook, hook_the_router, override_forward, train_the_norm, prune, parametrize, parametrize_the_bias,
     normalise_without_affine_map, normalise_by_batch, nn.Module.double],
)  # fmt: skip
def test_gives_way(change):
    layer = make()
    prepared(layer)
    change(layer)
    dtype = layer.weight.dtype
    y, used = prepared(layer, X.to(dtype), None)
    assert not used
    torch.testing.assert_close(y, usual(layer, X.to(dtype)))


def twice(method):
    def overridden(self, *arguments):
        coeffs = method(self, *arguments)
        return ops.Coefficients(kernel=2 * coeffs.kernel)

    return overridden


def by_class(router, name, method):
    router.__class__ = type("Own", (type(router),), {name: method})


def by_instance(router, name, method):
    setattr(router, name, MethodType(method, router))


@pytest.mark.parametrize("override", [by_class, by_instance])
@pytest.mark.parametrize("name", ["coefficients", "to_coefficients", "forward", "_route"])
@pytest.mark.parametrize("late", [False, True])
def test_gives_way_to_a_router_that_overrides(name, late, override):
    layer = make(LAYERS[1])
    with torch.no_grad():
        kernel = layer.router(X).kernel
    if late:
        prepared(layer)
    override(layer.router, name, twice(getattr(type(layer.router), name)))
    y, used = prepared(layer, X, None)
    assert not used
    want = ops.mixed_conv(X, layer.weight, ops.Coefficients(kernel=2 * kernel), stride=2).detach()
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("late", [False, True])
def test_gives_way_to_a_method_that_changes_the_features(late):
    layer = make(LAYERS[1])
    if late:
        prepared(layer)
    layer.__class__ = type("Own", (type(layer),), {"features": lambda self, x: 2 * x})
    y, used = prepared(layer, X, None)
    assert not used
    with torch.no_grad():
        want = ops.mixed_conv(2 * X, layer.weight, layer.router(X), stride=2)
    torch.testing.assert_close(y, want)


def test_gives_way_to_coefficients_of_the_layer_itself():
    layer = make(LAYERS[1])
    prepared(layer)
    coeffs = ops.Coefficients(kernel=torch.rand(1, 4))
    layer.coefficients = lambda x: coeffs
    y, used = prepared(layer, X, None)
    assert not used
    torch.testing.assert_close(y, ops.mixed_conv(X, layer.weight, coeffs, stride=2).detach())


@pytest.mark.parametrize("build", LAYERS[:4])
def test_another_number_of_channels_is_an_error(build):
    router = make(build).router
    with torch.no_grad(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        router(torch.randn(1, 64, 5, 5))


def test_gives_way_to_modes():
    layer = make()
    prepared(layer)
    assert not prepared(layer, X, "bmm")[1]
    with torch.autocast("cpu"):
        assert not prepared(layer, X, None)[1]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        assert not prepared(layer, X, None)[1]
    assert counter.get_total_flops() > 0
    assert not prepared(layer, X.contiguous(memory_format=torch.channels_last), None)[1]
    assert not prepared(layer, X[:0], None)[1]
    assert prepared(layer)[1]
    layer(X).sum().backward()
    assert layer.weight.grad is not None


def test_copies_and_pickles_leave_the_plan_behind():
    layer = make()
    want, _ = prepared(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(prepared(twin)[0], want)
        with torch.no_grad():
            twin.weight.add_(1)
        assert not torch.equal(prepared(twin)[0], want)
    assert torch.equal(prepared(layer)[0], want)


def test_a_plan_dies_with_its_layer():
    layer = make()
    prepared(layer)
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None


class Doubled(cv.ODConv2d):
    def convolve(self, x, coeffs, padding):
        return 2 * super().convolve(x, coeffs, padding)


def test_a_convolution_of_ones_own_is_not_passed_over():
    layer = make(lambda: Doubled(16, 12, 3, padding=1))
    y, used = prepared(layer)
    assert not used
    assert torch.equal(y, usual(layer))


def test_a_view_at_the_same_address_is_noticed():
    layer = make(lambda: cv.ODConv2d(16, 16, 3, padding=1))
    assert prepared(layer)[1]
    layer.weight.data = layer.weight.data.transpose(1, 2)
    y, used = prepared(layer)
    assert not used
    torch.testing.assert_close(y, usual(layer))
