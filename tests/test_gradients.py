# SPDX-License-Identifier: Apache-2.0
"""The contract of gradients: right in every mode, first and second order, of x, bank and router, for every layer.

The truth is autograd through the plain references of ``ops.reference``, in float64. Each layer's router looks at x, so
what a convolution is made of is connected with each other.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import convary as cv
from convary import METHODS, ops
from convary.nn import recompute
from convary.ops import mixed, pixel, reference, sample
from tests.variants import CONVS, SIZE, VARIANTS, excite

C = 4
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-9}  # of the largest entry
Gradients = dict[str, Tensor]


class Instances(nn.Module):
    """``sample_conv`` with ``index``: three kernels made of the first image, two of the second."""

    def __init__(self):
        super().__init__()
        self.make = nn.Linear(C, 3 * C * 9)

    def forward(self, x: Tensor) -> Tensor:
        index = torch.tensor([0, 0, 1, 0, 1])
        kernels = self.make(x.mean((2, 3)))[index] * torch.arange(1.0, 6.0, dtype=x.dtype)[:, None]
        return ops.sample_conv(x, kernels.reshape(5, 3, C, 3, 3), kernels[:, :3], padding=1, index=index)


class Remade(nn.Module):
    """Kernels per position that are made again for the backward pass."""

    def __init__(self):
        super().__init__()
        self.make = nn.Conv2d(C, 2 * 9, 1)

    def kernels(self, x: Tensor) -> Tensor:
        return self.make(x).sigmoid().reshape(x.shape[0], 2, 9, *x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self.kernels, x, x, kernel_size=3, padding=1)


class Enlarging(nn.Module):
    """``pixel_conv`` of each rank and border, kernels made of x."""

    def __init__(self, rank: int, **options):
        super().__init__()
        self.make = CONVS[rank](C, 3**rank, 1)
        self.options = {"kernel_size": 3, "padding": 1, **options}

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.make(x)
        for axis in range(2, x.ndim):
            kernels = kernels.repeat_interleave(self.options.get("scale_factor", 1), axis)
        return ops.pixel_conv(x, kernels.unsqueeze(1), **self.options)


class Block(nn.Module):
    """A residual block, so that a router can be shared in it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(C, 6, 3, padding=1), nn.Conv2d(6, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).tanh())


class Guided(nn.Module):
    """HDFNet's layer with a guide made of x."""

    def __init__(self):
        super().__init__()
        self.layer = cv.DepthDC(C, 2 * C, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, torch.cat([x, x.sin()], 1))


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its x."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def of_method(config, rank: int) -> Callable[[], nn.Module]:
    return lambda: excite(config.build(CONVS[rank](C, 6, 3, padding=1)))


MADE = {
    "linear": lambda: cv.MixedLinear(C, 6, experts=3),
    "dcd-linear": lambda: cv.DCDLinear(C, 6),
    "warehouse-linear": lambda: cv.KernelWarehouseLinear(C, 6, norm="layer", cell_ratio=2, out_ratio=1 / 2),
    "block-router": lambda: cv.convert(
        nn.Sequential(Block()), cv.CondConv(experts=3, router="block"), cv.where.all(), blocks=(Block,)
    ),
    "involution": lambda: cv.Involution2d(C, 3, group_channels=2, reduction=2),
    "carafe": lambda: cv.CARAFE(C, compressed_channels=4),
    "dfn": lambda: cv.DFNConv2d(C, 3, 3, padding=1, dynamic_bias=True, hidden=(5,)),
    "dfn-local": lambda: cv.DFNLocalFilter2d(C, 3, dynamic_bias=True, hidden=(5,)),
    "dfn-grouped": lambda: cv.DFNLocalFilter2d(C, 3, grouping=True, border="replicate", hidden=(5,)),
    "dmnet": lambda: cv.DynamicConvModule(C, 3, 3),
    "hdfnet": lambda: Guided(),
    "instances": Instances,
    "recompute": Remade,
    "enlarging": lambda: Enlarging(2, scale_factor=2),
    "pixel-1d": lambda: Enlarging(1, border="reflect"),
    "pixel-3d": lambda: Enlarging(3, border="circular"),
    "pixel-clamp": lambda: Enlarging(2, border="clamp", dilation=2, padding=2),
}
SHAPES = {
    "linear": (3, C),
    "dcd-linear": (3, C),
    "warehouse-linear": (3, C),
    "pixel-1d": (2, C, 9),
    "pixel-3d": (2, C, 5, 4, 6),
}
CASES = [
    *(Case(f"{c.name}{i}-{r}d", of_method(c, r), (3, C, *SIZE[r])) for i, c in enumerate(VARIANTS) for r in CONVS),
    *(Case(name, make, SHAPES.get(name, (2, C, 6, 7))) for name, make in MADE.items()),
]
LAYERS = [Case(c.name, of_method(c(), 2), (3, C, *SIZE[2])) for c in METHODS] + CASES[-len(MADE) :]
FAST_TO_COMPILE = ("odconv", "instances", "recompute", "enlarging")  # the others are left to the slow tests
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cv.TemperatureWarning)
        yield


