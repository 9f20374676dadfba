# SPDX-License-Identifier: Apache-2.0
"""A converted network in one file that says itself which network it is."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from convary import _checkpoint as checkpoint
from convary.errors import CheckpointError
from convary.models.architecture import COMPARED, trained
from convary.models.registry import create

_NETWORK = "network"
_WRITERS = "convary convert, convary compare or convary.models.save"


def save(path: str | Path, name: str, model: nn.Module) -> None:
    """Write a converted network, whole or not at all; see ``convary.save``.

    Args:
        path: The file; replaced at once.
        name: The network's name, as ``create`` takes it.
        model: What ``convert`` made of it, trained or not.

    Raises:
        ConfigError: ``convert`` made no layer of the model.
        ConvaryError: the file can't be written; it is what it was before.
    """
    checkpoint.save(model, path, **{_NETWORK: name})


def restore(path: str | Path) -> nn.Module:
    """The network that ``convary convert``, ``save`` or ``convary compare`` wrote, in eval mode.

    Nothing in the file is executed.

    Args:
        path: The file; of ``convary compare`` OUT/METHOD/seed-N/checkpoint.pt.

    Raises:
        CheckpointError: no such file, not such a file, or one that does not fit the network it names.
        ConfigError: a recipe that does not fit it, or of a newer convary.
    """
    path = Path(path)
    tensors, notes = checkpoint.contents(path, _WRITERS)
    if notes.get("format") == COMPARED:
        return trained(notes, path)
    read = checkpoint.converted(path, tensors, notes, _WRITERS)
    if _NETWORK not in read.notes:
        raise CheckpointError(
            f"{path} does not say which network it is of; read it with convary.load(static, path), or write it with "
            "convary.models.save"
        )
    return read.fill(create(read.notes[_NETWORK]), inplace=True).eval()
