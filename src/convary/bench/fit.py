# SPDX-License-Identifier: Apache-2.0
"""``convary bench fit``: the cost model's rates, fitted to times measured on this machine.

Every shape of a grid is timed under every strategy, interleaved (A B C A B C ...), fastest of the rounds; rates are the
non-negative coefficients that minimise the relative error. The table's shapes are not in the grid: there, the chosen
strategy is compared with the fastest one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from convary import ops
from convary.bench.machine import machine
from convary.ops import cost, mixed, sample
from convary.ops.geometry import Geometry
from convary.ops.problem import Problem, conv_problem

Shape = tuple[Any, ...]

K = 4
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


def case(shape: Shape) -> tuple[dict, Problem, Geometry]:
    """Tensors of a shape, its problem and geometry."""
    B, C, O, S, k, G, training, *op = shape
    x = torch.randn(B, C, S, S, requires_grad=training)
    geometry = Geometry((1, 1), (k // 2,) * 2, (1, 1), G)
    if op:
        weight = torch.randn(B, O, C // G, k, k, requires_grad=training)
        return (
            {"x": x, "weight": weight},
            conv_problem(op[0], x, weight, geometry, batch=B, training=training),
            geometry,
        )
    bank = torch.randn(K, O, C // G, k, k, requires_grad=training)
    coeffs = ops.Coefficients(kernel=torch.rand(B, K).softmax(1).requires_grad_(training))
    problem = conv_problem("mixed_conv", x, bank, geometry, batch=B, training=training, coeffs=coeffs)
    return {"x": x, "bank": bank, "coeffs": coeffs}, problem, geometry


def once(tensors: dict, geometry: Geometry, strategy: str, training: bool) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    if "weight" in tensors:
        y = sample.STRATEGIES[strategy].run(tensors["x"], tensors["weight"], None, None, geometry)
        leaves = [tensors["x"], tensors["weight"]]
    else:
        y = mixed.STRATEGIES[strategy].run(tensors["x"], tensors["bank"], tensors["coeffs"], None, geometry)
        leaves = [tensors["x"], tensors["bank"], tensors["coeffs"].kernel]
    if training:
        torch.autograd.grad(y, leaves, grad_outputs=torch.ones_like(y))
    return time.perf_counter() - start


def measure(shape: Shape, budget: float) -> dict[str, float]:
    """The fastest round of every strategy, interleaved: other work on the machine only adds."""
    tensors, problem, geometry = case(shape)
    table = sample.STRATEGIES if "weight" in tensors else mixed.STRATEGIES
    names = [name for name, entry in table.items() if entry.why_not(problem) is None]
    first = {name: once(tensors, geometry, name, problem.training) for name in names}
    rounds = max(3, min(25, int(budget / sum(first.values()))))
    times = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(once(tensors, geometry, name, problem.training))
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
    kinds, modes = ("dense", "pointwise", "depthwise"), ("inference", "training")
    return given, list(mixed.STRATEGIES).index(strategy.split()[0]), kinds.index(kind), modes.index(mode)


def fit(measured: dict[Shape, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Rates per strategy, kind and mode."""
    rows, seconds = defaultdict(list), defaultdict(list)
    for shape, times in measured.items():
        problem = case(shape)[1]
        for strategy, fastest in times.items():
            if problem.op == "mixed_conv" or strategy == "native":
                key = cost.key(problem, strategy)
                rows[key].append([cost.amounts(problem, strategy)[name] for name in cost.AMOUNTS])
                seconds[key].append(fastest)
    rates = {}
    for key in sorted(rows, key=_place):
        t = torch.tensor(seconds[key], dtype=torch.float64)
        w = nonnegative(torch.tensor(rows[key], dtype=torch.float64) / t[:, None])
        rates[key] = {name: float(f"{v:.4g}") for name, v in zip(cost.AMOUNTS, w.tolist(), strict=True) if v > 0}
    return rates


def check(measured: dict[Shape, dict[str, float]], rates: dict, told: Callable[[str], None]) -> int:
    """How many choices are within 15 % of the fastest; ``told`` hears each."""
    good = 0
    for shape, times in measured.items():
        problem = case(shape)[1]
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
