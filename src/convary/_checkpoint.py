# SPDX-License-Identifier: Apache-2.0
"""A converted network in one file, whatever its class: its recipe and its weights."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convary._recipe import recipe, reconvert
from convary.errors import CheckpointError
from convary.extras import require
from convary.files import read_tensors, write_whole
from convary.nn.arguments import Model
from convary.weights import load_exactly, unwrap

_METADATA = "convary"  # the entry of a .safetensors file's metadata that holds the recipe


def save(model: nn.Module, path: str | Path, **notes: str) -> None:
    """Write a converted network, whole or not at all.

    Args:
        model: What ``convert`` made, trained or not.
        path: A ``.safetensors`` file, which keeps the recipe in its metadata; any other is written by ``torch.save`` as
            ``{"recipe": ..., "state_dict": ...}`` and read with ``weights_only=True``.
        **notes: More to keep, by name: what builds the static network, for example.

    Raises:
        ConfigError: ``convert`` made no layer of the model.
        ConvaryError: the file can't be written; it is what it was before.

    Examples:
        >>> import tempfile
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> dynamic = cv.convert(static, cv.ODConv(experts=2), cv.where.all())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cv.save(dynamic, f"{folder}/model.pt")
        ...     again = cv.load(static, f"{folder}/model.pt")
        >>> torch.equal(again[0].weight, dynamic[0].weight)
        True
    """
    path, made, state = Path(path), recipe(model), model.state_dict()
    if path.suffix == ".safetensors":
        require("writing .safetensors", "vision", "safetensors")
        held = {"format": "pt", _METADATA: json.dumps(made), **notes}
        content = importlib.import_module("safetensors.torch").save(_distinct(state), held)
    else:
        buffer = io.BytesIO()
        torch.save({**notes, "recipe": made, "state_dict": state}, buffer)
        content = buffer.getvalue()
    write_whole(path, content)


def load(model: Model, path: str | Path, *, inplace: bool = False) -> Model:
    """The network of a checkpoint: ``model`` made dynamic by the recipe, with the weights.

    Args:
        model: A static network of the same class, as the class builds it.
        path: A file of ``save``, or of ``torch.save({"recipe": convary.recipe(model), "state_dict":
            model.state_dict()}, path)`` with whatever else beside them; nothing in it is executed.
        inplace: Change ``model`` instead of a copy.

    Returns:
        The converted network, in the mode of ``model``.

    Raises:
        CheckpointError: no such file, a truncated one, one without a recipe, or weights that do not fit.
        ConfigError: the recipe does not fit the model; see ``reconvert``.

    Examples:
        >>> import tempfile
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cv.save(cv.convert(static, cv.CondConv(experts=2), cv.where.all()), f"{folder}/model.pt")
        ...     type(cv.load(static, f"{folder}/model.pt")[0]).__name__
        'CondConv2d'
    """
    return read(path).fill(model, inplace=inplace)


@dataclass(frozen=True)
class Checkpoint:
    """What a file of ``save`` holds, on the CPU.

    Attributes:
        path: The file.
        recipe: Of the conversion.
        weights: By name.
        notes: Whatever else is there.
    """

    path: Path
    recipe: dict[str, Any]
    weights: dict[str, Tensor]
    notes: dict[str, Any]

    def fill(self, model: Model, *, inplace: bool = False) -> Model:
        """See ``load``."""
        model = reconvert(model, self.recipe, inplace=inplace)
        load_exactly(model, _as_shared(model, self.weights), str(self.path))
        return model


# What opens the checkpoints of trainings, by their format; see train.checkpoint.
OPENERS = {
    "convary checkpoint": "convary compare wrote it: read it with convary.models.restore(path), or convary export it",
    "convary system checkpoint": "convary train wrote it: draw with convary predict, or read it with "
    "convary.systems.trained.restored(folder)",
}


def read(path: str | Path) -> Checkpoint:
    """What a checkpoint holds.

    Raises:
        CheckpointError: no such file, a truncated one, or one without a recipe.
    """
    return converted(Path(path), *contents(path))


SAVED = "convary.save(model, path)"


def contents(path: str | Path, writer: str = SAVED) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a .safetensors file by name, of another none; and whatever else is there.

    Args:
        path: The file.
        writer: What writes a file that the caller reads, for messages.

    Raises:
        CheckpointError: no such file, or a truncated one.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; write one with {writer}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else ({}, _read_pickle(path, writer))


def converted(path: Path, tensors: dict[str, Tensor], rest: dict[str, Any], writer: str = SAVED) -> Checkpoint:
    """What the contents of a file are, which must have a recipe; ``writer`` as for ``contents``."""
    made = rest.pop("recipe", None)
    if not isinstance(made, Mapping):
        if (opener := OPENERS.get(str(rest.get("format")))) is not None:
            raise CheckpointError(f"{path} is a {rest['format']} without a recipe; {opener}")
        beside = ", or put convary.recipe(model) beside its weights under 'recipe'" if writer == SAVED else ""
        raise CheckpointError(
            f"{path} holds no recipe, so nobody knows which of its layers are dynamic; write it with {writer}{beside}. "
            "If you know how it was converted: convary.convert(static, config, where, upcycle=False), then "
            "load_state_dict"
        )
    return Checkpoint(path, dict(made), tensors or unwrap(rest, str(path)), rest)


def _read_pickle(path: Path, writer: str) -> dict[str, Any]:
    content = read_tensors(path, f"write it with {writer}")
    return dict(content) if isinstance(content, Mapping) else {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    require("reading .safetensors", "vision", "safetensors")
    library: Any = importlib.import_module("safetensors")
    try:
        with library.safe_open(path, framework="pt") as file:
            rest: dict[str, Any] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (library.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no .safetensors file: {error}") from error
    if _METADATA in rest:
        rest["recipe"] = json.loads(rest.pop(_METADATA))
    return tensors, rest


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under the first of its names, as .safetensors wants them: layers may share one."""
    seen: set[tuple[Any, ...]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key not in seen:
            kept[name] = tensor.contiguous()
            seen.add(key)
    return kept


def _as_shared(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With what a .safetensors file has once under every name that the model has for it."""
    full = dict(tensors)
    own = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(own.items()) if name in tensors}
    for name, tensor in own.items():
        if name not in full and id(tensor) in first:
            full[name] = full[first[id(tensor)]]
    return full