@contextlib.contextmanager
def plain(monkeypatch) -> Iterator[None]:
    """Every op is its reference, whatever the strategy."""

    def mixed_run(x, bank, coeffs, bias, geometry):
        return reference.mixed_conv(x, bank, coeffs, bias, **geometry._asdict())

    def sample_run(x, weight, bias, index, geometry):
        return reference.sample_conv(x, weight, bias, index=index, **geometry._asdict())

    def pixel_run(x, weight, window):
        return reference.pixel_conv(x, weight, **window._asdict())

    with monkeypatch.context() as patch:
        for module, run in ((mixed, mixed_run), (sample, sample_run), (pixel, pixel_run)):
            for name, strategy in module.STRATEGIES.items():
                patch.setitem(module.STRATEGIES, name, replace(strategy, run=run))
        yield


def inputs(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """The layer, and an x that is itself computed, as inside a network."""
    torch.manual_seed(1)
    layer, x = case.make().eval(), torch.randn(case.shape)
    return layer.to(dtype), x.to(dtype).requires_grad_()


def leaves(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"x": x, **{name: p for name, p in layer.named_parameters() if p.requires_grad}}


def gradients(y: Tensor, of: dict[str, Tensor], **options) -> Gradients:
    found = torch.autograd.grad(y.square().sum(), list(of.values()), allow_unused=True, **options)
    return {name: g for name, g in zip(of, found, strict=True) if g is not None}


def second(first: Gradients, of: dict[str, Tensor]) -> Gradients:
    """Of the gradients' square sum: what a gradient penalty differentiates."""
    total = sum(g.square().sum() for g in first.values())
    found = torch.autograd.grad(total, list(of.values()), allow_unused=True)
    return {name: g for name, g in zip(of, found, strict=True) if g is not None}


def both_orders(layer: nn.Module, x: Tensor) -> tuple[Gradients, Gradients, Gradients]:
    """First-order gradients without and with ``create_graph``, and second-order ones."""
    of = leaves(layer, x)
    first = gradients(layer(x), of)
    kept = gradients(layer(x), of, create_graph=True)
    return first, {name: g.detach() for name, g in kept.items()}, second(kept, of)


def assert_close(got: Gradients, want: Gradients, dtype: torch.dtype) -> None:
    assert got.keys() == want.keys()
    for name, right in want.items():
        scale = right.abs().max().item()
        torch.testing.assert_close(
            got[name].double(), right, rtol=0, atol=TOLERANCE[dtype] * scale + 1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


RIGHT: dict[str, tuple[Gradients, Gradients]] = {}  # by case: of both orders; the dtypes of a case follow each other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_case
def test_both_orders_equal_the_reference(case, dtype, monkeypatch):
    if case.name not in RIGHT:
        with plain(monkeypatch):
            want, _, want_second = both_orders(*inputs(case, torch.float64))
        RIGHT[case.name] = want, want_second
    want, want_second = RIGHT[case.name]
    layer, x = inputs(case, dtype)
    ran = 0
    for name in (None, *ops.strategies()):
        try:
            with ops.strategy(name):
                first, kept, again = both_orders(layer, x)
        except cv.StrategyError:
            continue
        ran += 1
        assert_close(first, want, dtype)
        assert_close(kept, want, dtype)
        assert_close(again, want_second, dtype)
    assert ran >= 2  # the automatic choice, and one by name


def run_again(layer: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False)


@every_layer
def test_under_gradient_checkpointing(case):
    layer, x = inputs(case)
    of = leaves(layer, x)
    kept = gradients(layer(x), of, create_graph=True)
    want, want_second = {n: g.detach().double() for n, g in kept.items()}, second(kept, of)
    assert_close(gradients(run_again(layer, x), of), want, torch.float32)
    kept = gradients(run_again(layer, x), of, create_graph=True)
    assert_close({n: g.detach() for n, g in kept.items()}, want, torch.float32)
    assert_close(second(kept, of), {n: g.double() for n, g in want_second.items()}, torch.float32)


@every_layer
def test_two_backward_passes_over_one_graph(case):
    layer, x = inputs(case)
    of, y = leaves(layer, x), layer(x)
    passes = [
        gradients(y, of, retain_graph=True), gradients(y, of, create_graph=True), gradients(y, of, retain_graph=True)
    ]  # fmt: skip
    want = {name: g.double() for name, g in passes[0].items()}
    for found in passes[1:]:
        assert_close({name: g.detach() for name, g in found.items()}, want, torch.float32)


@every_layer
def test_changing_what_was_saved_is_an_error(case):
    """As it is for torch's own operations: the gradient would be that of other numbers."""
    layer, x = inputs(case)
    features = x * 1
    y = layer(features)
    with torch.no_grad():
        features.add_(1)
    with pytest.raises(RuntimeError, match="modified"):
        y.square().sum().backward()
    y = layer(x)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.5)
    with pytest.raises(RuntimeError, match="modified"):
        y.square().sum().backward()


@every_layer
def test_hooks_see_each_gradient_once(case):
    layer, x = inputs(case)
    want = gradients(layer(x), leaves(layer, x))
    for create_graph in (False, True):
        features, seen, entered = x * 1, [], []
        features.register_hook(lambda grad, seen=seen: seen.append(grad.detach().double()))
        handle = layer.register_full_backward_hook(lambda m, into, out, entered=entered: entered.append(into[0]))
        layer(features).square().sum().backward(create_graph=create_graph, inputs=[x])
        handle.remove()
        assert len(seen) == len(entered) == 1
        assert_close({"x": x.grad.detach()}, {"x": want["x"].double()}, torch.float32)
        assert_close({"x": want["x"]}, {"x": seen[0]}, torch.float32)
        x.grad = None


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c.name in FAST_TO_COMPILE else pytest.mark.slow, id=c.name) for c in LAYERS],
)
def test_compiled_graphs_have_the_first_order_and_refuse_the_second(case):
    layer, x = inputs(case)
    of = leaves(layer, x)
    want = {name: g.double() for name, g in gradients(layer(x), of).items()}
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    assert_close(gradients(compiled(x), of), want, torch.float32)
    with pytest.raises(RuntimeError, match=r"double backward|create_graph|gradient of their own"):
        second(gradients(compiled(x), of, create_graph=True), of)


@pytest.mark.parametrize("case", LAYERS[: len(METHODS)], ids=lambda case: case.name)
def test_distributed_data_parallel(case, tmp_path):
    """One process of gloo with its hooks on every parameter; with ``create_graph`` torch's reducer refuses."""
    layer, x = inputs(case)
    want = {name: g.double() for name, g in gradients(layer(x), leaves(layer, x)).items()}
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(layer)(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_close({name: leaf.grad for name, leaf in leaves(layer, x).items()}, want, torch.float32)
