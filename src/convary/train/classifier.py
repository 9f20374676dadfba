# SPDX-License-Identifier: Apache-2.0
"""A classifier that ``convary compare`` trained, or a file exported from it, on one's own photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convary._exported import SUFFIXES, note, open_exported
from convary.data.photo_format import KEY, PhotoFormat
from convary.data.reading import Reading
from convary.errors import CheckpointError
from convary.models import restore
from convary.train.checkpoint import read_checkpoint


class Classifier:
    """A network, and how it sees a photograph: as the test images of its training were seen.

    Args:
        path: A checkpoint, ``OUT/METHOD/seed-N/checkpoint.pt``; or what ``convary export`` made of it, .onnx or .pt2.
        device: Where the network of a checkpoint runs; exported files run on the CPU.

    Attributes:
        format: What it wants of a photograph, and its classes.

    Raises:
        CheckpointError: the file is none of ``convary compare``; or it does not say its classes or how images are
            normalised.
    """

    format: PhotoFormat

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(path)
        read = _exported if path.suffix in SUFFIXES else _trained
        self.format, self.scores = read(path, device)

    @torch.no_grad()
    def __call__(self, photo: Path) -> dict[str, float]:
        """The probability of each class, likeliest first.

        Raises:
            DataError: the file is no readable image.
        """
        return self.format.named(self.scores(self.format.image(photo)[None])[0].cpu())


Reader = tuple[PhotoFormat, Callable[[Tensor], Tensor]]


def _trained(path: Path, device: torch.device | str) -> Reader:
    content = read_checkpoint(path)
    if (found := photo_format(content)) is None:
        raise CheckpointError(f"{path} does not say how its images are normalised; train again, or export it")
    model = restore(path).to(device)
    return found, lambda images: model(images.to(device))


def _exported(path: Path, device: torch.device | str) -> Reader:
    if not (held := note(path, KEY)):
        raise CheckpointError(
            f"{path} does not say its classes; export it from a checkpoint of convary compare, or with "
            "convary.export(..., notes=dataset.photo_format.notes())"
        )
    file = open_exported(path)
    return PhotoFormat.from_note(held), lambda images: file.run(images.expand(file.batch or 1, -1, -1, -1))


def photo_format(checkpoint: dict[str, Any]) -> PhotoFormat | None:
    """What the network of a checkpoint of ``compare`` wants of a photograph; None where it does not say so."""
    if "mean" not in checkpoint:
        return None
    lists = {name: tuple(checkpoint[name]) for name in ("classes", "mean", "std")}
    run = {name: checkpoint["run"].get(name) for name in ("crops", "test_size", "interpolation")}
    reading = Reading(**{name: value for name, value in run.items() if value is not None})
    return PhotoFormat(**lists, middle=reading.middle(checkpoint["architecture"]["shape"][1]))
