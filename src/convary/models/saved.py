# SPDX-License-Identifier: Apache-2.0
"""A converted network in one file: which network, which method, which layers, and the weights."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convary.convert import Plan, convert
from convary.errors import CheckpointError
from convary.files import write_whole
from convary.methods import config_from_json
from convary.models.registry import create
from convary.weights import load_exactly
from convary.where import Selector

FORMAT, VERSION = "convary model", 1


def save(path: str | Path, name: str, plan: Plan, model: nn.Module) -> None:
    """Write a converted network, whole or not at all.

    Args:
        path: The file; replaced at once.
        name: The network's name, as ``create`` takes it.
        plan: What was applied to it.
        model: ``plan.apply()``, trained or not.

    Raises:
        ConvaryError: the file can't be written; it is what it was before.
    """
    buffer = io.BytesIO()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "method": plan.config.to_json(),
        "layers": list(plan.converted),
        "state_dict": model.state_dict(),
    }
    torch.save(content, buffer)
    write_whole(Path(path), buffer.getvalue())


def restore(path: str | Path) -> nn.Module:
    """The network that ``convary convert`` or ``save`` wrote, in eval mode; nothing in the file is executed.

    Raises:
        CheckpointError: no such file, not such a file, or one that does not fit the network it names.
    """
    content = _read(Path(path))
    chosen = frozenset(content["layers"])
    layers = Selector(f"the layers of {path}", lambda site: site.name in chosen)
    model = convert(create(content["model"]), config_from_json(content["method"]), layers, upcycle=False)
    load_exactly(model, content["state_dict"], str(path))
    return model.eval()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; convary convert writes one with --out")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or not a file of convary convert; write it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a file of convary convert; for weights alone use convary.load_released")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')}, this convary reads {VERSION}; update it")
    return content
