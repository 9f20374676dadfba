# SPDX-License-Identifier: Apache-2.0
"""What every data set looks like to the training loop: labels at hand, images by index, all uint8."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from convary.data.normalisation import normalised
from convary.data.photo_format import PhotoFormat
from convary.data.reading import Reading
from convary.errors import DataError


class Split(Protocol):
    """Images of one part (train or test) of a data set."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64 class numbers."""
        ...

    def batch(self, index: Tensor) -> Tensor:
        """The images of ``index`` (B,) as uint8 (B, C, H, W)."""
        ...

    def picture(self, index: int) -> Image.Image:
        """One image, as large as it is; raises DataError where it can't be read."""
        ...

    def take(self, index: Tensor) -> Split:
        """The part with only the images of ``index`` (M,), in that order."""
        ...


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Images that are in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def batch(self, index: Tensor) -> Tensor:
        """The images of ``index`` (B,) as uint8 (B, C, H, W)."""
        return self.images.index_select(0, index)  # whole images at a time, and not byte by byte as images[index]

    def picture(self, index: int) -> Image.Image:
        """One image."""
        return to_pil_image(self.images[index])

    def take(self, index: Tensor) -> TensorSplit:
        """The part with only the images of ``index`` (M,), in that order."""
        return TensorSplit(self.images[index], self.labels[index])


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """A classification set: what it is, where it comes from, and its two parts.

    Attributes:
        name: As given to :func:`convary.data.load`.
        title: For people.
        classes: One name per class, in label order.
        shape: (C, H, W) of every image.
        train: Images to learn from.
        test: Images that are only looked at.
        mean: Per channel, of pixels in 0..1, over the training images; of folders ImageNet's.
        std: Per channel, likewise.
        license: Of the images.
        source: Where the images come from.
        padding: Pixels by which a training image may be shifted.
        flip: Whether a mirrored image keeps its meaning.
        reading: How images are read from their files; None is ``Reading()``.
        left_out: What is wrong with images that were left out when the set was loaded.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str
    source: str
    padding: int = 2
    flip: bool = True
    reading: Reading | None = None
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sizes = f"{len(self.train.labels):,} training and {len(self.test.labels):,} test images"
        return f"DataSet({self.name!r}: {sizes} of {'x'.join(map(str, self.shape))}, {len(self.classes)} classes)"

    def normalise(self, images: Tensor) -> Tensor:
        """Uint8 (B, C, H, W) to float32 of about zero mean and unit variance; other images are normalised already."""
        return images if images.is_floating_point() else normalised(images, self.mean, self.std)

    @property
    def photo_format(self) -> PhotoFormat:
        """What a network that was trained on this set wants of a photograph, and what its scores are called."""
        middle = (self.reading or Reading()).middle(self.shape[1])
        return PhotoFormat(classes=self.classes, mean=self.mean, std=self.std, middle=middle)

    def digest(self) -> str:
        """Tells this set from another of its name: of all labels and of some images of both parts."""
        found = hashlib.sha256()
        for part in (self.train, self.test):
            found.update(part.labels.numpy().tobytes())
            some = torch.linspace(0, len(part.labels) - 1, min(32, len(part.labels))).long()
            found.update(part.batch(some).numpy().tobytes())
        return found.hexdigest()[:16]

    def limited(self, limit: int | None) -> DataSet:
        """The same set with ``limit`` training images, balanced over the classes; ``None`` keeps all.

        Raises:
            DataError: the limit is smaller than the number of classes or larger than the set.
        """
        if limit is None:
            return self
        total = len(self.train.labels)
        if not len(self.classes) <= limit <= total:
            raise DataError(
                f"limit_train must be between {len(self.classes)} (one image per class) and {total} "
                f"(all of {self.name}); got {limit}"
            )
        return dataclasses.replace(self, train=self.train.take(balanced(self.train.labels, limit)))

    def held_out(self, part: float) -> DataSet:
        """The same set with a part of every class' training images, at least one, in the place of the test images.

        Raises:
            DataError: a class has none left to learn from.
        """
        labels = self.train.labels
        counts = labels.bincount(minlength=len(self.classes))
        taken = (counts * part).round().clamp(min=1).long()
        if int((counts - taken).min()) < 1:
            short = int((counts - taken).argmin())
            raise DataError(
                f"class {self.classes[short]} of {self.name} has {int(counts[short])} training images: too few to hold "
                f"out {part:g} and learn from the rest; give one learning rate, or another held_out"
            )
        by_class, rank = _ranked(labels)
        is_held = torch.empty_like(labels, dtype=torch.bool)
        is_held[by_class] = rank < taken[labels[by_class]]
        held, rest = is_held.nonzero().flatten(), (~is_held).nonzero().flatten()
        return dataclasses.replace(self, train=self.train.take(rest), test=self.train.take(held))


def balanced(labels: Tensor, count: int) -> Tensor:
    """Indices (count,) of the first images of each class, as evenly as ``count`` and the classes' sizes allow.

    >>> balanced(torch.tensor([0, 0, 0, 1, 1, 0]), 4)
    tensor([0, 1, 3, 4])
    """
    by_class, rank = _ranked(labels)
    first = rank.argsort(stable=True)[:count]  # the first of every class, then the second of every class, ...
    return by_class[first].sort().values


def _ranked(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (N,) of the images class by class, and of each (N,) the number of those of its class before it."""
    counts = labels.bincount()
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return labels.argsort(stable=True), rank
