# SPDX-License-Identifier: Apache-2.0
"""One dynamic convolution against the static one of its size, and against what released code does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convary import ops
from convary.bench.machine import load
from convary.bench.models import DTYPES
from convary.bench.timing import clock_of, device_here, interleave
from convary.ops import Coefficients, reference

EXPERTS = 4
CPU = torch.device("cpu")
CHECKED = 2  # samples compared with the reference: float64 is slow
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2}
TF32_TOLERANCE = 2e-3  # what an accelerator may make of float32
Grads = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """A convolution that keeps the size of its maps: odd kernel, stride 1."""

    B: int
    C: int
    O: int
    size: int
    kernel: int
    groups: int = 1

    def __str__(self) -> str:
        channels = f"{self.C} depthwise" if self.groups == self.C else f"{self.C}->{self.O}"
        return f"{self.B}, {channels}, {self.size}, {self.kernel}"


SHAPES = (
    Shape(32, 64, 64, 56, 3), Shape(32, 128, 128, 28, 3), Shape(32, 256, 256, 14, 3), Shape(32, 512, 512, 7, 3),
    Shape(1, 512, 512, 7, 3), Shape(32, 384, 64, 14, 1), Shape(32, 960, 320, 7, 1), Shape(32, 24, 144, 56, 1),
    Shape(32, 960, 960, 7, 3, 960),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """What to measure.

    Attributes:
        threads: Numbers of threads, one after the other.
        modes: "inference" is the forward pass, "training" forward and backward.
        factors: "kernel" as in CondConv and DyConv, or "all" four as in ODConv.
        layouts: Of the features.
        against: "static" is ``F.conv2d`` with one kernel; "grouped" is what released code does, mixing the kernels of
            all samples and convolving with B groups.
        strategy: Forces a strategy; None is the automatic choice.
        dtypes: "float32" or "bf16", of all tensors.
        device: What torch calls it.
        seconds: Per line.
    """

    threads: tuple[int, ...] = (1, 2)
    modes: tuple[str, ...] = ("inference", "training")
    factors: tuple[str, ...] = ("kernel", "all")
    layouts: tuple[str, ...] = ("contiguous",)
    against: str = "static"
    strategy: str | None = None
    dtypes: tuple[str, ...] = ("float32",)
    device: str = "cpu"
    seconds: float = 1.0


class Case:
    """The tensors of one line, and the convolutions that are compared."""

    def __init__(
        self, shape: Shape, mode: str, factors: str, layout: str, strategy: str | None, dtype: str = "float32",
        device: torch.device = CPU,
    ) -> None:  # fmt: skip
        """Draw the tensors, always the same."""
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device)

        B, C, O, S, k, G = shape.B, shape.C, shape.O, shape.size, shape.kernel, shape.groups
        self.training, self.strategy = mode == "training", strategy
        self.x, self.grad = draw(B, C, S, S), draw(B, O, S, S)
        self.bank = draw(EXPERTS, O, C // G, k, k) / (C // G * k * k) ** 0.5
        self.weight = self.bank[0].clone()
        if layout == "channels_last":
            self.x, self.weight, self.grad = (
                t.contiguous(memory_format=torch.channels_last) for t in (self.x, self.weight, self.grad)
            )
        self.factors = {"kernel": draw(B, EXPERTS).softmax(1)}
        if factors == "all":  # as ODConv has them: a depthwise layer's filter and a 1x1's tap are left out
            self.factors["channel"] = draw(B, 1, C).sigmoid()
            if G != C:
                self.factors["filter"] = draw(B, 1, O).sigmoid()
            if k > 1:
                self.factors["tap"] = draw(B, 1, k * k).sigmoid()
        self.geometry: dict[str, Any] = {"padding": k // 2, "groups": G}
        self.x, self.grad, self.bank, self.weight = (
            t.to(DTYPES[dtype]) for t in (self.x, self.grad, self.bank, self.weight)
        )
        self.factors = {name: factor.to(DTYPES[dtype]) for name, factor in self.factors.items()}
        for leaf in (self.weight, *self._leaves()):
            leaf.requires_grad_(self.training)

    def _leaves(self) -> Grads:
        return (self.x, self.bank, *self.factors.values())

    def _gradients(self, y: Tensor, grad: Tensor, leaves: Grads) -> Grads:
        return torch.autograd.grad(y, leaves, grad) if self.training else ()

    def static(self) -> Grads:
        """The ordinary convolution, and its gradients in training."""
        y = F.conv2d(self.x, self.weight, **self.geometry)
        return y, *self._gradients(y, self.grad, (self.x, self.weight))

    def dynamic(self, strategy: str | None = None, samples: int | None = None) -> Grads:
        """The dynamic one for the first samples, or all; the gradients of x, bank and factors in training."""
        x, grad = self.x[:samples], self.grad[:samples]
        factors = {name: factor[:samples] for name, factor in self.factors.items()}
        with ops.strategy(strategy or self.strategy):
            y = ops.mixed_conv(x, self.bank, Coefficients(**factors), **self.geometry)
        return y, *self._gradients(y, grad, (x, self.bank, *factors.values()))

    def truth(self) -> Grads:
        """What ``dynamic`` gives for the samples that are checked, by the reference in float64."""
        kept = [self.x[:CHECKED], self.bank, *(f[:CHECKED] for f in self.factors.values())]
        x, bank, *factors = [t.detach().cpu().double().requires_grad_(self.training) for t in kept]
        k = self.geometry["padding"]
        y = reference.mixed_conv(
            x, bank, Coefficients(**dict(zip(self.factors, factors, strict=True))),
            stride=(1, 1), padding=(k, k), dilation=(1, 1), groups=self.geometry["groups"],
        )  # fmt: skip
        return y, *self._gradients(y, self.grad[:CHECKED].cpu().double(), (x, bank, *factors))

    def error(self) -> float:
        """The largest error of y and of every gradient, each relative to its largest value.

        The samples that are checked are computed within the whole batch, and once more alone for the bank's gradient,
        which the other samples add to.
        """
        truth = self.truth()
        alone, whole = self.dynamic(samples=CHECKED), self.dynamic()
        per_sample = (i for i in range(len(truth)) if i != 2)
        pairs = [(whole[i][:CHECKED], truth[i]) for i in per_sample] + list(zip(alone, truth, strict=True))
        return max(
            float((got.detach().cpu() - want.detach()).abs().max() / want.detach().abs().max()) for got, want in pairs
        )

    def chosen(self) -> str:
        """The strategy that runs."""
        with ops.strategy(self.strategy):
            return ops.explain("mixed_conv", self.x, self.bank, Coefficients(**self.factors), **self.geometry).chosen


def measure(config: LayersConfig, shapes: tuple[Shape, ...] = SHAPES) -> Iterator[dict[str, Any]]:
    """One line per number of threads, dtype, mode, layout, factors and shape.

    Yields:
        The line as plain JSON values: what was measured, the error and the fields of ``Timing``; a line whose error is
        above ``TOLERANCE`` of the largest value has no times.

    Raises:
        ConfigError: the device is not here.
    """
    before, device = torch.get_num_threads(), device_here(config.device)
    lines = itertools.product(config.threads, config.dtypes, config.modes, config.layouts, config.factors, shapes)
    try:
        for threads, dtype, mode, layout, factors, shape in lines:
            torch.set_num_threads(threads)
            case = Case(shape, mode, factors, layout, config.strategy, dtype, device)
            what = {
                "layer": str(shape), "dtype": dtype, "mode": mode, "layout": layout, "factors": factors,
                "threads": threads, "strategy": case.chosen(),
            }  # fmt: skip
            yield what | _timed(case, config, device, dtype)
    finally:
        torch.set_num_threads(before)


def _timed(case: Case, config: LayersConfig, device: torch.device, dtype: str) -> dict[str, Any]:
    error, most = case.error(), TOLERANCE[dtype]
    if not error < (most if device.type == "cpu" else max(most, TF32_TOLERANCE)):
        return {"error": error}
    base = case.static if config.against == "static" else lambda: case.dynamic("grouped")
    timing = interleave(case.dynamic, base, config.seconds, clock_of(device))
    return {"error": error, **vars(timing), "load": load()}
