# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: tensors and plain values only, written whole, read without running any code of theirs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convary.errors import CheckpointError
from convary.files import read_tensors, write_whole
from convary.models.architecture import COMPARED, VERSION, check_version, trained

if TYPE_CHECKING:
    from convary.train.system import System

SYSTEM = "convary system checkpoint"


def write_checkpoint(path: Path, content: dict[str, Any], *, format: str = COMPARED) -> None:
    """Write whole or not at all; raises ConvaryError where that is not possible."""
    buffer = io.BytesIO()
    torch.save({"format": format, "version": VERSION, **content}, buffer)
    write_whole(path, buffer.getvalue())


def read_checkpoint(path: str | Path, *, format: str = COMPARED) -> dict[str, Any]:
    """What :func:`write_checkpoint` wrote.

    Args:
        path: The file.
        format: What it must be a checkpoint of.

    Raises:
        CheckpointError: no such file; a truncated one; a file of something else; of another version.
    """
    path = Path(path)
    if not path.is_file():
        places = {COMPARED: "compare writes OUT/METHOD/seed-N/checkpoint.pt", SYSTEM: "train writes OUT/checkpoint.pt"}
        raise CheckpointError(f"no checkpoint {path}; convary {places[format]}")
    own = path.name == "checkpoint.pt"
    content = read_tensors(path, "delete it to train that run again" if own else "give a file that convary wrote")
    if not isinstance(content, dict) or content.get("format") != format:
        writer = {COMPARED: "compare", SYSTEM: "train"}[format]
        raise CheckpointError(f"{path} is not such a checkpoint; give a file that convary {writer} wrote")
    check_version(content, path)
    return content


def read_own(path: Path, system: System) -> dict[str, Any]:
    """The checkpoint of this very run.

    Raises:
        CheckpointError: there is none, or it is truncated, foreign or of another run.
    """
    content = read_checkpoint(path, format=system.format)
    if any(content[name] != value for name, value in system.identity().items()):
        raise CheckpointError(f"{path} is of another run; delete it to train that run again")
    return content


def load_model(path: str | Path) -> nn.Module:
    """The trained network of a checkpoint, in eval mode.

    Raises:
        CheckpointError: see :func:`read_checkpoint`; or the weights do not fit the network.
    """
    return trained(read_checkpoint(path), Path(path))
