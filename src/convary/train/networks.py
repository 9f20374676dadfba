# SPDX-License-Identifier: Apache-2.0
"""The network of each arm, how wide it is, and what it starts from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from convary._summary import summary
from convary.data import DataSet
from convary.errors import ConfigError
from convary.models import fold_excitation
from convary.models.architecture import Architecture
from convary.models.pretrained import Fitted, classifier, digest, read
from convary.models.registry import split_width
from convary.train.arms import AXES, STATIC, TIMED, Arm, checkpoint_path
from convary.train.checkpoint import read_checkpoint
from convary.train.widths import bracket, known_width


def architecture(arm: Arm, config: Any, dataset: DataSet, seed: int) -> Architecture:
    """What an arm trains.

    Args:
        arm: The arm.
        config: The ``CompareConfig``, whose ``arms()`` it is of.
        dataset: What to train on.
        seed: Of the initial weights.

    Raises:
        ConfigError: a network that cannot be built.
    """
    name, width = split_width(config.model)
    if arm.width is not None:
        factor = arm.width
    else:
        factor = known_width(arm, config.out) if arm.axis in TIMED else _equal_width(arm, config, dataset)
    wide = name if factor * width == 1 else f"{name}@{factor * width:g}"
    return Architecture.of(wide, dataset, arm.method, config.start_of(arm), seed, config.where, config.classifier_bias)


@lru_cache(maxsize=64)
def _equal_width(arm: Arm, config: Any, dataset: DataSet) -> float:
    """The width whose cost is next to that of the arm that it is like, in hundredths."""
    model = next(other for other in config.arms().values() if other.name == arm.like)
    wanted = _cost(architecture(model, config, dataset, 0), arm.axis)

    def cost(hundredths: int) -> int:
        return _cost(architecture(Arm(name=STATIC, width=hundredths / 100), config, dataset, 0), arm.axis)

    usual = cost(100)
    found = min(bracket(arm, lambda width: cost(width) / wanted), key=lambda width: abs(cost(width) - wanted))
    if cost(found) == usual:
        raise ConfigError(
            f"no wider network is nearer to the {AXES[arm.axis]} of {arm.like} than static; leave {arm.name} out"
        )
    return found / 100


def _cost(network: Architecture, axis: str) -> int:
    model = fold_excitation(network.build().eval())
    if axis == "params":
        return sum(p.numel() for p in model.parameters())
    costs = summary(model, torch.zeros(1, *network.shape))
    return costs.convolution + costs.routing + costs.assembly + costs.other


def start_weights(config: Any, dataset: DataSet, seed: int) -> dict[str, Any] | None:
    """State dict of the static network that everything with this seed starts from; None where that is untrained.

    Args:
        config: The ``CompareConfig``.
        dataset: What to train on.
        seed: Of the initial weights.

    Raises:
        CheckpointError: there is no such checkpoint, or a broken one.
        ConfigError: it is of another network, or not trained to its end.
    """
    if config.pretrained:
        return fitted(config, dataset, seed).state
    if config.start is None:
        return None
    path = checkpoint_path(config.start, STATIC, seed)
    content = read_checkpoint(path)
    if not (config.start / "results.json").exists():
        raise ConfigError(
            f"{config.start} is not finished, so nothing can start from it; run its comparison to the end"
        )
    given, wanted = Architecture(**content["architecture"]), architecture(Arm(name=STATIC), config, dataset, seed)
    for name in ("model", "num_classes", "shape"):
        if getattr(given, name) != getattr(wanted, name):
            raise ConfigError(
                f"{path} has {name} {getattr(given, name)} and this comparison {getattr(wanted, name)}; start from a "
                "comparison of the same network and images"
            )
    return content["model"]


def fitted(config: Any, dataset: DataSet, seed: int) -> Fitted:
    """What the static network takes of the weights of ``config``; its classifier is the seed's.

    Raises:
        CheckpointError: no such weights, or weights that do not fit.
        ConfigError: weights of another network.
    """
    static = architecture(Arm(name=STATIC), config, dataset, seed)
    given = read(static.model, config.weights)
    rows = classifier(static.model, static.num_classes, static.shape)
    return given.fit(static.build(), dataset.classes, rows)


def told(config: Any, dataset: DataSet) -> str:
    """What the networks take of the weights, and how they see images, in words."""
    found, size = fitted(config, dataset, 0), dataset.shape[1]
    taken = f"{len(found.state) - len(found.new)} of {len(found.state)} tensors from {config.weights}"
    new = f"; new for these {len(dataset.classes)} classes: {', '.join(found.new)}" if found.new else ""
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (dataset.mean, dataset.std))
    return f"{taken}{new}; images are {size}x{size}, mean {mean}, std {std}"


def start_digest(config: Any, dataset: DataSet) -> str:
    """Tells what everything starts from from anything else; empty where that is untrained."""
    if config.pretrained:
        return read(config.model, config.weights).digest()
    state = start_weights(config, dataset, 0)
    return "" if state is None else digest(state)
