# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a dynamic model's routing: dead and duplicate experts, layers that ignore their input, heat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convary._routing import routers, routing
from convary.batches import batches_of, input_of
from convary.errors import ConfigError
from convary.nn import DynamicLayer, Router
from convary.ops import Coefficients
from convary.text import columns, html_table

DEAD = 0.1  # an expert that never gets this part of an equal share is dead
DUPLICATE = 0.02  # relative distance of two experts below which they are one
IGNORES = 0.01  # relative variation of the coefficients over inputs below which a layer ignores its input
_HEAD = ("layer", "K", "entropy", "variation", "divergence", "")
_NAMED = 4  # layers named in a sentence


@dataclass(frozen=True)
class LayerDiagnosis:
    """One dynamic layer over all the inputs that it saw.

    Attributes:
        layer: Its name.
        experts: K.
        share: (K) numbers, mean share of each expert in the mixture; they sum to 1.
        entropy: Mean over inputs of the shares' entropy over log K: 1 mixes uniformly, 0 picks one expert. None where
            the experts share all their coefficients, or there is only one.
        variation: Standard deviation of the coefficients over inputs, relative to their size: 0 ignores the input. Of
            the factor that varies most.
        divergence: Spread of the experts around their mean, relative to its size. Upcycling starts at its ``noise``.
        dead: Experts that never get a tenth of an equal share.
        duplicates: Pairs of experts with equal kernels, to 2 %.
        temperature: Of its router, or None.
        final_temperature: What the temperature should end at.
    """

    layer: str
    experts: int
    share: tuple[float, ...]
    entropy: float | None
    variation: float
    divergence: float
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int], ...]
    temperature: float | None
    final_temperature: float = 1.0

    @property
    def ignores_input(self) -> bool:
        """Whether every input is routed alike."""
        return self.variation < IGNORES

    @property
    def hot(self) -> bool:
        """Whether the temperature is above its final value."""
        return self.temperature is not None and self.temperature > self.final_temperature


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What ``diagnose`` found; print it, or draw it with ``convary.report.draw``.

    Attributes:
        layers: One entry per dynamic layer, in the model's order.
        inputs: How many inputs were looked at.
    """

    layers: tuple[LayerDiagnosis, ...]
    inputs: int

    @property
    def entropy(self) -> float | None:
        """Mean entropy over the layers that have one."""
        found = [layer.entropy for layer in self.layers if layer.entropy is not None]
        return sum(found) / len(found) if found else None

    @property
    def divergence(self) -> float:
        """Mean divergence of the experts over the layers."""
        return sum(layer.divergence for layer in self.layers) / len(self.layers)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do, in words; empty where nothing is wrong."""
        return tuple(_advice(self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, as ``results.json`` has them."""
        return {"inputs": self.inputs, "advice": list(self.advice), "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        return "\n".join([*columns([_HEAD, *self._cells()]), f"{self.inputs} inputs looked at", *self._advice()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._cells(), [f"{self.inputs} inputs looked at", *self._advice()])

    def _advice(self) -> list[str]:
        return [f"- {sentence}" for sentence in self.advice or ("nothing to remark",)]

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                layer.layer or "(model)",
                str(layer.experts),
                "-" if layer.entropy is None else f"{layer.entropy:.3f}",
                f"{layer.variation:.3f}",
                f"{layer.divergence:.3f}",
                "; ".join(_remarks(layer)),
            )
            for layer in self.layers
        ]


def diagnose(model: nn.Module, loader: Iterable[Any] | Tensor, *, batches: int | None = None) -> Diagnosis:
    """Look at what every dynamic layer routes, in eval mode, and say what is wrong.

    Args:
        model: A model with dynamic layers.
        loader: Batches of the model's input, tuples or lists that start with it, or dicts with it under a usual key
            (``pixel_values``, ``image``, ``x``, ...); one tensor is one batch. They are moved to the model's device.
        batches: How many batches to look at; None for all.

    Raises:
        ConfigError: the model has no dynamic layer, or the loader gives no input.
        DataError: no input is found in a batch.
        ShapeError, DtypeError: the model can't take a batch.

    Examples:
        >>> from convary.methods import CondConv2d
        >>> found = diagnose(CondConv2d(3, 8, 3, experts=2), torch.randn(16, 3, 8, 8))
        >>> found.inputs, found.layers[0].experts
        (16, 2)
    """
    names = {name: m for name, m in model.named_modules() if isinstance(m, DynamicLayer)}
    if not names:
        raise ConfigError(f"{type(model).__name__} has no dynamic layer; convert it first")
    device = next(model.parameters()).device
    tallies: dict[str, _Tally] = {}
    inputs = 0
    for batch in itertools.islice(batches_of(loader), batches):
        x = input_of(batch, device)
        inputs += len(x)
        for name, coeffs in routing(model, x).items():
            tallies.setdefault(name, _Tally(names[name].num_experts)).add(coeffs)
    if not inputs or not tallies:
        raise ConfigError("the loader gave no input to look at; pass batches of the model's input")
    routed = routers(model)
    layers = tuple(_layer(name, names[name], tally, routed[name]) for name, tally in tallies.items())
    return Diagnosis(layers, inputs)


class _Tally:
    """Sums over inputs of what one layer routes."""

    def __init__(self, K: int) -> None:
        self.K, self.count = K, 0
        self.share = torch.zeros(K, dtype=torch.double)
        self.most = torch.zeros(K, dtype=torch.double)
        self.entropy = 0.0
        self.varies = False  # whether the experts have coefficients of their own at all
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, coeffs: Coefficients) -> None:
        share = shares(coeffs, self.K)
        if share is not None:
            self.varies = True
            self.share += share.sum(0)
            self.most = torch.maximum(self.most, share.amax(0))
            self.entropy += float(entropy(share).sum())
        flat = {axis: factor.detach().flatten(1).double().cpu() for axis, factor in coeffs.factors().items()}
        for axis, values in flat.items():
            first, second = self.sums.get(axis, (torch.zeros(()), torch.zeros(())))
            self.sums[axis] = first + values.sum(0), second + values.square().sum(0)
        self.count += max(map(len, flat.values()))

    def variation(self) -> float:
        """Of the factor that varies most."""
        found = [0.0]
        for first, second in self.sums.values():
            mean = first / self.count
            spread = (second / self.count - mean.square()).clamp(min=0).mean().sqrt()
            found.append(float(spread / (second / self.count).mean().sqrt().clamp(min=1e-12)))
        return max(found)


def shares(coeffs: Coefficients, K: int) -> Tensor | None:
    """Share of each expert in the mixture of each sample, (B, K), rows summing to 1; None where all share alike.

    The product of the factors that each expert has of its own, averaged over filters, channels and taps.
    """
    own = [f if f.ndim == 2 else f.mean(2) for f in coeffs.factors().values() if K > 1 and f.shape[1] == K]
    if not own:
        return None
    weight = torch.stack(own).detach().double().cpu().abs().prod(0)
    return weight / weight.sum(1, keepdim=True).clamp(min=1e-12)


def entropy(share: Tensor) -> Tensor:
    """Entropy of each row of (B, K), K at least 2, over log K: 1 where it is uniform, 0 where it picks one."""
    return torch.special.entr(share.double()).sum(1) / math.log(share.shape[1])


def _layer(name: str, module: DynamicLayer, tally: _Tally, router: Router) -> LayerDiagnosis:
    K = tally.K
    bank = module.weight.detach().flatten(1).double().cpu()
    mean = bank.mean(0)
    size = bank.norm(dim=1).mean().clamp(min=1e-12)
    pairs = [(i, j) for i in range(K) for j in range(i + 1, K) if (bank[i] - bank[j]).norm() < DUPLICATE * size]
    share = tally.share / tally.count if tally.varies else torch.full((K,), 1 / K)
    return LayerDiagnosis(
        layer=name,
        experts=K,
        share=tuple(share.tolist()),
        entropy=tally.entropy / tally.count if tally.varies else None,
        variation=tally.variation(),
        divergence=float((bank - mean).square().sum(1).mean().sqrt() / mean.norm().clamp(min=1e-12)) if K > 1 else 0.0,
        dead=tuple(k for k in range(K) if tally.varies and tally.most[k] < DEAD / K),
        duplicates=tuple(pairs),
        temperature=None if router.temperature is None else float(router.temperature),
        final_temperature=router.final_temperature,
    )


def _remarks(layer: LayerDiagnosis) -> list[str]:
    found = []
    if layer.ignores_input:
        found.append("ignores its input")
    if layer.dead:
        found.append(f"dead: {', '.join(map(str, layer.dead))}")
    if layer.duplicates:
        found.append(f"equal: {', '.join(f'{i}={j}' for i, j in layer.duplicates)}")
    if layer.hot:
        found.append(f"temperature {layer.temperature:g}")
    return found


def _advice(layers: tuple[LayerDiagnosis, ...]) -> Iterable[str]:
    def some(chosen: list[LayerDiagnosis]) -> str:
        names = ", ".join(layer.layer or "the model" for layer in chosen[:_NAMED])
        more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
        return f"{len(chosen)} of {len(layers)} layers ({names}{more})"

    hot = [layer for layer in layers if layer.hot]
    still = [layer for layer in layers if layer.ignores_input and not layer.hot]
    dead = [layer for layer in layers if layer.dead]
    equal = [layer for layer in layers if layer.duplicates]
    if hot:
        yield (
            f"{some(hot)} are at temperature {max(layer.temperature or 0 for layer in hot):g}, above the final "
            f"{hot[0].final_temperature:g}, which hides what they learned to route: step convary.anneal to its end, "
            f"or call convary.set_temperature(model, {hot[0].final_temperature})"
        )
    if still:
        yield (
            f"{some(still)} route every input alike, so they are worth no more than a static layer: a model that was "
            "just upcycled starts so and learns it; after training, keep decay off the routers unless "
            "convary.param_groups did, raise their learning rate, or leave these layers static with where"
        )
    if dead:
        yield (
            f"{some(dead)} have experts that no input uses: start at a higher temperature and anneal it, so that all "
            "experts learn before one wins, or use fewer experts"
        )
    if equal:
        yield (
            f"{some(equal)} have experts with equal kernels, which cost time and add nothing: convert with more noise, "
            "train longer, or use fewer experts"
        )
