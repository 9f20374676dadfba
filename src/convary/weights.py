# SPDX-License-Identifier: Apache-2.0
"""Weights from files and into models: read without running code, fitted by name, refused by name."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convary.errors import CheckpointError, nearest
from convary.extras import require
from convary.files import read_tensors

_SHOWN = 8


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU; see ``unwrap`` for what is taken off around them.

    Args:
        path: A file of ``torch.save``, read with ``weights_only=True``, or a ``.safetensors`` file.

    Raises:
        CheckpointError: no such file, a truncated one, one that holds no tensors by name, or a pickle that would run
            code, which is never executed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; give a checkpoint, such as weights.pt")
    if path.suffix == ".safetensors":
        require("reading .safetensors", "vision", "safetensors")
        return unwrap(_safetensors(path), str(path))
    return unwrap(read_tensors(path, "save a state dict: torch.save(model.state_dict(), path)"), str(path))


def _safetensors(path: Path) -> dict[str, Tensor]:
    library: Any = importlib.import_module("safetensors")
    try:
        return importlib.import_module("safetensors.torch").load_file(path)
    except (library.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no .safetensors file: {error}") from error


def unwrap(state_dict: Any, what: str = "the checkpoint") -> dict[str, Tensor]:
    """The tensors by name: a ``state_dict`` or ``model`` entry around them and a ``module.`` before are taken off.

    Raises:
        CheckpointError: not tensors by name.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"a state dict maps names to tensors; {what} is a {type(state_dict).__name__}. "
            "Read files with convary.load_released(model, path), or torch.load(path, weights_only=True)"
        )
    for key in ("state_dict", "model"):
        inner = state_dict.get(key)
        if isinstance(inner, Mapping):
            state_dict = inner
    wrong = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong or not state_dict:
        found = f"{wrong[0]!r} is a {type(state_dict[wrong[0]]).__name__}" if wrong else "it is empty"
        raise CheckpointError(
            f"a state dict maps names to tensors; of {what} {found}. Pass the part that holds the weights"
        )
    if all(key.startswith("module.") for key in state_dict):
        return {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict)


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load tensors that must fit a model one to one.

    Args:
        model: Gets the weights; it stays as it was where they do not fit.
        tensors: By the model's own names.
        what: Where they come from, for the message.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; names it, and the nearest.
    """
    own = model.state_dict()
    problems = missing(own.keys() - tensors.keys(), tensors.keys() - own.keys())
    problems += left_over((name for name in tensors if name not in own), own)
    problems += other_shapes(tensors, own)
    if problems:
        raise CheckpointError(f"{what} does not fit {type(model).__name__}: {listed(problems)}")
    model.load_state_dict(dict(tensors))


def load_weights(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load a state dict that must fit exactly; raises CheckpointError naming ``path`` where it does not."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit the network that it describes: {reason}") from error


def with_counters(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the batches that norms counted, which files of before 2018 lack and nothing of ours reads, as ``own``'s."""
    lacking = {name: own[name] for name in own.keys() - tensors.keys() if name.endswith("num_batches_tracked")}
    return {**tensors, **lacking}


def missing(names: Iterable[str], candidates: Collection[str]) -> list[str]:
    """One problem per tensor that a checkpoint lacks."""
    return [f"{name} is missing{nearest(name, candidates)}" for name in sorted(names)]


def left_over(names: Iterable[str], own: Collection[str]) -> list[str]:
    """One problem per tensor that the model has no place for."""
    return [f"{name} is left over{nearest(name, own)}" for name in names]


def other_shapes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """One problem per tensor whose shape differs."""
    return [
        f"{name} is {tuple(tensor.shape)} in the checkpoint but {tuple(own[name].shape)} in the model"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]


def listed(problems: list[str]) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{'; '.join(problems[:_SHOWN])}{more}"
