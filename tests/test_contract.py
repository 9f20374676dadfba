# SPDX-License-Identifier: Apache-2.0
"""The contract that every method gets free, over ``METHODS``: docs/architecture.md, "To add a method"."""

import copy
import io
import os
import pickle
import warnings
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import convary as cv
from convary import METHODS
from convary.nn.modes import shapes_only
from convary.ops import mixed, reference
from tests.variants import CONVS, RANKS, SIZE, VARIANTS, excite

IDS = [f"{c.name}{i}" for i, c in enumerate(VARIANTS)]
every_method = pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=IDS)
every_rank = pytest.mark.parametrize("rank", RANKS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cv.TemperatureWarning)
        yield


def build(config, rank, C=4, O=6, k=3, **geometry):
    static = CONVS[rank](C, O, k, **geometry)
    return config.build(static), static


@st.composite
def geometries(draw, rank: int):
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    C = groups * draw(st.integers(1, 2))
    O = groups * draw(st.integers(1, 3))
    axis = st.tuples(*[st.integers(1, 3)] * rank)
    k, stride, dilation = draw(axis), draw(axis), draw(st.tuples(*[st.integers(1, 2)] * rank))
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 2)] * rank), st.sampled_from(["same", "valid"])))
    if padding == "same":
        stride = (1,) * rank
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    size = draw(st.tuples(*[st.integers(5, 8)] * rank))
    if rank == 3 and mode == "reflect" and isinstance(padding, tuple):
        mode = "replicate"
    return {
        "C": C, "O": O, "k": k, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "padding_mode": mode, "bias": draw(st.booleans()),
    }, size  # fmt: skip


def over_geometries(rank: int, check) -> None:
    """Run a check over geometries, others for every test: without a seed, Hypothesis gives the same ones to all."""
    name = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
    drawn = seed(zlib.crc32(name.encode()))(given(geometries(rank))(check))
    settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))(drawn)()


@every_variant
@every_rank
def test_takes_every_geometry_and_upcycles_exactly(config, rank):
    """Output equal to the static layer's, shape included, over all of nn.ConvNd's arguments."""
    over_geometries(rank, lambda drawn: takes_and_upcycles(config, rank, *drawn))


def takes_and_upcycles(config, rank, geometry, size):
    layer, static = build(config, rank, **geometry)
    x = torch.randn(2, geometry["C"], *size)
    excite(layer)
    with torch.no_grad():
        shape = layer(x).shape
    layer.load_static(static.weight, static.bias, noise=0.1)
    for mode in (False, True):
        layer.train(mode)
        want = static(x)
        assert layer(x).shape == want.shape == shape
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=2e-6)


@every_variant
@every_rank
def test_equals_the_reference_under_every_strategy(config, rank):
    over_geometries(rank, lambda drawn: equals_the_reference(config, rank, *drawn))


def equals_the_reference(config, rank, geometry, size):
    layer, _ = build(config, rank, **geometry | {"padding_mode": "zeros"})
    layer = excite(layer).double().eval()
    x = torch.randn(3, geometry["C"], *size, dtype=torch.float64)
    coeffs = layer.coefficients(x)
    x_padded, resolved = cv.ops.geometry.resolve(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    where = {"stride": resolved.stride, "padding": resolved.padding, "dilation": resolved.dilation}
    if isinstance(coeffs, cv.Coefficients):
        want = reference.mixed_conv(x_padded, layer.weight, coeffs, layer.bias, **where, groups=layer.groups)
    else:  # kernels made otherwise, perhaps dense ones
        kernels = layer.kernels(coeffs)
        groups = layer.in_channels // kernels.shape[2]
        want = reference.sample_conv(x_padded, kernels, layer.biases(coeffs), **where, groups=groups)
    ran = 0
    for name in (None, *mixed.STRATEGIES):
        try:
            with cv.ops.strategy(name):
                got = layer(x)
        except cv.StrategyError:
            continue
        ran += 1
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert ran >= 3  # the automatic choice, and at least two by name


@every_variant
@every_rank
def test_gradcheck(config, rank):
    layer, _ = build(config, rank, C=2, O=2, k=2, groups=1 + VARIANTS.index(config) % 2)
    layer = excite(layer).double().eval()
    x = torch.randn(2, 2, *(3,) * rank, dtype=torch.float64, requires_grad=True)
    names = [n for n, p in layer.named_parameters()]
    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *params), atol=1e-6, fast_mode=True)  # along random directions


def no_constant_weights(config, coeffs) -> str | None:
    """Why a layer with these coefficients is no mixture of the outputs of ordinary convolutions."""
    if not config.constant_weights:
        return "sample_conv has no such strategy"
    factors = coeffs.factors()
    own = [axis for axis in ("channel", "tap") if axis in factors and coeffs.shared(axis) is None]
    return "act inside the kernel" if own else None


