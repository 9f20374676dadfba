# SPDX-License-Identifier: Apache-2.0
"""``convary bench fit``: the cost model's rates, fitted to times measured on this machine.

Every shape of a grid is timed under every strategy, interleaved (A B C A B C ...), fastest of the rounds; rates are the
non-negative coefficients that minimise the relative error. The table's shapes are not in the grid: there, the chosen
strategy is compared with the fastest one.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convary import ops
from convary.bench.machine import machine
from convary.bench.models import DTYPES
from convary.bench.timing import DeviceClock
from convary.ops import cost, mixed, pixel, sample
from convary.ops.cost.tables import capability_of
from convary.ops.geometry import Geometry
from convary.ops.pixel.arguments import spell
from convary.ops.problem import Problem, conv_problem

Shape = tuple[Any, ...]

K = 4
CPU = torch.device("cpu")
STRATEGIES = {"mixed_conv": mixed.STRATEGIES, "sample_conv": sample.STRATEGIES, "pixel_conv": pixel.STRATEGIES}
# B, C, O, size, kernel, groups, training: the rows of convary bench layers that have a target.
TABLE = [
    (32, 64, 64, 56, 3, 1, False), (32, 128, 128, 28, 3, 1, False), (32, 256, 256, 14, 3, 1, False),
    (32, 512, 512, 7, 3, 1, False), (1, 512, 512, 7, 3, 1, False), (32, 384, 64, 14, 1, 1, False),
    (32, 960, 320, 7, 1, 1, False), (32, 24, 144, 56, 1, 1, False), (32, 960, 960, 7, 3, 960, False),
    (32, 512, 512, 7, 3, 1, True), (32, 960, 320, 7, 1, 1, True),
]  # fmt: skip


def grid() -> list[Shape]:
    """Shapes around those of MobileNetV2 and ResNet, without the table's own."""
    shapes = []
    for training in (False, True):
        for B in (1, 8, 32):
            dense = [
                (32, 32, 48),
                (48, 96, 28),
                (112, 112, 24),
                (192, 160, 14),
                (320, 256, 12),
                (448, 448, 7),
                (640, 512, 7),
            ]
            shapes += [(B, C, O, S, 3, 1, training) for C, O, S in dense]
            point = [
                (16, 96, 48),
                (32, 192, 28),
                (192, 48, 28),
                (320, 96, 14),
                (96, 576, 14),
                (768, 256, 7),
                (144, 24, 56),
            ]
            shapes += [(B, C, O, S, 1, 1, training) for C, O, S in point]
            depth = [(96, 48), (144, 28), (384, 14), (768, 7)]
            shapes += [(B, C, C, S, 3, C, training) for C, S in depth]
    return [shape for shape in shapes if shape not in TABLE]


def given() -> list[Shape]:
    """Shapes of sample_conv, (..., op), for the rates of strategy native; torch's keep those of mixed_conv."""
    dense = [(32, 32, 48, 3, 1), (112, 112, 24, 3, 1), (320, 256, 12, 3, 1), (448, 448, 7, 3, 1)]
    point = [(8, 8, 128, 1, 1), (8, 1, 128, 1, 1), (16, 96, 48, 1, 1), (192, 48, 28, 1, 1), (320, 96, 14, 1, 1)]
    depth = [(96, 96, 48, 3, 96), (144, 144, 28, 5, 144), (384, 384, 14, 3, 384), (768, 768, 7, 3, 768)]
    return [
        (B, *sizes, training, "sample_conv")
        for training in (False, True)
        for B in (1, 8, 32)
        for sizes in (*dense, *point, *depth)
    ]


def per_position() -> list[Shape]:
    """Shapes of pixel_conv, for a GPU; on CPUs its rates are by hand. B, C, G, size, kernel, 1, training, op."""
    sizes = [(64, 1, 56, 5), (64, 4, 56, 7), (256, 16, 14, 7), (96, 12, 28, 3), (16, 1, 64, 9)]
    shapes = itertools.product((False, True), (1, 16, 64), sizes)
    return [(B, *given, 1, training, "pixel_conv") for training, B, given in shapes]


