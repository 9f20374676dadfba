# SPDX-License-Identifier: Apache-2.0
"""Fit the cost model of the CPU strategies on this machine, and check it on PERFORMANCE's table.

    python benchmarks/fit_cost.py --out src/convary/ops/cost/cpu.json

Every shape of a grid is timed under every strategy, interleaved (A B C A B C ...), fastest of the rounds; rates are the
non-negative coefficients that minimise the relative error. The table's shapes are not in the grid. The check prints,
per row, the chosen strategy and its time over the best one's, and how many rows are within 15 %.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch

from convary import ops
from convary.bench.machine import machine
from convary.ops import cost, mixed, sample
from convary.ops.geometry import Geometry
from convary.ops.problem import Problem, conv_problem

K = 4
# B, C, O, size, kernel, groups, training: the rows of convary bench layers that have a target.
TABLE = [
    (32, 64, 64, 56, 3, 1, False), (32, 128, 128, 28, 3, 1, False), (32, 256, 256, 14, 3, 1, False),
    (32, 512, 512, 7, 3, 1, False), (1, 512, 512, 7, 3, 1, False), (32, 384, 64, 14, 1, 1, False),
    (32, 960, 320, 7, 1, 1, False), (32, 24, 144, 56, 1, 1, False), (32, 960, 960, 7, 3, 960, False),
    (32, 512, 512, 7, 3, 1, True), (32, 960, 320, 7, 1, 1, True),
]  # fmt: skip


def grid() -> list[tuple]:
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


def given() -> list[tuple]:
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


def case(shape: tuple) -> tuple[dict, Problem, Geometry]:
    """Tensors of a shape, its problem and geometry."""
    B, C, O, S, k, G, training, *op = shape
    x = torch.randn(B, C, S, S, requires_grad=training)
    geometry = Geometry((1, 1), (k // 2,) * 2, (1, 1), G)
    if op:
        weight = torch.randn(B, O, C // G, k, k, requires_grad=training)
        return {"x": x, "weight": weight}, conv_problem(*op, x, weight, geometry, batch=B, training=training), geometry
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


def measure(shape: tuple, budget: float) -> dict[str, float]:
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


def fit(measured: dict[tuple, dict[str, float]]) -> dict[str, dict[str, float]]:
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


def load(path: Path | None) -> dict[tuple, dict[str, float]]:
    """Measurements that an earlier run kept, if any."""
    if path is None or not path.exists():
        return {}
    return {tuple(row[:-1]): row[-1] for row in json.loads(path.read_text(encoding="utf-8"))}


def check(measured: dict[tuple, dict[str, float]], rates: dict) -> int:
    """Print the choice per shape; returns how many are within 15 % of the best."""
    good = 0
    for shape, times in measured.items():
        problem = case(shape)[1]
        estimates = {}
        for name in times:
            own = rates[cost.key(problem, name)]
            estimates[name] = sum(own.get(a, 0.0) * v for a, v in cost.amounts(problem, name).items())
        chosen, best = cost.preferred(estimates), min(times, key=times.get)
        ratio = times[chosen] / times[best]
        good += ratio <= 1.15
        listed = " ".join(f"{n}={t * 1e3:.2f}({estimates[n] * 1e3:.2f})" for n, t in times.items())
        print(f"{shape!s:45} chosen {chosen:8} best {best:8} {ratio:5.2f}  {listed}", flush=True)
    return good


def main() -> None:
    """Fit, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the fit here (default: only print)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds per shape (default 0.3)")
    parser.add_argument("--measured", type=Path, help="keep the measurements here; fit from them where the file exists")
    parser.add_argument("--check-only", action="store_true", help="check the shipped fit on the table; fit nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shapes = TABLE if args.check_only else [*grid(), *given(), *TABLE]
    measured = load(args.measured) or {shape: measure(shape, args.budget) for shape in shapes}
    if args.measured:
        rows = [[*shape, times] for shape, times in measured.items()]
        args.measured.write_text(json.dumps(rows), encoding="utf-8")
    table = {shape: measured.pop(shape) for shape in TABLE}
    rates = cost.fitted()["rates"] if args.check_only else fit(measured)
    if measured:
        print(f"grid: {check(measured, rates)} of {len(measured)} within 15 %")
    good = check(table, rates)
    print(f"table: {good} of {len(TABLE)} within 15 % ({good / len(TABLE):.0%})")
    if args.out:
        facts = machine()
        fitted = {
            "machine": facts["cpu"],
            "cores": facts["cores"],
            "torch": facts["torch"],
            "threads": args.threads,
            "rates": rates,
        }
        args.out.write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