@every_variant
@pytest.mark.parametrize("strategy", [None, *(name for name in mixed.STRATEGIES if name not in ("triton", "deferred"))])
def test_samples_are_independent_bit_for_bit(config, strategy):
    layer, _ = build(config, 2, C=16, O=24, padding=1)
    excite(layer).eval()
    x = torch.randn(5, 16, 9, 9)
    changed = x.clone()
    changed[2] = torch.randn(16, 9, 9) * 7
    axes = layer.coefficients(x)
    if strategy == "outputs" and (reason := no_constant_weights(config, axes)):
        with pytest.raises(cv.StrategyError, match=reason), cv.ops.strategy(strategy):
            layer(x)
        return
    with cv.ops.strategy(strategy), torch.no_grad():
        a, b = layer(x), layer(changed)
    keep = [0, 1, 3, 4]
    assert torch.equal(a[keep], b[keep])
    assert not torch.equal(a[2], b[2])


@every_variant
def test_samples_get_their_own_kernels(config):
    """Each output equals the layer on that sample alone: nothing is averaged over the batch."""
    layer, _ = build(config, 2, padding=1)
    excite(layer).eval()
    x = torch.randn(4, 4, 6, 6)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(layer(x), alone, rtol=1e-4, atol=1e-5)


@every_variant
@pytest.mark.parametrize("temperature", [1.0, 7.3, 30.0, 34.0])
def test_upcycling_holds_at_every_temperature(config, temperature):
    layer, static = build(config, 2, padding=1)
    layer.load_static(static.weight, static.bias, noise=0.5)
    static_at = layer.router.first_temperature
    if layer.router.temperature is not None:
        cv.set_temperature(layer, min(temperature, static_at) if static_at == 1 else temperature)
    x = torch.randn(3, 4, 6, 6) * 10
    torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-5)
    if layer.num_experts > 1:
        assert layer.weight.std(0).max() > 0  # experts differ, so they can specialise
    layer(x).square().sum().backward()
    last = [p.grad for n, p in layer.router.named_parameters() if n.startswith(("heads", "linear"))]
    learns = any(g.abs().max() > 0 for g in last)
    assert learns == (static_at > 1)  # from the first step; KernelWarehouse from the second, when its tau is below 1


@every_variant
@every_rank
@pytest.mark.parametrize("way", ["itself", "apply", "modules"])
def test_starts_anew_whatever_is_in_memory(config, rank, way):
    """As ``to_empty`` leaves a network that was built on the meta device, or a fold of a cross-validation a layer."""
    fresh, _ = build(config, rank, C=16, O=32)
    with torch.device("meta"):
        layer, _ = build(config, rank, C=16, O=32)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*layer.parameters(), *layer.buffers()]:
            tensor.fill_(77)
    resettable = [module for module in layer.modules() if hasattr(module, "reset_parameters")]
    if way == "itself":
        layer.reset_parameters()
    for module in {"itself": [], "apply": resettable[::-1], "modules": resettable}[way]:
        module.reset_parameters()
    assert all(map(torch.equal, layer.buffers(), fresh.buffers()))  # settings, and running statistics
    linear = {name for name, module in layer.router.named_modules() if isinstance(module, nn.Linear)}
    for (name, got), want in zip(layer.named_parameters(), fresh.parameters(), strict=True):
        assert not (got == 77).any(), name
        if way == "modules" and name.removeprefix("router.").rpartition(".")[0] in linear:
            continue  # the linear layers come last, and start like nn.Linear
        if want.numel() == 1 or want.std() == 0:
            assert torch.equal(got, want), name
        elif want.numel() >= 200:
            assert 0.7 < got.std() / want.std() < 1.4, name


