# SPDX-License-Identifier: Apache-2.0
"""A classifier that ``convary compare`` trained, on one's own photographs."""

from __future__ import annotations

from pathlib import Path

import torch

from convary.data.crops import CENTRE, Middle
from convary.data.dataset import normalised
from convary.data.image import open_image
from convary.errors import CheckpointError
from convary.train.checkpoint import load_model, read_checkpoint


class Classifier:
    """The network of a checkpoint, and how it sees a photograph: as the test images of its training were seen.

    Args:
        path: The checkpoint, ``OUT/METHOD/seed-N/checkpoint.pt``.
        device: Where the network runs.

    Raises:
        CheckpointError: the file is none of ``convary compare``; or of a version that did not write down how images
            are normalised.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        content = read_checkpoint(path)
        if "mean" not in content:
            raise CheckpointError(f"{path} does not say how its images are normalised; train again, or export it")
        self.classes: list[str] = content["classes"]
        self.mean, self.std = content["mean"], content["std"]
        self.device, self.model = device, load_model(path).to(device)
        channels, size, _ = content["architecture"]["shape"]
        self.mode, run = "RGB" if channels == 3 else "L", content["run"]
        self.middle = Middle(size=size)
        if run.get("crops"):
            interpolation = run.get("interpolation", "bilinear")
            self.middle = Middle(size=run.get("test_size") or size, part=CENTRE, interpolation=interpolation)

    @torch.no_grad()
    def __call__(self, photo: Path) -> dict[str, float]:
        """The probability of each class, likeliest first.

        Raises:
            DataError: the file is no readable image.
        """
        image = self.middle(open_image(photo, self.mode))[None].to(self.device)
        scores = self.model(normalised(image, self.mean, self.std)).softmax(1)[0]
        order = scores.argsort(descending=True).tolist()
        return {self.classes[index]: float(scores[index]) for index in order}
