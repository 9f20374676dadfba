# SPDX-License-Identifier: Apache-2.0
"""A converted network in one file that says itself which network it is."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from convary import _checkpoint as checkpoint
from convary.errors import CheckpointError
from convary.models.registry import create

_NETWORK = "network"


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
    """The network that ``convary convert`` or ``save`` wrote, in eval mode; nothing in the file is executed.

    Raises:
        CheckpointError: no such file, not such a file, or one that does not fit the network it names.
        ConfigError: a recipe that does not fit it, or of a newer convary.
    """
    read = checkpoint.read(path)
    if _NETWORK not in read.notes:
        usual = "read it with convary.load(static, path), or write it with convary.models.save"
        opener = checkpoint.OPENERS.get(str(read.notes.get("format")), usual)
        raise CheckpointError(f"{path} does not say which network it is of in a way that restore reads; {opener}")
    return read.fill(create(read.notes[_NETWORK]), inplace=True).eval()
