# SPDX-License-Identifier: Apache-2.0
"""What a comparison trains beside each other: the static network, static networks of other widths, and the methods."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from convary._summary import summary
from convary.data import DataSet
from convary.errors import ConfigError, nearest
from convary.methods import METHODS, MethodConfig
from convary.models import COMPARATORS, Comparator, fold_excitation
from convary.models.architecture import Architecture
from convary.models.pretrained import Fitted, classifier, digest, read
from convary.models.registry import split_width
from convary.train.checkpoint import read_checkpoint

STATIC = "static"
KNOWN = {config.name: config for config in (*METHODS, *COMPARATORS)}
AXES = ("macs", "params")
INITS = ("paper", "neutral", "upcycle")
_WIDEST = 16.0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the networks that are compared.

    Attributes:
        name: ``"static"``, a method's name, alone or with options (``"odconv:experts=2,init=neutral"``),
            ``"static@1.25"`` (a width) or ``"static@macs:odconv"`` (as expensive).
        method: The config of the method, or of the comparator; None for a static network.
        init: How it starts, where its name says so; else None.
        width: Of a static network, relative to the others; None where another arm's cost decides it.
        axis: ``"macs"`` or ``"params"``: in what it is as expensive as ``like``.
        like: The name of another arm.
    """

    name: str
    method: MethodConfig | None = None
    init: str | None = None
    width: float | None = 1.0
    axis: str = ""
    like: str = ""

    @property
    def is_static(self) -> bool:
        """Whether it is the network that the others are compared with."""
        return self.name == STATIC

    @property
    def title(self) -> str:
        """For people."""
        if self.method is not None:
            _, _, options = self.name.partition(":")
            return f"{self.method.title} ({options.replace(',', ', ')})" if options else self.method.title
        if self.like:
            return f"static, {'MACs' if self.axis == 'macs' else 'parameters'} of {read_arm(self.like).title}"
        return STATIC if self.is_static else f"static, {self.width:g} times as wide"

    @property
    def is_dynamic(self) -> bool:
        """Whether its kernels depend on the input."""
        return self.method is not None and not isinstance(self.method, Comparator)

    @property
    def folder(self) -> str:
        """Its name as that of a folder, on every system."""
        return self.name.replace(":", "-")  # Windows' names have no colon


def checkpoint_path(out: Path, arm: Arm | str, seed: int) -> Path:
    """Where the checkpoint of an arm and a seed lies."""
    return out / (arm if isinstance(arm, str) else arm.folder) / f"seed-{seed}" / "checkpoint.pt"


def read_arm(text: str) -> Arm:
    """An arm by its name.

    Args:
        text: The name.

    Raises:
        ConfigError: there is no such arm, or the method does not take the options.
    """
    kind, colon, rest = text.partition(":")
    if kind in KNOWN:
        options = _options(text, rest, KNOWN[kind]) if colon else {}
        init = options.pop("init", None)
        if init not in (None, *INITS):
            raise ConfigError(f"init of {text!r} must be one of {', '.join(INITS)}; got {init!r}")
        return Arm(name=text, method=_method(kind, options), init=init)
    if text == STATIC:
        return Arm(name=text)
    kind, at, width = kind.partition("@")
    if kind == STATIC and colon:
        if width not in AXES or rest.partition(":")[0] not in KNOWN:
            hint = "" if rest in KNOWN else nearest(rest, KNOWN)
            raise ConfigError(
                f"a static network, which has no options, is static, static@1.25, or as expensive as a method, written "
                f"static@macs:odconv or static@params:odconv; got {text!r}{hint}"
            )
        return Arm(name=text, width=None, axis=width, like=rest)
    if kind == STATIC and at:
        return Arm(name=text, width=split_width(text)[1])
    known = (STATIC, *KNOWN)
    raise ConfigError(f"unknown method {text!r}{nearest(text, known)}; known: {', '.join(known)}")


def _method(kind: str, options: dict[str, Any]) -> MethodConfig:
    """A method with options; what is wrong with them comes with the command that explains them, where there is one."""
    try:
        return KNOWN[kind].from_options(options)
    except ConfigError as error:
        if issubclass(KNOWN[kind], Comparator):
            raise
        raise ConfigError(f"{error}; its options: convary plan --method {kind} --help") from error


def _options(arm: str, text: str, config: type[MethodConfig]) -> dict[str, Any]:
    """Those of ``METHOD:OPTION=VALUE,OPTION=VALUE``; a tuple of words is written ``kernel+filter``."""
    tuples = {field.name: field.default for field in dataclasses.fields(config) if isinstance(field.default, tuple)}
    words = {name for name, default in tuples.items() if all(isinstance(value, str) for value in default)}
    options: dict[str, Any] = {}
    for entry in text.split(","):
        name, equals, value = entry.partition("=")
        if not (name and equals):
            raise ConfigError(
                f"options are written METHOD:OPTION=VALUE,OPTION=VALUE as in odconv:experts=2; got {arm!r}"
            )
        options[name] = tuple(value.split("+")) if name in words else _value(value)
    return options


def _value(text: str) -> Any:
    """A number, a bool, None; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
    factor = _equal_width(arm, config, dataset) if arm.width is None else arm.width
    wide = name if factor * width == 1 else f"{name}@{factor * width:g}"
    return Architecture.of(wide, dataset, arm.method, config.start_of(arm), seed, config.where)


@lru_cache(maxsize=64)
def _equal_width(arm: Arm, config: Any, dataset: DataSet) -> float:
    """The width whose cost is next to that of the arm that it is like, in hundredths."""
    model = next(other for other in config.arms().values() if other.name == arm.like)
    wanted = _cost(architecture(model, config, dataset, 0), arm.axis)

    def cost(hundredths: int) -> int:
        return _cost(architecture(Arm(name=STATIC, width=hundredths / 100), config, dataset, 0), arm.axis)

    low, high = 100, 200
    usual = cost(low)
    while cost(high) < wanted:
        low, high = high, 2 * high
        if high > 100 * _WIDEST:
            raise ConfigError(f"no static network up to {_WIDEST:g} times as wide has the {arm.axis} of {arm.like}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    found = min((low, high), key=lambda width: abs(cost(width) - wanted))
    if cost(found) == usual:
        raise ConfigError(
            f"no wider network is nearer to the {arm.axis} of {arm.like} than static; leave {arm.name} out"
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
