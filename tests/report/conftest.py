# SPDX-License-Identifier: Apache-2.0
"""SYNTHETIC results for the report tests: every number here is drawn from a generator, none was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.report.portraits import pictures, portraits, shares

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
# title, citation, factors of a layer, dynamic layers, parameters, (routing, assembly) MACs, cost, gain, temperature
SHAPES: dict[str, tuple[Any, ...]] = {
    "static": ("static", None, [], 0, 238_314, (0, 0), 1.0, 0.0, None),
    "condconv": (
        "CondConv",
        "Yang et al., NeurIPS 2019",
        [("kernel", 8)],
        9,
        1_290_418,
        (9_200, 1_130_000),
        1.31,
        0.9,
        None,
    ),
    "dyconv": ("DyConv", "Chen et al., CVPR 2020", [("kernel", 4)], 20, 982_704, (41_000, 871_000), 1.62, 1.4, 30.0),
    "dynet": (
        "DyNet",
        "Zhang et al., arXiv 2020",
        [("filter", 16)],
        20,
        1_391_022,
        (210_000, 1_380_000),
        1.55,
        0.6,
        None,
    ),
    "odconv": (
        "ODConv",
        "Li, Zhou and Yao, ICLR 2022",
        [("kernel", 4), ("filter", 16), ("channel", 16), ("tap", 9)],
        20,
        1_070_850,
        (139_000, 905_000),
        2.35,
        2.1,
        30.0,
    ),
}


def synthetic_results(
    methods: Sequence[str] = tuple(SHAPES), seeds: int = 1, epochs: int = 3, layers: int | None = None
) -> dict[str, Any]:
    """A results.json of schema 1 with invented but plausible numbers; the same arguments give the same numbers."""
    draw = random.Random(len(methods) * 1000 + seeds * 10 + epochs)
    return {
        "schema": 1,
        "run": {
            "command": "convary compare --data fashion-mnist-mini --model mobilenet_v2_tiny "
            f"--methods {' '.join(methods)} --epochs {epochs} --seeds {seeds} --out runs/synthetic",
            "started": "2026-01-05T10:00:00+00:00",
            "finished": "2026-01-05T10:03:21+00:00",
            "data": "fashion-mnist-mini",
            "model": "mobilenet_v2_tiny",
            "methods": list(methods),
            "epochs": epochs,
            "seeds": list(range(seeds)),
            "init": "paper",
            "batch_size": 64,
            "lr": 0.05,
            "weight_decay": 4e-5,
            "limit_train": None,
            "anneal_epochs": 1.0,
            "out": "runs/synthetic",
        },
        "machine": {
            "cpu": "SYNTHETIC CPU (nothing was measured)",
            "cores": 2,
            "threads": 2,
            "memory_gb": 8.0,
            "os": "Linux 6.1",
            "python": "3.11.4",
            "torch": "2.14.1",
            "convary": "0.1.0",
        },
        "data": {
            "name": "fashion-mnist-mini",
            "title": "SYNTHETIC stand-in for Fashion-MNIST mini",
            "classes": CLASSES,
            "train": 6000,
            "test": 2000,
            "shape": [1, 28, 28],
            "license": "MIT",
            "source": "synthetic",
        },
        "methods": [_method(name, draw, seeds, epochs, layers) for name in methods],
        "pictures": pictures(len(CLASSES), draw),
    }


def _method(name: str, draw: random.Random, seeds: int, epochs: int, layers: int | None) -> dict[str, Any]:
    title, citation, factors, count, params, (routing, assembly), cost, gain, start = SHAPES[name]
    count = count if layers is None or not count else layers
    runs = [_seed(seed, draw, epochs, gain, start) for seed in range(seeds)]
    scores = [run["top1"] for run in runs]
    mean = sum(scores) / seeds
    std = math.sqrt(sum((score - mean) ** 2 for score in scores) / (seeds - 1)) if seeds > 1 else None
    names = [f"blocks.{index // 3}.{('expand', 'depthwise', 'project')[index % 3]}" for index in range(count)]
    static = name == "static"
    for point in runs[0]["curve"] if names else []:
        point["experts"] = {layer: shares(draw) for layer in names}
    return {
        **portraits(names, static, len(CLASSES), start, draw),
        "name": name,
        "title": title,
        "citation": citation,
        "config": None if static else {"method": name, "experts": 4},
        "layers": count,
        "params": params,
        "macs": {"convolution": 6_214_000, "routing": routing, "assembly": assembly, "other": 12_800},
        "latency": [
            _ratio({"batch": 1}, 2.9, cost * 1.25 if not static else 1.0, static, draw),
            _ratio({"batch": 16}, 17.5, cost, static, draw),
        ],
        "step": _ratio({"batch": 64}, 118.0, 1 + (cost - 1) * 1.3, static, draw),
        "top1": {"mean": mean, "std": std},
        "seeds": runs,
        "routing": [
            _routing(layer, depth / max(count - 1, 1), factor, width, draw)
            for depth, layer in enumerate(names)
            for factor, width in factors
        ],
        "diagnosis": None if static else _diagnosis(names, draw),
        "correlation": _correlation(names or [f"blocks.{index}" for index in range(20)], gain, draw),
    }


def _ratio(base: dict[str, Any], ms: float, ratio: float, static: bool, draw: random.Random) -> dict[str, Any]:
    low, high = (ratio * draw.uniform(0.9, 0.97), ratio * draw.uniform(1.03, 1.12))
    return {**base, "ms": ms * ratio, "ratio": ratio, "low": low, "high": high}


def _seed(seed: int, draw: random.Random, epochs: int, gain: float, start: float | None) -> dict[str, Any]:
    shift, points, steps = draw.gauss(0, 0.4), [], epochs * 4
    for step in range(1, steps + 1):
        at = step / 4
        error = 17 - gain + 45 * math.exp(-1.6 * at) + draw.gauss(0, 0.5) - shift
        points.append(
            {
                "epoch": at,
                "train_loss": 0.027 * error + 0.02,
                "train_top1": 100 - error * 0.97,
                "test_loss": 0.028 * error + 0.03,
                "test_top1": 100 - error,
                "lr": 0.05 * (1 + math.cos(math.pi * at / epochs)) / 2,
                "temperature": None if start is None else max(1.0, start - (start - 1) * at / 1.0),
                "seconds": 9.5 * at,
            }
        )
    return {"seed": seed, "top1": points[-1]["test_top1"], "checkpoint": f"checkpoints/seed{seed}.pt", "curve": points}


def _routing(layer: str, depth: float, factor: str, width: int, draw: random.Random) -> dict[str, Any]:
    softmax = factor == "kernel" and width == 4
    centre = [1 / width if softmax else draw.uniform(0.35, 0.65) for _ in range(width)]
    spread = draw.uniform(0.8, 1.25) * (0.01 + 0.09 * depth**2)
    rows = [[min(1.0, max(0.0, value + draw.gauss(0, spread))) for value in centre] for _ in CLASSES]
    if softmax:
        rows = [[value / sum(row) for value in row] for row in rows]
    return {
        "layer": layer,
        "factor": factor,
        "by_class": rows,
        "between_class_std": spread,
        "within_class_std": 0.02 + 0.02 * depth,
        "entropy": 0.99 - 0.2 * depth if softmax else None,
    }


def _diagnosis(names: list[str], draw: random.Random) -> dict[str, Any]:
    layers = [
        {
            "layer": name,
            "experts": 4,
            "share": [0.25, 0.35, 0.4, 0.0],
            "entropy": draw.uniform(0.8, 1),
            "variation": draw.uniform(0, 0.5),
            "divergence": draw.uniform(0.1, 0.6),
            "dead": [3],
            "duplicates": [[0, 1]],
        }
        for name in names
    ]
    return {"inputs": 500, "advice": ["SYNTHETIC advice: use <fewer> experts"], "layers": layers}


def _correlation(names: list[str], gain: float, draw: random.Random) -> dict[str, Any]:
    layers = []
    for name in names:
        parts = [0.30 + 0.07 * gain, 0.45, 0.17, 0.08 - 0.02 * gain]
        parts = [part * draw.uniform(0.8, 1.2) for part in parts]
        layers.append({"layer": name, "bands": [part / sum(parts) for part in parts]})
    means = [sum(layer["bands"][band] for layer in layers) / len(layers) for band in range(4)]
    return {
        "edges": [0.1, 0.3, 0.5],
        "labels": ["none", "weak", "middle", "strong"],
        "bands": means,
        "layers": layers,
    }


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., dict[str, Any]]:
    """The function that invents a results.json (no number in it was measured)."""
    return synthetic_results
