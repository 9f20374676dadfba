# SPDX-License-Identifier: Apache-2.0
"""What ``explain`` says is what a call does: its strategy, or its error."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from convary import ops
from convary.errors import ConfigError, ConvaryError
from convary.ops import Coefficients, cost, native
from convary.ops.dispatch import OPS

B, K, C, O, S = 3, 4, 6, 8, 7


def call(name: str, **changes) -> tuple[tuple, dict]:
    """Arguments of an op, some of them exchanged."""
    tensors = {
        "mixed_conv": {"x": torch.randn(B, C, S), "bank": torch.randn(K, O, C, 3),
                       "coeffs": Coefficients(kernel=torch.rand(B, K)), "bias": torch.randn(K, O)},
        "sample_conv": {"x": torch.randn(B, C, S), "weight": torch.randn(B, O, C, 3), "bias": torch.randn(O)},
        "pixel_conv": {"x": torch.randn(B, C, S), "weight": torch.randn(B, 2, 3, S), "kernel_size": 3},
    }[name]  # fmt: skip
    named = {"padding": 1} | tensors | changes
    return tuple(named.pop(key) for key in ("x",)), named


def outcome(call) -> str:
    """The error that a call ends in, or that there is none."""
    try:
        call()
    except ConvaryError as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


WRONG = {
    "mixed_conv": [
        {"bias": torch.randn(O + 1)}, {"bias": torch.randn(O).double()}, {"x": torch.randn(B, C + 1, S)},
        {"coeffs": Coefficients(kernel=torch.rand(B + 1, K))},
        {"coeffs": Coefficients(kernel=torch.rand(B, K), channel=torch.rand(B, 1, 2 * C))},
        {"bank": torch.randn(K, O, C, 3, device="meta")}, {"stride": 0}, {"padding": "full"}, {"groups": 5},
    ],
    "sample_conv": [
        {"bias": torch.randn(B + 1, O)}, {"weight": torch.randn(B + 1, O, C, 3)}, {"index": torch.tensor([0, B, 1])},
        {"index": torch.zeros(B)}, {"weight": torch.randn(B, O, C, 30)}, {"dilation": -1},
    ],
    "pixel_conv": [
        {"weight": torch.randn(B, 4, 3, S)}, {"weight": torch.randn(B, 2, 3, S).double()}, {"border": "edge"},
        {"padding": "same", "stride": 2},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), [(name, changes) for name in WRONG for changes in WRONG[name]])
def test_what_raises_is_not_explained(name, changes):
    arguments, named = call(name, **changes)
    raised = outcome(lambda: getattr(ops, name)(*arguments, **named))
    assert raised != "fine"
    assert outcome(lambda: ops.explain(name, *arguments, **named)) == raised


@pytest.mark.parametrize("strategy", [None, *ops.strategies()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_runs_is_explained(name, autocast, dtype, strategy, monkeypatch):
    """Of every forced strategy, or of the choice; under autocast the dtypes of the tensors may differ."""
    ran = []
    for known, entry in list(OPS[name].strategies.items()):
        seen = replace(entry, run=lambda *a, n=known, run=entry.run: (ran.append(n), run(*a))[1])
        monkeypatch.setitem(OPS[name].strategies, known, seen)
    arguments, named = call(name)
    arguments = tuple(t.to(dtype) for t in arguments)
    if name == "mixed_conv":
        named["coeffs"] = named["coeffs"].to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), ops.strategy(strategy):
        raised = outcome(lambda: getattr(ops, name)(*arguments, **named))
        assert outcome(lambda: ops.explain(name, *arguments, **named)) == raised
        assert (raised == "fine") == bool(ran)
        assert raised != "fine" or [ops.explain(name, *arguments, **named).chosen] == ran


@pytest.mark.parametrize("name", WRONG)
def test_a_bias_and_a_gradient_count_where_they_count(name):
    """The native kernels take float32, whichever tensor is of another dtype; and the plan is for training or not."""
    arguments, named = call(name)
    assert "forward, cpu" in ops.explain(name, *arguments, **named).problem
    for key, value in named.items():
        if isinstance(value, torch.Tensor):
            trained = named | {key: value.clone().requires_grad_()}
            assert "forward and backward" in ops.explain(name, *arguments, **trained).problem


@pytest.mark.parametrize("name", WRONG)
def test_no_samples(name):
    """A forced strategy that can't run is an error for no samples too, as it is for some."""
    x, other = torch.randn(0, C, S), {"bank": torch.randn(K, O, C, 3), "coeffs": Coefficients(kernel=torch.rand(0, K))}
    if name != "mixed_conv":
        other = {"weight": torch.randn(0, 2, 3, S) if name == "pixel_conv" else torch.randn(0, O, C, 3)}
    _, named = call(name, **other)
    for strategy in (None, *ops.strategies()):
        with ops.strategy(strategy):
            raised = outcome(lambda: getattr(ops, name)(x, **named))
            assert outcome(lambda: ops.explain(name, x, **named)) == raised
            holds = strategy is None or strategy in OPS[name].strategies
            if strategy not in ("triton", "deferred") and (strategy != "native" or native.available() is None):
                assert raised == "fine" if holds else raised.startswith("StrategyError")


def test_arguments_that_the_op_does_not_have():
    arguments, named = call("pixel_conv")
    with pytest.raises(ConfigError, match=r"pixel_conv takes x, weight, .*got an unexpected keyword argument 'bias'"):
        ops.explain(ops.pixel_conv, *arguments, **named, bias=torch.randn(C))


@pytest.mark.parametrize(("isa", "told"), [("neon", True), ("avx2", False), ("avx512_bf16", False)])
def test_where_estimates_come_from_is_said(isa, told, monkeypatch):
    """No table is of NEON: AVX2's takes its place, and the explanation says so."""
    monkeypatch.setattr(native, "isa", lambda: isa)
    monkeypatch.setattr(native, "available", lambda: None)
    cost.fitted.cache_clear()
    try:
        arguments, named = call("mixed_conv")
        source = ops.explain("mixed_conv", *arguments, **named).source
    finally:
        cost.fitted.cache_clear()
    assert source.startswith("estimated, fitted on ") and ("(avx512" if "512" in isa else "(avx2)") in source
    assert (f"no table is of {isa}: ops.autotune() or convary bench fit measure here" in source) == told


@pytest.mark.parametrize(
    ("B", "experts", "kernel", "groups", "chosen"),
    [(16, 4, 3, 1, "outputs"), (16, 8, 3, 1, "grouped"), (1, 4, 3, 1, "grouped"), (16, 4, 1, 1, "bmm"),
     (16, 4, 3, 64, "grouped")],
)  # fmt: skip
def test_a_gpu_without_a_table_has_nominal_figures(B, experts, kernel, groups, chosen):
    """Dense products first: batched GEMM for 1x1, K outputs for small banks; one image is an ordinary convolution."""
    with FakeTensorMode():
        x = torch.randn(B, 64, 14, 14, device="cuda:0", dtype=torch.bfloat16)
        bank = torch.randn(experts, 64, 64 // groups, kernel, kernel, device="cuda:0", dtype=torch.bfloat16)
        coeffs = Coefficients(kernel=torch.rand(B, experts, device="cuda:0", dtype=torch.bfloat16))
        explained = ops.explain("mixed_conv", x, bank, coeffs, groups=groups, padding=kernel // 2)
    assert explained.chosen == chosen
    assert "nominal figures, not measured on a cuda:0 device" in explained.source
