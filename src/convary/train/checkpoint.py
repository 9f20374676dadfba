# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: tensors and plain values only, written whole, read without running any code of theirs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convary._convert import convert
from convary.data import DataSet, derive_seed
from convary.errors import CheckpointError
from convary.files import read_tensors, write_whole
from convary.methods import MethodConfig, config_from_json
from convary.models import attend, build, comparator_from_json
from convary.nn import Router
from convary.selector import selector

FORMAT = "convary checkpoint"
SYSTEM = "convary system checkpoint"
VERSION = 1
_CONVERSION = 1  # sets the conversion's random numbers apart from the static network's


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is needed to build a network again.

    Attributes:
        model: As for :func:`convary.models.build`.
        num_classes: Rows of the classifier.
        shape: (C, H, W) of the images.
        method: JSON of the config of the method or the comparator; None for the static network.
        init: ``"paper"``, ``"neutral"`` or ``"upcycle"``.
        seed: Of the initial weights.
        where: Which layers are dynamic, as text.
    """

    model: str
    num_classes: int
    shape: tuple[int, int, int]
    method: str | None
    init: str
    seed: int
    where: str = "paper"

    @classmethod
    def of(
        cls, model: str, dataset: DataSet, config: MethodConfig | None, init: str, seed: int, where: str = "paper"
    ) -> Architecture:
        """The architecture for a data set."""
        method = None if config is None else config.to_json()
        return cls(
            model=model,
            num_classes=len(dataset.classes),
            shape=dataset.shape,
            method=method,
            init=init,
            seed=seed,
            where=where,
        )

    def build(self, start: dict[str, Any] | None = None) -> nn.Module:
        """The network with its initial weights; the same every time.

        Args:
            start: State dict of the static network, in place of random weights.
        """
        model = build(self.model, self.num_classes, self.shape[0], self.shape[1:], self.seed)
        if start is not None:
            model.load_state_dict(start)
        if self.method is None:
            return model
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, _CONVERSION))
            comparator = comparator_from_json(self.method)
            if comparator is not None:
                return attend(model, comparator, upcycle=self.init == "upcycle", inplace=True)
            config = config_from_json(self.method)
            model = convert(model, config, selector(self.where, config), upcycle=self.init == "upcycle")
        if self.init == "neutral":
            for router in model.modules():
                if isinstance(router, Router):
                    _silence(router)
        return model


def _silence(router: Router) -> None:
    """Start a router with the same coefficients for every image, and at once at its final temperature.

    Routers that are annealed to 0 (KernelWarehouse) start neutral as published, and are left alone.
    """
    if router.final_temperature > 0:
        router.neutral_()
        if router.temperature is not None:
            router.temperature.fill_(router.final_temperature)


def write_checkpoint(path: Path, content: dict[str, Any], *, format: str = FORMAT) -> None:
    """Write whole or not at all; raises ConvaryError where that is not possible."""
    buffer = io.BytesIO()
    torch.save({"format": format, "version": VERSION, **content}, buffer)
    write_whole(path, buffer.getvalue())


def read_checkpoint(path: str | Path, *, format: str = FORMAT) -> dict[str, Any]:
    """What :func:`write_checkpoint` wrote.

    Args:
        path: The file.
        format: What it must be a checkpoint of.

    Raises:
        CheckpointError: no such file; a truncated one; a file of something else; of another version.
    """
    path = Path(path)
    if not path.is_file():
        places = {FORMAT: "compare writes OUT/METHOD/seed-N/checkpoint.pt", SYSTEM: "train writes OUT/checkpoint.pt"}
        raise CheckpointError(f"no checkpoint {path}; convary {places[format]}")
    content = read_tensors(path, "delete it to train that run again")
    if not isinstance(content, dict) or content.get("format") != format:
        writer = {FORMAT: "compare", SYSTEM: "train"}[format]
        raise CheckpointError(f"{path} is not such a checkpoint; give a file that convary {writer} wrote")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')}, this convary reads {VERSION}; use its own")
    return content


def load_model(path: str | Path) -> nn.Module:
    """The trained network of a checkpoint, in eval mode.

    Raises:
        CheckpointError: see :func:`read_checkpoint`; or the weights do not fit the network.
    """
    path = Path(path)
    content = read_checkpoint(path)
    model = Architecture(**content["architecture"]).build()
    load_weights(model, content["model"], path)
    return model.eval()


def load_weights(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load a state dict that must fit exactly; raises CheckpointError naming ``path`` where it does not."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit the network that it describes: {reason}") from error
