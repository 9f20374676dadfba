# SPDX-License-Identifier: Apache-2.0
"""What a classifier wants of a photograph and what its scores are called; an exported file carries it along."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from convary.data.crops import Middle
from convary.data.image import open_image
from convary.data.normalisation import normalised
from convary.errors import CheckpointError

KEY = "convary.photo_format"  # of the metadata of an exported file


@dataclass(frozen=True, kw_only=True)
class PhotoFormat:
    """What a classifier wants of a photograph, and what its scores are called.

    Attributes:
        classes: One name per score, in their order.
        mean: Per channel, of pixels in 0..1; one number is of grey images, three are of red, green and blue.
        std: Per channel, likewise.
        middle: The part of a photograph that is looked at, and its size.

    Examples:
        >>> from convary import data
        >>> data.load("fashion-mnist-mini").photo_format.shape
        (1, 28, 28)
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    middle: Middle

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        return len(self.mean), self.middle.size, self.middle.size

    def image(self, photo: Path) -> Tensor:
        """A photograph as the network wants it: (C, H, W) float32, as test images were in training.

        Raises:
            DataError: the file is no readable image.
        """
        picture = open_image(photo, "RGB" if len(self.mean) == 3 else "L")
        return normalised(self.middle(picture), self.mean, self.std)

    def named(self, scores: Tensor) -> dict[str, float]:
        """The probability of each class from scores (classes,), likeliest first."""
        likely = scores.softmax(0)
        return {self.classes[index]: float(likely[index]) for index in likely.argsort(descending=True).tolist()}

    def notes(self) -> dict[str, str]:
        """For ``convary.export``: what it writes beside the network for ``convary predict``, and for any other reader.

        Examples:
            >>> from convary import data
            >>> print(data.load("control").photo_format.notes()["convary.photo_format"])
            {"classes": ["0°", "45°", "90°", "135°"], "mean": [0.49...], ... "size": 16, ...}
        """
        values = {name: getattr(self, name) for name in ("classes", "mean", "std")}
        return {KEY: json.dumps(values | dataclasses.asdict(self.middle), ensure_ascii=False)}

    @classmethod
    def from_note(cls, note: str) -> PhotoFormat:
        """What was written into a file.

        Raises:
            CheckpointError: it is none that this version writes.
        """
        try:
            held = json.loads(note)
            lists = {name: tuple(held.pop(name)) for name in ("classes", "mean", "std")}
            return cls(**lists, middle=Middle(**held))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{note[:80]!r} does not say how photographs are read; export the file again"
            ) from error
