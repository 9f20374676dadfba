# SPDX-License-Identifier: Apache-2.0
"""What a trained network routes, class by class, and how much alike the filters of its kernels are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convary._diagnose import diagnose, entropy
from convary._routing import routing
from convary.data import DataSet, balanced
from convary.nn import DynamicConv
from convary.train.evaluation import batches

EDGES = (0.1, 0.3, 0.5)  # of |r|: DyNet's bands (section 3.1 of its paper)
LABELS = ("none", "weak", "middle", "strong")
SHOWN = 16  # entries of a long factor that are kept
IMAGES = 2000  # test images whose routing is looked at
DIAGNOSED = 500  # test images that the diagnosis looks at
FEWEST = 5  # test images of each class below which the share of a class is not said
MIXED = 8  # test images whose mixed kernels are looked at


class ClassStatistics:
    """Mean and spread of a vector per class, over many images.

    Args:
        classes: Number of classes.
        length: Of the vectors.
    """

    def __init__(self, classes: int, length: int):
        self.count = torch.zeros(classes, 1, dtype=torch.float64)
        self.sum = torch.zeros(classes, length, dtype=torch.float64)
        self.squares = torch.zeros(classes, length, dtype=torch.float64)

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Values (B, length) of images of the classes ``labels`` (B,)."""
        values = values.double().cpu()
        self.count.index_add_(0, labels, values.new_ones(len(labels), 1))
        self.sum.index_add_(0, labels, values)
        self.squares.index_add_(0, labels, values.square())

    def summary(self) -> dict[str, Any]:
        """``by_class`` means, the standard deviations between and within classes, over all entries, and ``share``."""
        mean = self.sum / self.count.clamp(min=1)
        within = (self.squares / self.count.clamp(min=1) - mean.square()).clamp(min=0)
        return {
            "by_class": mean.tolist(),
            "between_class_std": float(mean.var(0, correction=0).mean().sqrt()),
            "within_class_std": float(within.mean().sqrt()),
            "share": self.share(),
        }

    def share(self) -> float | None:
        """How much of the variance lies between classes, as omega squared; None below :data:`FEWEST` of a class.

        The means of few images differ by chance; omega squared (Hays, 1963) takes away what chance gives on average.
        With one image of each class nothing lies within and the plain share would be 1 whatever the coefficients do.
        """
        images, classes = float(self.count.sum()), len(self.count)
        if self.count.min() < FEWEST:
            return None
        means = self.sum / self.count
        within = float((self.squares - self.count * means.square()).sum().clamp(min=0))
        between = float((self.count * (means - self.sum.sum(0) / images).square()).sum())
        chance = within / (images - classes)
        whole = between + within + chance
        return max(0.0, (between - (classes - 1) * chance) / whole) if whole > 0 else 0.0


def routing_statistics(
    model: nn.Module, dataset: DataSet, batch_size: int, device: torch.device | str
) -> list[dict[str, Any]]:
    """Coefficients of every dynamic layer and factor on test images, as ``results.json`` has them."""
    labels = dataset.test.labels
    chosen = balanced(labels, min(IMAGES, len(labels)))
    part = dataset.test.take(chosen)
    found: dict[tuple[str, str], ClassStatistics] = {}
    entropies: dict[tuple[str, str], list[float]] = {}
    for x, y in batches(part, dataset, batch_size, device):
        for layer, coefficients in routing(model, x).items():
            for axis, value in coefficients.factors().items():
                vector = _vector(value)
                key = (layer, axis)
                if key not in found:
                    found[key] = ClassStatistics(len(dataset.classes), vector.shape[1])
                found[key].add(vector, y.cpu())
                if axis == "kernel":
                    entropies.setdefault(key, []).extend(_entropy(value))
    return [
        {"layer": layer, "factor": axis, **statistics.summary(), "entropy": _mean(entropies.get((layer, axis), []))}
        for (layer, axis), statistics in found.items()
    ]


def diagnosis(model: nn.Module, dataset: DataSet, batch_size: int, device: torch.device | str) -> dict[str, Any]:
    """What ``convary.diagnose`` says of a network on some test images."""
    labels = dataset.test.labels
    part = dataset.test.take(balanced(labels, min(DIAGNOSED, len(labels))))
    return diagnose(model, batches(part, dataset, batch_size, device)).to_dict()


def _vector(value: Tensor) -> Tensor:
    """One short vector per image (B, n): K numbers where the factor has one part per kernel, else its first entries."""
    if value.ndim == 2:
        return value
    return (value[:, 0] if value.shape[1] == 1 else value.mean(2))[:, :SHOWN]


def _entropy(kernel: Tensor) -> list[float]:
    """Entropy of each row of (B, K) that is a distribution, 1 where it is uniform; nothing where rows are none."""
    if kernel.shape[1] < 2 or not torch.allclose(kernel.sum(1), kernel.new_ones(()), atol=1e-4):
        return []
    return entropy(kernel).tolist()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def filter_bands(weight: Tensor) -> Tensor | None:
    """How many pairs of a kernel's output filters correlate how much.

    Args:
        weight: (O, C/G, *k).

    Returns:
        (4,) numbers of pairs by |Pearson r|, split at :data:`EDGES`; None without a pair to compare.
    """
    filters = weight.detach().flatten(1).double()
    if filters.shape[0] < 2 or filters.shape[1] < 2:
        return None
    centred = filters - filters.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
    upper = torch.ones(len(unit), len(unit), dtype=torch.bool).triu(1)
    correlation = (unit @ unit.T)[upper].abs()
    band = torch.bucketize(correlation, correlation.new_tensor(EDGES), right=True)
    return band.bincount(minlength=len(LABELS)).double()


@torch.no_grad()
def correlations(model: nn.Module, dataset: DataSet, device: torch.device | str) -> dict[str, Any]:
    """Bands of correlation between filters: of the kernels mixed for some test images, or of the static kernels.

    A network with dynamic layers is described by these, a static one by all its convolutions but the stem.
    """
    layers: dict[str, Tensor] = {}
    dynamic = {name: module for name, module in model.named_modules() if isinstance(module, DynamicConv)}
    if dynamic:
        index = balanced(dataset.test.labels, min(MIXED, len(dataset.test.labels)))
        x = dataset.normalise(dataset.test.batch(index).to(device))
        for name, coefficients in routing(model, x).items():
            if name in dynamic:
                kernels = dynamic[name].kernels(coefficients).cpu()
                _put(layers, name, [filter_bands(kernel) for kernel in kernels])
    else:
        convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        for name, conv in convs[1:]:
            _put(layers, name, [filter_bands(conv.weight.cpu())])
    total = sum(layers.values(), torch.zeros(len(LABELS), dtype=torch.float64))
    return {
        "edges": list(EDGES),
        "labels": list(LABELS),
        "bands": (total / total.sum().clamp(min=1)).tolist(),
        "layers": [{"layer": name, "bands": (pairs / pairs.sum()).tolist()} for name, pairs in layers.items()],
    }


def _put(layers: dict[str, Tensor], name: str, pairs: list[Tensor | None]) -> None:
    counted = [bands for bands in pairs if bands is not None]
    if counted:
        layers[name] = torch.stack(counted).mean(0)
