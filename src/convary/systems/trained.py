# SPDX-License-Identifier: Apache-2.0
"""A trained system out of the folder that ``convary train`` wrote."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from convary.errors import CheckpointError
from convary.systems import SYSTEMS, config_of
from convary.train.checkpoint import SYSTEM, read_checkpoint
from convary.train.fit import CHECKPOINT
from convary.train.system import System
from convary.weights import load_weights


def restored(folder: Path) -> tuple[System, nn.Module, int]:
    """The system of a run, its network in eval mode, and the steps that it was trained for.

    The checkpoint says which system with which options it is. The training data must still be where they were: the
    classes are read from them.

    Raises:
        CheckpointError: there is no checkpoint in the folder, or it is broken, or not of a system of this convary.
        DataError: the training data are missing.
    """
    path = folder / CHECKPOINT
    content = read_checkpoint(path, format=SYSTEM)
    values = dict(content["run"])
    name = values.pop("system")
    if name not in SYSTEMS:
        raise CheckpointError(f"{path} is of the system {name!r}; this convary knows {', '.join(SYSTEMS)}")
    system = config_of(name).from_dict({**values, "out": folder}).load()
    model = system.model()
    load_weights(model, content["model"], path)
    return system, model.eval(), content["step"]
