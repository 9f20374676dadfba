# SPDX-License-Identifier: Apache-2.0
"""Trained weights to start from: read, fitted to a network of other classes, with what they want of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError, nearest
from convary.files import read_tensors
from convary.models.architecture import COMPARED, check_version
from convary.models.registry import SMALL, build, check_timm, create, split_width
from convary.weights import left_over, listed, missing, other_shapes, read_weights, unwrap, with_counters

RANDOM, PRETRAINED = "random", "pretrained"
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # torchvision's classifiers beside the last one, which we build without
_QUIET = 0.01  # standard deviation
_HALVES = ("googlenet", "inception_v3")  # torchvision's weights of these want pixels from -1 to 1


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How weights want images; None of what nobody knows.

    Attributes:
        size: Height and width.
        mean: Per channel, of pixels in 0..1.
        std: Likewise.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """Weights of a static network.

    Attributes:
        source: What was given: ``"pretrained"`` or a file.
        tensors: By the network's own names.
        seen: How they want images.
        classes: The names of what it tells apart, where the file says so.
    """

    source: str
    tensors: Mapping[str, Tensor]
    seen: Seen
    classes: tuple[str, ...] | None = None

    def digest(self) -> str:
        """Tells these weights from others."""
        return digest(self.tensors)

    def fit(self, model: nn.Module, classes: tuple[str, ...], classifier: frozenset[str]) -> Fitted:
        """What a network of other classes takes.

        Args:
            model: Its own initial classifier, scaled down, is what is new.
            classes: What it is to tell apart.
            classifier: The names of the tensors whose shape says how many classes there are.

        Raises:
            CheckpointError: a tensor that is not the classifier's is missing, left over or of another shape.
        """
        own = model.state_dict()
        tensors = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(_AUXILIARY)}
        tensors = with_counters(tensors, own)
        new = {name for name in classifier & tensors.keys() if tensors[name].shape != own[name].shape}
        if new or (self.classes is not None and self.classes != classes):
            new = set(classifier)
        body = {name: tensor for name, tensor in own.items() if name not in new}
        given = {name: tensor for name, tensor in tensors.items() if name not in new}
        problems = missing(body.keys() - given.keys(), given.keys() - body.keys())
        problems += left_over((name for name in given if name not in body), body)
        problems += other_shapes(given, body)
        if problems:
            raise CheckpointError(f"{self.source} does not fit {type(model).__name__}: {listed(problems)}")
        rows = {name: _quiet(own[name]) for name in new}
        return Fitted({**own, **given, **rows}, tuple(name for name in own if name in new))


def _quiet(initial: Tensor) -> Tensor:
    """A new classifier that says nearly nothing at first: else its noise is what the trained layers learn from.

    torchvision's MobileNets start like this; timm's start up to 40 times larger.
    """
    if initial.ndim < 2:
        return torch.zeros_like(initial)
    return initial * (_QUIET / initial.std().clamp(min=_QUIET))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A state dict to start from.

    Attributes:
        state: Every tensor of the network.
        new: The names of those that were not taken.
    """

    state: dict[str, Tensor]
    new: tuple[str, ...]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Tells these tensors from others."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def seen_by(name: str) -> Seen:
    """How a library's weights of a network want images; nothing is known of other networks.

    Raises:
        ConfigError: timm has no such network, or no such weights of it.
    """
    source, _, inner = split_width(name)[0].partition(":")
    if source == "timm" and inner:
        try:
            found = check_timm(inner).get_pretrained_cfg(inner)
        except RuntimeError as error:
            raise ConfigError(f"timm has no weights {inner!r}: {error}; leave out what follows the point") from error
        return Seen() if found is None else Seen(size=found.input_size[-1], mean=found.mean, std=found.std)
    if source == "torchvision" and inner in torchvision.models.list_models(module=torchvision.models):
        view: Any = torchvision.models.get_model_weights(inner)["DEFAULT"].transforms()
        mean, std = ((0.5,) * 3,) * 2 if inner in _HALVES else (tuple(view.mean), tuple(view.std))
        return Seen(size=view.crop_size[0], mean=mean, std=std)
    return Seen()


def read(name: str, weights: str) -> Pretrained:
    """The weights that ``--weights`` means, for the static network ``name``.

    Args:
        name: Of the network, as for :func:`convary.models.build`.
        weights: ``"pretrained"``, or a file: a state dict (.pt, .pth, .safetensors), or what ``convary compare`` made
            of a static network.

    Raises:
        ConfigError: the file is of another network, or of a dynamic one.
        CheckpointError: no such file, a broken one, or weights that can't be downloaded.
    """
    path = Path(weights).expanduser()
    stamp = (path.stat().st_mtime_ns, path.stat().st_size) if weights != PRETRAINED and path.is_file() else None
    return _read(name, weights, stamp)


@lru_cache(maxsize=2)
def _read(name: str, weights: str, stamp: tuple[int, int] | None) -> Pretrained:
    if weights == PRETRAINED:
        if split_width(name)[0] in SMALL:
            raise ConfigError(f"nobody trained {name}; give a file that you trained yourself: --weights FILE")
        tensors = create(name, pretrained=True).state_dict()
        return Pretrained(source=PRETRAINED, tensors=tensors, seen=seen_by(name))
    if stamp is None:
        hint = nearest(weights, (PRETRAINED, RANDOM)) or "; give weights, such as weights.pt, or pretrained"
        raise CheckpointError(f"there is no file {weights}{hint}")
    path = Path(weights).expanduser()
    content = {} if path.suffix == ".safetensors" else read_tensors(path, "save a state dict: torch.save")
    if isinstance(content, Mapping) and content.get("format") == COMPARED:
        return _compared(name, path, content)
    if isinstance(content, Mapping) and "recipe" in content:
        raise ConfigError(
            f"{path} is dynamic (convary convert or convary.save wrote it); give the weights of the static network"
        )
    tensors = read_weights(path) if path.suffix == ".safetensors" else unwrap(content, str(path))
    return Pretrained(source=weights, tensors=tensors, seen=seen_by(name))


def _compared(name: str, path: Path, content: Mapping[str, Any]) -> Pretrained:
    """The static network of a comparison."""
    check_version(dict(content), path)
    held = content["architecture"]
    if held["method"] is not None:
        raise ConfigError(f"{path} holds {content['method']}; give the static network beside it, static/seed-N")
    if held["model"] != name:
        raise ConfigError(f"{path} holds {held['model']}; give --model {held['model']}, or weights of {name}")
    known = {part: tuple(content[part]) for part in ("mean", "std") if part in content}
    classes = tuple(content["classes"]) if "classes" in content else None
    seen = Seen(size=held["shape"][1], **known)
    return Pretrained(source=str(path), tensors=content["model"], seen=seen, classes=classes)


@lru_cache(maxsize=8)
def classifier(name: str, classes: int, shape: tuple[int, int, int]) -> frozenset[str]:
    """The tensors of a network whose shapes say how many classes it has."""
    one, other = (build(name, count, shape[0], shape[1:]).state_dict() for count in (classes, classes + 1))
    return frozenset(key for key, tensor in one.items() if tensor.shape != other[key].shape)
