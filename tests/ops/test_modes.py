# SPDX-License-Identifier: Apache-2.0
"""Every op in every mode of torch: the batch decides neither the dtype of the answer, nor whether there is one."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from convary import DtypeError, ShapeError, StrategyError, ops
from convary.ops import Coefficients, native, reference
from convary.ops.native import mix as native_mix

GEOMETRY = {"stride": (2,), "padding": (1,), "dilation": (1,), "groups": 2}
WINDOW = {
    "kernel_size": (3,), "stride": (1,), "padding": (1,), "dilation": (1,), "border": "zeros",
    "group_order": "contiguous", "scale_factor": 1,
}  # fmt: skip
K, O, C, T, L = 3, 4, 6, 3, 7
FACTORS = {"kernel": (K,), "filter": (1, O), "channel": (1, C), "tap": (1, T)}
MIXED = {
    "kernel": ("kernel",), "shared": tuple(FACTORS), "filter": ("filter",), "own": ("kernel", "filter", "channel"),
}  # fmt: skip


def _inputs(B: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(B)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def _factors(kind: str, values: tuple[Tensor, ...]) -> Coefficients:
    return Coefficients(**dict(zip(MIXED[kind], values, strict=True)))


def _shapes(kind: str, B: int) -> list[tuple[int, ...]]:
    own = kind in ("filter", "own")  # factors that differ between kernels
    return [(B, *((K, FACTORS[axis][1]) if own and axis != "kernel" else FACTORS[axis])) for axis in MIXED[kind]]


def _mix(op, kind):
    return lambda bank, *values: op(bank, _factors(kind, values))


def _mixed(op, kind):
    return lambda x, bank, *values: op(x, bank, _factors(kind, values), **GEOMETRY)


def case(name: str, B: int, dtype: torch.dtype):
    """The op, its reference and tensors for them; name is the op and the factors that there are."""
    op, _, kind = name.partition("-")
    bank, x = (K, O, C // 2, T), (B, C, L)
    if op == "mix_kernels":
        return (
            _mix(ops.mix_kernels, kind),
            _mix(reference.mix_kernels, kind),
            _inputs(B, dtype, bank, *_shapes(kind, B)),
        )
    if op == "mixed_conv":
        inputs = _inputs(B, dtype, x, bank, *_shapes(kind, B))
        return _mixed(ops.mixed_conv, kind), _mixed(reference.mixed_conv, kind), inputs
    if op == "sample_conv":
        N, index = (2 * B, torch.arange(2 * B) // 2) if kind == "index" else (B, None)
        functions = (ops.sample_conv, reference.sample_conv)
        run, truth = (lambda x, w, b, f=f: f(x, w, b, index=index, **GEOMETRY) for f in functions)
        return run, truth, _inputs(B, dtype, x, (N, *bank[1:]), (O,))
    run, truth = (lambda x, w, f=f: f(x, w, **WINDOW) for f in (ops.pixel_conv, reference.pixel_conv))
    return run, truth, _inputs(B, dtype, x, (B, 2, T, L))


CASES = [f"{op}-{kind}" for op in ("mix_kernels", "mixed_conv") for kind in MIXED]
CASES += ["sample_conv", "sample_conv-index", "pixel_conv"]
every_case = pytest.mark.parametrize("name", CASES)
every_batch = pytest.mark.parametrize("B", [0, 1, 3])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert got.shape == want.shape
    if want.numel():
        assert (got.double() - want).abs().max() <= error * want.abs().max()


def exact(truth, inputs):
    return truth(*(t.double() for t in inputs))


@every_case
@every_dtype
def test_plain_calls(name, dtype):
    for B in (0, 1, 3):
        run, truth, inputs = case(name, B, dtype)
        y = run(*inputs)
        assert y.dtype is dtype, B
        close(y, exact(truth, inputs), dtype)


@every_case
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_answers_one_dtype_for_every_batch(name, low, dtype):
    found = {}
    for B in (0, 1, 3):
        run, truth, inputs = case(name, B, dtype)
        with torch.autocast("cpu", low):
            y = run(*inputs)
        found[B] = y.dtype
        close(y, exact(truth, inputs), torch.bfloat16)
    assert len(set(found.values())) == 1, found


@every_case
@every_batch
@every_dtype
def test_vmap(name, B, dtype):
    run, truth, inputs = case(name, B, dtype)
    stacked = tuple(torch.stack([t, 2 * t]) for t in inputs)
    y = vmap(run)(*stacked)
    assert y.dtype is dtype
    for i in range(2):
        close(y[i], exact(truth, [t[i] for t in stacked]), dtype)


@every_case
@every_batch
@every_dtype
def test_forward_mode(name, B, dtype):
    run, truth, inputs = case(name, B, dtype)
    tangents = tuple(torch.ones_like(t) / 4 for t in inputs)
    y, slope = jvp(run, inputs, tangents)
    wide = tuple(t.double() for t in inputs), tuple(t.double() for t in tangents)
    value, want = jvp(truth, *wide)
    assert y.dtype is slope.dtype is dtype
    close(y, value, dtype)
    close(slope, want, dtype)
    with torch.autograd.forward_ad.dual_level():
        made = [torch.autograd.forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents, strict=True)]
        close(torch.autograd.forward_ad.unpack_dual(run(*made)).tangent, want, dtype)


@every_case
@every_batch
@every_dtype
def test_torch_func_grad(name, B, dtype):
    run, truth, inputs = case(name, B, dtype)
    every = tuple(range(len(inputs)))
    got = grad(lambda *t: run(*t).sin().sum(), argnums=every)(*inputs)
    want = grad(lambda *t: truth(*t).sin().sum(), argnums=every)(*(t.double() for t in inputs))
    for a, b in zip(got, want, strict=True):
        assert a.dtype is dtype
        if dtype is not torch.bfloat16:  # the sine's argument is rounded, which is not ours
            close(a, b, dtype)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad], ids=["recording", "no_grad"])
@pytest.mark.parametrize("strategy", ["bmm", "grouped", "loop", "outputs", "taps", "native", None])
@pytest.mark.skipif(native.available() is not None, reason="without the native library nothing can take it")
def test_a_forced_strategy_holds_where_kernels_are_mixed(strategy, mode, monkeypatch):
    calls = []
    true = native_mix.mix_kernels
    monkeypatch.setattr(native_mix, "mix_kernels", lambda *tensors: calls.append(1) or true(*tensors))
    run, truth, inputs = case("mix_kernels-kernel", 3, torch.float32)
    with ops.strategy(strategy), mode():
        y = run(*inputs)
    assert bool(calls) == (strategy in ("native", None))
    close(y, exact(truth, inputs), torch.float32)


@every_batch
@every_case
def test_forced_strategies_agree(name, B):
    run, truth, inputs = case(name, B, torch.float32)
    held = 0
    for strategy in ops.strategies():
        with ops.strategy(strategy), contextlib.suppress(StrategyError):
            y = run(*inputs)
            held += 1
            assert y.dtype is torch.float32
            close(y, exact(truth, inputs), torch.float32)
    assert held >= (len(ops.strategies()) if name.startswith("mix_kernels") else 1)


OPERATORS = {
    "mixed_conv": (lambda x, w, b: (x, w, x.new_ones(3, 4), None, None, None, b, [1], [0], [1], 1), (4, 4, 6, 3)),
    "sample_conv": (lambda x, w, b: (x, w, None, b, [1], [0], [1], 1), (3, 4, 6, 3)),
    "pixel_conv": (lambda x, w, b: (x, w, [3], [1], [0], [1], "zeros", "contiguous", 1), (3, 2, 3, 5)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("at", range(3))
def test_operators_refuse_other_dtypes_under_autocast_too(name, at):
    """The ops take them there; the kernels would read past the end."""
    spell, weight = OPERATORS[name]
    tensors = [torch.randn(3, 6, 7), torch.randn(weight), torch.randn(4)]
    tensors[at] = tensors[at].bfloat16()
    operator = getattr(torch.ops.convary, name)
    with torch.autocast("cpu", torch.bfloat16):
        if name == "pixel_conv" and at == 2:  # which has no bias
            assert operator(*spell(*tensors)).dtype is torch.float32
        else:
            with pytest.raises(DtypeError):
                operator(*spell(*tensors))


def test_a_call_with_an_index_does_not_let_one_without_pass():
    """Shapes that were checked once are not checked again; an index is a difference."""
    x, weight = torch.randn(2, 6, 7), torch.randn(5, 4, 6, 3)
    for _ in range(2):
        ops.sample_conv(x, weight, index=torch.tensor([0, 1, 1, 0, 1]))
    with pytest.raises(ShapeError, match="weight has 5 samples but x has a batch of 2"):
        ops.sample_conv(x, weight)
    with pytest.raises(ShapeError, match="index goes from 0 to 2"):
        ops.sample_conv(x, weight, index=torch.tensor([0, 1, 1, 0, 2]))
