# SPDX-License-Identifier: Apache-2.0
"""mix_kernels, sample_conv and mixed_conv against the reference, values and gradients, and what bad input gets."""

import dataclasses
import functools
import itertools

import pytest
import torch

from convary import ops
from convary.errors import ConfigError, DeviceError, DtypeError, ShapeError, StrategyError
from convary.ops import Coefficients, mixed, reference

K, B = 3, 2
F64 = {"dtype": torch.float64}
PRESENCE = [p for p in itertools.product((False, True), *[(None, 1, K)] * 3) if any(p)]


def coefficients(presence, O, C, T, **kw):
    kernel, filter, channel, tap = presence
    make = lambda rows, n: None if rows is None else torch.randn(B, rows, n, **kw)  # noqa: E731
    return Coefficients(
        kernel=torch.randn(B, K, **kw) if kernel else None,
        filter=make(filter, O),
        channel=make(channel, C),
        tap=make(tap, T),
    )


def problem(rank=2, groups=1, presence=(True, None, None, None)):
    torch.manual_seed(0)
    C, O, k, S = 4, 4 if groups == 4 else 6, (3, 2, 2)[:rank], (7, 6, 5)[:rank]
    T = torch.Size(k).numel()
    geometry = {"stride": (2, 1, 1)[:rank], "padding": (1, 0, 1)[:rank], "dilation": (1, 2, 1)[:rank], "groups": groups}
    x, bank = torch.randn(B, C, *S, **F64), torch.randn(K, O, C // groups, *k, **F64)
    return x, bank, coefficients(presence, O, C, T, **F64), torch.randn(K, O, **F64), geometry


@functools.cache
def solved(rank, groups, presence):
    """A problem, its leaves, the right output and the right gradients; kernels and biases are compared once."""
    x, bank, coeffs, bias, geometry = given = problem(rank, groups, presence)
    leaves = [x, bank, bias, *coeffs.factors().values()]
    for leaf in leaves:
        leaf.requires_grad_()
    want = reference.mixed_conv(x, bank, coeffs, bias, **geometry)
    torch.testing.assert_close(ops.mix_kernels(bank, coeffs), reference.mix_kernels(bank, coeffs))
    torch.testing.assert_close(ops.mix_bias(bias, coeffs), reference.mix_bias(bias, coeffs))
    return given, leaves, want.detach(), torch.autograd.grad(want.sin().sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("strategy", [name for name in mixed.STRATEGIES if name not in ("triton", "deferred")])
def test_every_strategy_and_combination_of_factors(rank, groups, strategy):
    ran = 0
    for presence in PRESENCE:
        (x, bank, coeffs, bias, geometry), leaves, want, want_grads = solved(rank, groups, presence)
        try:
            with ops.strategy(strategy):
                got = ops.mixed_conv(x, bank, coeffs, bias, **geometry)
        except StrategyError:
            refused_outputs = strategy == "outputs" and K in presence[2:]
            assert refused_outputs or strategy == "native"  # float64; tests/ops/mixed/test_native.py has its own
            continue
        torch.testing.assert_close(got, want)
        grads = torch.autograd.grad(got.sin().sum(), leaves, allow_unused=True)
        for g, w in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(g, w)
        ran += 1
    assert ran == {"outputs": 23, "native": 0}.get(strategy, len(PRESENCE))


@pytest.mark.parametrize("strategy", ["grouped", "loop", "bmm"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_sample_conv_with_index(strategy, rank):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *(6, 5, 5)[:rank], **F64, requires_grad=True)
    index = torch.tensor([2, 0, 0, 2, 2])
    weight = torch.randn(5, 6, 2, *(3, 2, 2)[:rank], **F64, requires_grad=True)
    bias = torch.randn(5, 6, **F64, requires_grad=True)
    geometry = {"stride": (1,) * rank, "padding": (1,) * rank, "dilation": (1,) * rank, "groups": 2}
    want = reference.sample_conv(x, weight, bias, index=index, **geometry)
    with ops.strategy(strategy):
        got = ops.sample_conv(x, weight, bias, index=index, **geometry)
    torch.testing.assert_close(got, want)
    grads, wants = (torch.autograd.grad(y.sin().sum(), (x, weight, bias)) for y in (got, want))
    for g, w in zip(grads, wants, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm", "native"])
def test_no_instances(strategy):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    weight = torch.randn(0, 5, 4, 3, 3, requires_grad=True)
    with ops.strategy(strategy):
        y = ops.sample_conv(x, weight, index=torch.zeros(0, dtype=torch.long))
    assert y.shape == (0, 5, 4, 4)
    y.sum().backward()
    assert x.grad.abs().sum() == 0


def test_mixing_follows_the_formula_by_hand():
    bank = torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1)
    c = Coefficients(
        kernel=torch.tensor([[2.0, 3.0]]), filter=torch.tensor([[[5.0], [7.0]]]), channel=torch.tensor([[[11.0]]]),
        tap=torch.tensor([[[0.5]]]),
    )  # fmt: skip
    assert ops.mix_kernels(bank, c).item() == (2 * 5 * 1 + 3 * 7 * 10) * 11 * 0.5


BAD = {
    "kernel": (lambda c: c.replace(kernel=torch.ones(B, K + 1, **F64)), ShapeError, r"want \(2, 3\)"),
    "batch": (lambda c: c.replace(kernel=torch.ones(B + 1, K, **F64)), ShapeError, r"want \(2, 3\)"),
    "filter": (lambda c: c.replace(filter=torch.ones(B, 2, 6, **F64)), ShapeError, r"\(2, 1 or 3, 6\)"),
    "tap": (lambda c: c.replace(tap=torch.ones(B, 1, 9, **F64)), ShapeError, r"\(2, 1 or 3, 6\)"),
    "channel": (lambda c: c.replace(channel=torch.ones(B, 1, 8, **F64)), ShapeError, "8 channels but x has 4"),
    "channel_odd": (lambda c: c.replace(channel=torch.ones(B, 1, 5, **F64)), ShapeError, "multiple of the 4"),
    "dtype": (lambda c: c.replace(kernel=torch.ones(B, K)), DtypeError, "float32 but the bank is torch.float64"),
    "device": (
        lambda c: c.replace(kernel=torch.ones(B, K, **F64, device="meta")),
        DeviceError,
        "coefficients are on meta",
    ),
    "none": (lambda c: Coefficients(), ShapeError, "no factor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_coefficients(name):
    change, error, message = BAD[name]
    x, bank, coeffs, bias, geometry = problem()
    with pytest.raises(error, match=message):
        ops.mixed_conv(x, bank, change(coeffs), bias, **geometry)


BAD_CALLS = {
    "channels": ({"x": torch.randn(B, 5, 7, 6, **F64)}, ShapeError, "groups must divide"),
    "rank": ({"x": torch.randn(B, 4, 7, **F64)}, ShapeError, "4 axes"),
    "small": ({"x": torch.randn(B, 4, 1, 1, **F64)}, ShapeError, "reaches over"),
    "dtype": ({"x": torch.randn(B, 4, 7, 6)}, DtypeError, "cast one of them"),
    "bank": ({"bank": torch.randn(6, 4, **F64)}, ShapeError, "one to three spatial axes"),
    "bias": ({"bias": torch.randn(7, **F64)}, ShapeError, r"wants \(6,\) or \(3, 6\)"),
    "bias dtype": ({"bias": torch.randn(6)}, DtypeError, "bias is torch.float32"),
    "bias device": ({"bias": torch.randn(6, **F64, device="meta")}, DeviceError, "bias is on meta"),
    "bank device": ({"bank": torch.randn(K, 6, 4, 3, 2, **F64, device="meta")}, DeviceError, "kernels are on meta"),
    "groups": ({"groups": 3}, ShapeError, "groups must divide"),
    "stride": ({"stride": 0}, ConfigError, "stride must be"),
    "padding": ({"padding": "some"}, ConfigError, "'same' or 'valid'"),
    "same rank": ({"padding": "same", "x": torch.randn(B, 4, 7, **F64)}, ShapeError, "4 axes"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    change, error, message = BAD_CALLS[name]
    x, bank, coeffs, bias, geometry = problem()
    call = {"x": x, "bank": bank, "coeffs": coeffs, "bias": bias, **geometry, **change}
    with pytest.raises(error, match=message):
        ops.mixed_conv(**call)


BAD_INDEX = {
    "missing": (None, ShapeError, r"one kernel per sample, or index=\(3,\)"),
    "shape": (torch.zeros(2, dtype=torch.long), ShapeError, r"shape \(3,\)"),
    "dtype": (torch.zeros(3), DtypeError, "int64"),
    "range": (torch.tensor([0, 4, 1]), ShapeError, "images 0 to 3"),
    "negative": (torch.tensor([0, -1, 1]), ShapeError, "from -1"),
    "device": (torch.zeros(3, dtype=torch.long, device="meta"), DeviceError, "index is on meta"),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_bad_index(name):
    index, error, message = BAD_INDEX[name]
    with pytest.raises(error, match=message):
        ops.sample_conv(torch.randn(4, 2, 5, 5), torch.randn(3, 2, 2, 3, 3), index=index)


def test_forcing_a_strategy():
    x, bank, coeffs, bias, geometry = problem(presence=(True, None, None, K))
    with (
        pytest.raises(StrategyError, match="tap coefficients that differ .* act inside.*use one of grouped, loop, bmm"),
        ops.strategy("outputs"),
    ):
        ops.mixed_conv(x, bank, coeffs, bias, **geometry)
    with pytest.raises(ConfigError, match="did you mean 'grouped'"), ops.strategy("groupd"):
        pass
    with pytest.raises(StrategyError, match="no such strategy"), ops.strategy("outputs"):
        ops.sample_conv(torch.randn(1, 1, 4), torch.randn(1, 1, 1, 3))
    with ops.strategy("loop"), ops.strategy(None):  # None gives the choice back
        ops.mixed_conv(x, bank, coeffs, bias, **geometry)


def test_explain_says_what_runs_and_why_not():
    x, bank, coeffs, bias, geometry = problem(presence=(True, None, None, K))
    told = ops.explain(ops.mixed_conv, x, bank, coeffs, bias, **geometry)
    assert [row.strategy for row in told.rows] == list(mixed.STRATEGIES)
    refused = {row.strategy: row.reason for row in told.rows if row.reason}
    assert list(refused) == ["outputs", "native", "triton", "deferred"] and "tap" in refused["outputs"]
    assert told.chosen in str(told) and "fitted on" in str(told)
    y = ops.mixed_conv(x, bank, coeffs, bias, **geometry)
    convolution, assembly = bank[0].numel() * y[0, 0].numel() * B, bank.numel() * B
    assert next(r for r in told.rows if r.strategy == "grouped").macs == convolution + assembly
    with ops.strategy("loop"):
        assert ops.explain("mixed_conv", x, bank, coeffs, bias, **geometry).chosen == "loop"
    with pytest.raises(ShapeError, match="one kernel per sample"):
        ops.explain(ops.sample_conv, torch.randn(2, 4, 5, 5), torch.randn(3, 4, 4, 1, 1))
    with pytest.raises(ConfigError, match="explain knows"):
        ops.explain("pixel", x, bank)
    with pytest.raises(ConfigError, match="mixed_conv takes x, bank, coeffs, .*missing a required argument: 'coeffs'"):
        ops.explain(ops.mixed_conv, x, bank)


@pytest.mark.parametrize("training", [False, True])
def test_the_explained_strategy_is_the_one_that_runs(training, monkeypatch):
    x, bank, coeffs, _, geometry = problem()
    bank.requires_grad_(training)
    chosen = ops.explain(ops.mixed_conv, x, bank, coeffs, **geometry).chosen
    ran = []
    for name, entry in list(mixed.STRATEGIES.items()):
        seen = dataclasses.replace(entry, run=lambda *a, name=name, run=entry.run: (ran.append(name), run(*a))[1])
        monkeypatch.setitem(mixed.STRATEGIES, name, seen)
    ops.mixed_conv(x, bank, coeffs, **geometry)
    assert ran == [chosen]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kernel": torch.rand(2, 3).double()}, DtypeError),
        ({"kernel": torch.rand(3, 3)}, ShapeError),
        ({"bank": torch.randn(3, 8, 4, 3, 3).double()}, DtypeError),
        ({"bank": torch.randn(3, 8, 4, 3, 3, device="meta")}, DeviceError),
        ({"bias": torch.randn(8).double()}, DtypeError),
        ({"bias": torch.randn(2, 8)}, ShapeError),
        ({"x": torch.randn(2, 5, 6, 6)}, ShapeError),
        ({"stride": (1.0, 1.0)}, ConfigError),
        ({"padding": (0, -1)}, ConfigError),
    ],
)
def test_calls_that_fitted_before_do_not_let_others_pass(changes, error):
    """Shapes that were checked once are not checked again; whatever differs is."""
    usual = {"x": torch.randn(2, 4, 6, 6), "bank": torch.randn(3, 8, 4, 3, 3), "kernel": torch.rand(2, 3),
             "bias": torch.randn(8), "stride": (1, 1), "padding": (0, 0)}  # fmt: skip

    def call(x, bank, kernel, bias, **geometry):
        return ops.mixed_conv(x, bank, Coefficients(kernel=kernel), bias, **geometry)

    for _ in range(2):
        call(**usual)
    with pytest.raises(error):
        call(**usual | changes)