@every_variant
def test_state_dict_pickle_deepcopy_and_json(config):
    layer, _ = build(config, 2, padding=1)
    excite(layer).eval()
    x = torch.randn(2, 4, 6, 6)
    want = layer(x)
    other, _ = build(config, 2, padding=1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other.eval(), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(twin(x), want)
    assert cv.config_from_json(config.to_json()) == config


@pytest.mark.support("compile")
@every_method
def test_compiles_without_graph_breaks_or_recompiles(config):
    layer, _ = build(config, 2, C=8, O=8, padding=1)
    excite(layer)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # What backends make of the graph is asked of whole networks, tests/test_fits.py.
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    annealed = layer.router.temperature is not None
    annealing = cv.anneal(layer, steps=3) if annealed else None
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (4, 7, 3, 12):
            x = torch.randn(batch, 8, 6, 6)
            torch.testing.assert_close(compiled(x), copy.deepcopy(layer)(x), rtol=1e-4, atol=1e-5)
            if annealing is not None:
                annealing.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.support("export")
@every_method
@pytest.mark.parametrize("rank", [2, pytest.param(3, marks=pytest.mark.slow)])  # one axis: tests/test_export.py
def test_exports_with_dynamic_batch_and_size(config, rank):
    layer, _ = build(config, rank, padding=1)
    excite(layer).eval()
    dims = {i: torch.export.Dim.DYNAMIC for i in (0, *range(2, rank + 2))}
    program = torch.export.export(layer, (torch.randn(3, 4, *SIZE[rank]),), dynamic_shapes=(dims,))
    module = program.module()
    for batch, grow in ((1, 0), (5, 3)):
        x = torch.randn(batch, 4, *(s + grow for s in SIZE[rank]))
        torch.testing.assert_close(module(x), layer(x), rtol=1e-4, atol=1e-5)


@every_variant
@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm"])
def test_autocast_bf16(config, strategy):
    layer, _ = build(config, 2, C=8, O=8, padding=1)
    excite(layer)
    x = torch.randn(3, 8, 6, 6)
    seen = []
    layer.router.register_forward_hook(lambda m, a, out: seen.extend(out.factors().values()))
    want = layer.eval()(x)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16), cv.ops.strategy(strategy):
        got = layer(x)
        layer(x.bfloat16()).float().sum().backward()
    assert got.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in seen)
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


@every_variant
@every_rank
def test_memory_formats_and_strided_input(config, rank):
    layer, _ = build(config, rank, padding=1)
    excite(layer).eval()
    x = torch.randn(2, 4, *SIZE[rank])
    want = layer(x)
    if rank == 2:
        torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), want, rtol=1e-4, atol=1e-5)
        twin = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        torch.testing.assert_close(twin(x.to(memory_format=torch.channels_last)), want, rtol=1e-4, atol=1e-5)
    strided = torch.randn(2, 8, *SIZE[rank])
    strided[:, ::2] = x
    torch.testing.assert_close(layer(strided[:, ::2]), want, rtol=1e-4, atol=1e-5)


@every_variant
@every_rank
def test_empty_batch_and_batch_of_one_in_training(config, rank):
    layer, static = build(config, rank, padding=1, stride=2)
    excite(layer).train()
    for batch in (0, 1):
        x = torch.randn(batch, 4, *SIZE[rank], requires_grad=True)
        y = layer(x)
        assert y.shape == static(x).shape
        y.sum().backward()
        assert x.grad.isfinite().all()
        assert layer.weight.grad.isfinite().all()
    assert all(b.isfinite().all() for b in layer.buffers())


@every_variant
@pytest.mark.parametrize("autocast", [False, True])
def test_empty_batch_in_bfloat16(config, autocast):
    layer, static = build(config, 2, padding=1, stride=2)
    excite(layer)
    x = torch.randn(0, 4, *SIZE[2], dtype=torch.bfloat16)
    if not autocast:
        layer, static = layer.bfloat16(), static.bfloat16()
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer.train(training)(x)
            assert y.dtype is torch.bfloat16 and y.shape == static(x).shape


@every_method
@every_rank
def test_single_sample_without_batch_axis(config, rank):
    layer, static = build(config, rank, padding=1)
    x = torch.randn(4, *SIZE[rank])
    assert layer(x).shape == static(x).shape
    torch.testing.assert_close(layer.eval()(x), layer(x[None])[0])


@every_method
def test_half_precision_keeps_the_temperature(config):
    layer, _ = build(config, 2)
    hot = 0.999 * layer.router.first_temperature
    if layer.router.temperature is not None:
        cv.set_temperature(layer, hot)
    layer = layer.to(torch.bfloat16)
    assert layer(torch.randn(2, 4, 6, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    if layer.router.temperature is not None:
        assert layer.router.temperature == torch.tensor(hot)


@every_method
def test_double_backward(config):
    layer, _ = build(config, 2, C=2, O=2)
    excite(layer).double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,), atol=1e-5)


@pytest.mark.support("trace")
@every_method
def test_jit_trace_holds_at_another_batch(config):
    layer, _ = build(config, 2, padding=1)
    excite(layer).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, torch.randn(2, 4, 6, 6), check_trace=False)
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


@every_method
def test_states_where_the_paper_puts_it(config):
    from torchvision.models import mobilenet_v2, resnet18

    for make in (mobilenet_v2, resnet18):
        with shapes_only():
            plan = cv.plan(make(), config)
        assert 0 < len(plan.converted) < len(plan.rows)
    assert config.citation and config.title