def problem_of(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
    """The problem of a shape, without its numbers."""
    return replace(case(shape, torch.device("meta"), dtype)[1], device=device)


def case(shape: Shape, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> tuple[tuple, Problem, list]:
    """What a strategy of a shape's op takes, the problem, and the tensors that want gradients."""
    B, C, O, S, k, G, training, *op = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(dtype).requires_grad_(training)

    x = draw(B, C, S, S)
    if device.type != "cpu":  # where channels_last is fast
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_(training)  # type: ignore[call-overload]
    if op == ["pixel_conv"]:
        weight = draw(B, O, k * k, S, S)
        arguments = spell(x, weight, k, 1, k // 2, 1, "zeros", "contiguous", 1)
        return arguments, arguments.problem(training=training, obstacle=None), [x, weight]
    geometry = Geometry((1, 1), (k // 2,) * 2, (1, 1), G)
    if op:
        weight = draw(B, O, C // G, k, k)
        problem = conv_problem(op[0], x, weight, geometry, batch=B, training=training)
        return (x, weight, None, None, geometry), problem, [x, weight]
    bank, kernel = draw(K, O, C // G, k, k), torch.rand(B, K, device=device).softmax(1).to(dtype)
    coeffs = ops.Coefficients(kernel=kernel.requires_grad_(training))
    problem = conv_problem("mixed_conv", x, bank, geometry, batch=B, training=training, coeffs=coeffs)
    return (x, bank, coeffs, None, geometry), problem, [x, bank, kernel]


def measure(
    shape: Shape, budget: float, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """The fastest round of every strategy, interleaved: other work on the machine only adds."""
    arguments, problem, leaves = case(shape, device, dtype)
    table, clock = STRATEGIES[problem.op], DeviceClock(device) if device.type != "cpu" else None

    def once(name: str) -> float:
        def call() -> None:
            y = table[name].run(*arguments)
            if problem.training:
                torch.autograd.grad(y, leaves, grad_outputs=torch.ones_like(y))

        if clock is not None:
            return clock.seconds(call)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    first = {}
    for name in [name for name, entry in table.items() if entry.why_not(problem) is None]:
        with contextlib.suppress(*([RuntimeError] if clock else [])):  # a GPU's memory may not do for one of them
            once(name)
            first[name] = once(name)
    rounds = max(3, min(25, int(budget / sum(first.values()))))
    times = {name: [] for name in first}
    for _ in range(rounds):
        for name in first:
            times[name].append(once(name))
    return {name: min(values) for name, values in times.items()}


def nonnegative(A: torch.Tensor, steps: int = 4000) -> torch.Tensor:
    """Argmin |A w - 1|^2 over w >= 0, by coordinate descent (columns scaled)."""
    scale = A.norm(dim=0).clamp_min(1e-30)
    A = A / scale
    gram, target = A.T @ A, A.sum(0)
    w = torch.zeros(A.shape[1], dtype=A.dtype)
    for step in range(steps):
        i = step % len(w)
        w[i] = ((target[i] - gram[i] @ w + gram[i, i] * w[i]) / gram[i, i].clamp_min(1e-30)).clamp_min(0)
    return w / scale


def _place(key: str) -> tuple[int, ...]:
    """Strategies, then kinds, then modes in their usual order."""
    strategy, kind, mode = key.split("/")
    given = strategy.endswith(" (given)")
    kinds, modes = ("dense", "pointwise", "depthwise", "pixel"), ("inference", "training")
    return given, list(ops.strategies()).index(strategy.split()[0]), kinds.index(kind), modes.index(mode)


def fit(measured: dict[Shape, dict[str, float]], device: str = "cpu") -> dict[str, dict[str, float]]:
    """Rates per strategy, kind and mode."""
    rows, seconds = defaultdict(list), defaultdict(list)
    for shape, times in measured.items():
        problem = problem_of(shape, device)
        for strategy, fastest in times.items():
            if problem.op != "sample_conv" or strategy == "native":
                key = cost.key(problem, strategy)
                rows[key].append([cost.amounts(problem, strategy)[name] for name in cost.AMOUNTS])
                seconds[key].append(fastest)
    rates = {}
    for key in sorted(rows, key=_place):
        t = torch.tensor(seconds[key], dtype=torch.float64)
        w = nonnegative(torch.tensor(rows[key], dtype=torch.float64) / t[:, None])
        rates[key] = {name: float(f"{v:.4g}") for name, v in zip(cost.AMOUNTS, w.tolist(), strict=True) if v > 0}
    return rates


def check(
    measured: dict[Shape, dict[str, float]], rates: dict, told: Callable[[str], None], device: str = "cpu"
) -> int:
    """How many choices are within 15 % of the fastest; ``told`` hears each."""
    good = 0
    for shape, times in measured.items():
        problem = problem_of(shape, device)
        estimates = {}
        for name in times:
            own = rates[cost.key(problem, name)]
            estimates[name] = sum(own.get(a, 0.0) * v for a, v in cost.amounts(problem, name).items())
        chosen, best = cost.preferred(estimates), min(times, key=times.__getitem__)
        ratio = times[chosen] / times[best]
        good += ratio <= 1.15
        listed = " ".join(f"{n}={t * 1e3:.2f}({estimates[n] * 1e3:.2f})" for n, t in times.items())
        told(f"{shape!s:45} chosen {chosen:8} best {best:8} {ratio:5.2f}  {listed}")
    return good


def fitted_on(device: torch.device, seconds: float, told: Callable[[str], None]) -> dict[str, Any]:
    """Measure a GPU in bfloat16 and float32, and fit.

    Args:
        device: A CUDA device.
        seconds: For one shape.
        told: Takes lines: how far it is, and the choice for every shape.

    Returns:
        What :func:`convary.ops.cost.fitted_on` reads: the device, its compute capability, the rates by dtype, and how
        many choices were within 15 %.
    """
    rates, good, shapes = {}, [0, 0], [*grid(), *TABLE, *per_position()]
    for name, dtype in DTYPES.items():
        measured = {}
        for i, shape in enumerate(shapes):
            if times := measure(shape, seconds, device, dtype):
                measured[shape] = times
            told(f"{name}: {i + 1} of {len(shapes)} shapes measured")
        rates[name] = fit(measured, str(device))
        good = [good[0] + check(measured, rates[name], told, str(device)), good[1] + len(measured)]
    facts = machine(str(device))
    return {
        "machine": facts["device"], "capability": capability_of(str(device)), "torch": facts["torch"], "good": good,
        "rates": rates,
    }  # fmt: skip


def fitted(threads: int, seconds: float, told: Callable[[str], None]) -> dict[str, Any]:
    """Measure and fit.

    Args:
        threads: Of torch.
        seconds: For one shape.
        told: Takes lines: how far it is, and the choice for every shape.

    Returns:
        What :func:`convary.ops.cost.fitted` reads: the machine, the rates, and how many choices were within 15 %.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        measured = {}
        shapes = [*grid(), *given(), *TABLE]
        for i, shape in enumerate(shapes):
            measured[shape] = measure(shape, seconds)
            told(f"{i + 1} of {len(shapes)} shapes measured")
    finally:
        torch.set_num_threads(before)
    table = {shape: measured.pop(shape) for shape in TABLE}
    rates = fit(measured)
    facts = machine()
    return {
        "machine": facts["cpu"], "cores": facts["cores"], "torch": facts["torch"], "native": facts["native"],
        "threads": threads, "good": [check(measured, rates, told), len(measured)],
        "good_elsewhere": [check(table, rates, told), len(table)], "rates": rates,
    }  # fmt: skip


def checked(rates: dict, threads: int, seconds: float, told: Callable[[str], None]) -> list[int]:
    """How many choices of given rates are within 15 % of the fastest, and of how many: the table's."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [check({shape: measure(shape, seconds) for shape in TABLE}, rates, told), len(TABLE)]
    finally:
        torch.set_num_threads(before)
