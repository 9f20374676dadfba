# SPDX-License-Identifier: Apache-2.0
"""Routing in one native call: against the plain layers in float64, and where it must not be taken."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convary as cv
from convary import ops
from convary.ops import native
from convary.ops.native import router
from convary.ops.native.library import loaded

pytestmark = pytest.mark.skipif(native.available() is not None, reason="the native library is absent")
LAYERS = {
    "condconv": lambda C: cv.CondConv2d(C, 8, 3),
    "dyconv": lambda C: cv.DyConv2d(C, 8, 3, temperature=0.7, hidden_bias=True),
    "dynet": lambda C: cv.DyNetConv2d(C, 8, 3),
    "odconv": lambda C: cv.ODConv2d(C, 8, 3),
    "odconv per kernel": lambda C: cv.ODConv2d(C, 8, 3, sharing="per_kernel", kernel_activation="sigmoid", norm="none"),
    "odconv without kernel axis": lambda C: cv.ODConv2d(C, 8, 3, experts=1),
}


def trained(name, C):
    torch.manual_seed(C)
    layer = LAYERS[name](C)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for _ in range(3):
            layer.router(torch.randn(4, C, 5, 5) + 1)
    return layer.eval()


def native_calls(monkeypatch):
    calls = []
    run = router.route
    monkeypatch.setattr(router, "route", lambda *arguments: calls.append(1) or run(*arguments))
    return calls


@settings(max_examples=40, deadline=None)  # also run in subprocesses, without the profile
@given(
    name=st.sampled_from(list(LAYERS)),
    B=st.integers(1, 5),
    C=st.sampled_from([1, 3, 16, 17, 33, 64]),
    size=st.sampled_from([(1, 1), (3, 5), (7, 7), (8, 8), (31, 2)]),
    features=st.sampled_from([torch.float32, torch.bfloat16]),
    layers=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_agrees_with_the_layers_in_float64(name, B, C, size, features, layers):
    """In bfloat16 too, of the same numbers; coefficients for a bank in bfloat16 are rounded to it, once."""
    layer = trained(name, C).to(layers)
    x = torch.randn(B, C, *size).to(torch.bfloat16 if layers is torch.bfloat16 else features)
    near = {"rtol": 2e-5 if layers is torch.float32 else 1.01 * 2**-8, "atol": 2e-6}
    with torch.no_grad():
        got = layer.router(x).factors()
        with ops.strategy("bmm"):
            want = layer.double().router(x.double()).factors()
    assert got.keys() == want.keys()
    for axis, factor in want.items():
        assert got[axis].shape == factor.shape
        assert got[axis].is_contiguous()  # as the convolution reads it, without a copy
        assert got[axis].dtype is layers
        torch.testing.assert_close(got[axis].double(), factor, **near)


def test_every_instruction_set(another_isa):
    test_agrees_with_the_layers_in_float64()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_one_call_in_inference(name, dtype, monkeypatch):
    layer = trained(name, 16).to(dtype)
    calls = native_calls(monkeypatch)
    with torch.inference_mode():
        layer(torch.randn(2, 16, 7, 7, dtype=dtype))
    assert calls == [1]


def forced(layer, x):
    with torch.no_grad(), ops.strategy("bmm"):
        layer(x)


def with_gradient(layer, x):
    layer(x)


def hooked(layer, x):
    seen = []
    handle = layer.router.heads.register_forward_hook(lambda *arguments: seen.append(1))
    with torch.no_grad():
        layer(x)
    handle.remove()
    assert seen == [1]


def replaced(layer, x):
    class Doubled(torch.nn.Linear):
        def forward(self, v):
            return 2 * super().forward(v)

    layer.router.heads.__class__ = Doubled
    with torch.no_grad():
        layer(x)


def counted(layer, x):
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() > 0


def with_batch_statistics(layer, x):
    layer.router.train()
    with torch.no_grad():
        layer(x)


def in_double(layer, x):
    with torch.no_grad():
        layer.double()(x.double())


def channels_last(layer, x):
    with torch.no_grad():
        layer(x.contiguous(memory_format=torch.channels_last))


def in_vmap(layer, x):
    with torch.no_grad():
        torch.func.vmap(layer)(x[:, None])


def in_forward_mode(layer, x):
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize(
    "use",
    [
        in_vmap,
        in_forward_mode,
        forced,
        with_gradient,
        hooked,
        replaced,
        counted,
        with_batch_statistics,
        in_double,
        channels_last,
    ],
)
def test_gives_way(use, monkeypatch):
    layer = trained("odconv", 16)
    calls = native_calls(monkeypatch)
    use(layer, torch.randn(2, 16, 7, 7))
    assert not calls


RAW = {
    "B": 2, "C": 3, "P": 5, "hidden": 4, "pieces": (3, 0, 2, 1), "gates": 1, "rest": 2, "half": 0, "half_layers": 0,
    "epsilon": 0.0,
}  # fmt: skip


def raw(**changes) -> tuple[int, torch.Tensor]:
    """The code of the C entry, and the memory around the outputs."""
    torch.manual_seed(0)
    sizes = router.RouteSizes(*(RAW | changes).values())
    tensors = [torch.rand(n) for n in (30, 12, 4, 4, 4, 4, 4, 24, 6, 1)]
    pooled, out = torch.full((6,), torch.nan), torch.full((14,), torch.nan)
    pointers = [t.data_ptr() for t in (*tensors, pooled)]
    return loaded().entries["route"](ctypes.addressof(sizes), *pointers, out.data_ptr() + 4), out


def test_each_piece_is_dense_and_nothing_else_is_written():
    code, out = raw()
    assert code == 0
    assert out[[0, 13]].isnan().all()
    assert ((out[1:7] > 0) & (out[1:7] < 1)).all()
    torch.testing.assert_close(out[7:11].view(2, 2).sum(1), torch.ones(2))
    torch.testing.assert_close(out[11:13], torch.ones(2))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pieces": (-1, 0, 2, 1)}, 3),
        ({"pieces": (2**31, 0, 2, 1)}, 4),
        ({"pieces": (2**30, 2**30, 0, 0)}, 4),
        ({"gates": 5}, 8),
        ({"gates": -1}, 3),
        ({"rest": 3}, 8),
        ({"C": 0}, 8),
        ({"half": 2}, 8),
        ({"half_layers": 1}, 8),
    ],
)
def test_bad_sizes(change, code):
    found, out = raw(**change)
    assert found == code
    assert out.isnan().all()


def test_neutral_router_is_exact():
    layer = cv.ODConv2d(16, 8, 3)
    layer.router.neutral_()
    with torch.no_grad():
        factors = layer.eval().router(torch.randn(3, 16, 5, 5)).factors()
    assert all((factors[axis] == (0.25 if axis == "kernel" else 0.5)).all() for axis in factors)


def test_nan_of_one_sample_stays_with_it():
    layer = trained("odconv", 16)
    x = torch.randn(3, 16, 5, 5)
    with torch.no_grad():
        clean = layer.router(x).factors()
        x[1, 2, 3, 3] = float("nan")
        dirty = layer.router(x).factors()
    for axis, factor in clean.items():
        assert torch.equal(dirty[axis][[0, 2]], factor[[0, 2]])
        assert dirty[axis][1].isnan().all()
