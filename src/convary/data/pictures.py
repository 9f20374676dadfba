# SPDX-License-Identifier: Apache-2.0
"""Photographs that are decoded when they are asked for, wherever they lie; a set that fits is decoded once."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from convary.data.crops import Middle
from convary.data.dataset import TensorSplit
from convary.data.reading import Broken, Reading, stream
from convary.errors import DataError

FEW = 5  # broken images that are named
IN_MEMORY = 1 << 30  # bytes; a set that decodes to less is decoded once, so a broken image is found at the start


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureSplit(abc.ABC):
    """Images that are decoded when they are asked for.

    Attributes:
        labels: (N,) int64.
        middle: What is looked at where nothing is drawn.
        skips: Whether a broken image is black in :meth:`batch`, rather than an error.
    """

    labels: Tensor
    middle: Middle
    skips: bool = False

    @abc.abstractmethod
    def decoded(self, index: int) -> Image.Image:
        """One image; raises DataError naming a broken one."""

    @abc.abstractmethod
    def take(self, index: Tensor) -> PictureSplit:
        """The part with only the images of ``index`` (M,), in that order."""

    def picture(self, index: int) -> Image.Image:
        """One image, as large as it is; raises DataError naming a broken one."""
        try:
            return self.decoded(index)
        except DataError as error:
            if self.skips:
                raise
            raise DataError(f"{error}; or go on without it: convary compare --skip-broken") from error

    def batch(self, index: Tensor) -> Tensor:
        """The images of ``index`` (B,) as uint8 (B, 3, size, size); raises DataError naming a broken one."""
        images = torch.zeros(len(index), 3, self.middle.size, self.middle.size, dtype=torch.uint8)
        for place, i in enumerate(index.tolist()):
            try:
                images[place] = self.middle(self.picture(i))
            except DataError:
                if not self.skips:
                    raise
        return images


def settled(
    split: PictureSplit, reading: Reading, left_out: list[str], *, of: str, tested: bool
) -> TensorSplit | PictureSplit:
    """A part of a set, decoded where it fits in memory and is not cropped; broken test images are left out here.

    Args:
        split: The part.
        reading: How images are read.
        left_out: Gets what is wrong with each image that is left out.
        of: What the set is called in an error.
        tested: Whether it is the part to test on.

    Raises:
        DataError: a broken image that is not to be left out, or nothing but such.
    """
    labels, middle = split.labels, split.middle
    fits = not reading.crops and len(labels) * 3 * middle.size**2 <= IN_MEMORY
    if not fits and not (tested and split.skips):
        return split
    broken: list[Broken] = []
    plan = ([(i, ())] for i in range(len(labels)))
    read = stream(split, plan, middle if fits else _nothing, reading, note=broken.append)
    images = [image for image, _ in read if len(image)]
    if broken and not split.skips:
        raise DataError(_named(broken))
    left_out += [image.reason for image in broken]
    whole = torch.ones(len(labels), dtype=torch.bool)
    whole[[image.index for image in broken]] = False
    index = whole.nonzero().flatten()
    if not len(index):
        raise DataError(f"none of the {len(labels)} images of {of} to {'test' if tested else 'train'} on can be read")
    return TensorSplit(torch.cat(images), labels[index]) if fits else split.take(index)


def _named(broken: list[Broken]) -> str:
    """What is wrong with all of them, so that they are repaired at once; of many the first few."""
    if len(broken) == 1:
        return broken[0].reason
    reasons = [image.reason.partition(";")[0] for image in broken[:FEW]]
    rest = f"; and {len(broken) - FEW} more" * (len(broken) > FEW)
    return (
        f"{len(broken)} images can't be read: {'; '.join(reasons)}{rest}; repair or remove them, or go on without "
        "them: convary compare --skip-broken"
    )


def _nothing(picture: Image.Image) -> Tensor:
    return torch.empty(0)
