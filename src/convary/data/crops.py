# SPDX-License-Identifier: Apache-2.0
"""What a network sees of a photograph: in testing its middle, in training a part of it at random, as ImageNet's do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from convary.data.augmentation import derive_seed
from convary.data.image import middle, pixels
from convary.extras import require

Interpolation = Literal["bilinear", "bicubic"]
CENTRE = 0.875  # of the shorter side: 224 of 256 pixels
_functional: Any = v2.functional  # whose types know tensors only
_LONGEST = 8  # times the shorter side; of longer pictures only the middle is scaled, which keeps them in memory


@dataclass(frozen=True, kw_only=True)
class Middle:
    """The middle of a picture, uint8 (C, size, size).

    Attributes:
        size: Height and width.
        part: Of the shorter side; 1 is all of it, and 0.875 scales it to 256 for 224, as most papers do.
        interpolation: Of the scaling.
    """

    size: int
    part: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __call__(self, picture: Image.Image) -> Tensor:
        """What a network sees of the picture."""
        if self.part == 1:
            return pixels(middle(picture, self.size))
        if max(picture.size) > _LONGEST * min(picture.size):
            picture = _functional.center_crop(
                picture, [min(side, _LONGEST * min(picture.size)) for side in _hw(picture)]
            )
        mode = InterpolationMode(self.interpolation)
        scaled = _functional.resize(picture, [round(self.size / self.part)], interpolation=mode)
        return pixels(_functional.center_crop(scaled, [self.size, self.size]))


@dataclass(frozen=True, kw_only=True)
class RandomViews:
    """Parts of a picture of random size, place and shape, mirrored at random, and more; (C, size, size).

    Everything is drawn from torch's global generator, see :func:`drawing`.

    Attributes:
        size: Height and width.
        interpolation: Of the scaling.
        flip: Whether half of them are mirrored.
        rand_augment: RandAugment as timm writes it, as in ``"rand-m9-mstd0.5-inc1"``.
        erasing: Probability of filling a rectangle with noise; the view is normalised then.
        mean: Of the channels, in 0..1.
        std: Likewise.
    """

    size: int
    interpolation: Interpolation = "bilinear"
    flip: bool = True
    rand_augment: str | None = None
    erasing: float = 0.0
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> Tensor:
        """One view: uint8, or normalised float32 where ``erasing`` needs that."""
        return self._transform(picture)

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        steps: list[Callable] = [v2.RandomResizedCrop(self.size, interpolation=InterpolationMode(self.interpolation))]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.rand_augment is not None:
            steps.append(policy(self.rand_augment, self.size, self.mean, self.interpolation))
        steps.append(pixels)
        if self.erasing:
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
            noise: Any = "random"
            steps.append(v2.RandomErasing(self.erasing, value=noise))
        return v2.Compose(steps)


def policy(
    text: str, size: int, mean: tuple[float, ...], interpolation: Interpolation
) -> Callable[[Image.Image], Image.Image]:
    """RandAugment as timm has it.

    Args:
        text: As timm writes it, as in ``"rand-m9-mstd0.5-inc1"``.
        size: Of the views, for the longest shift.
        mean: Of the channels, in 0..1; what is empty is filled with it.
        interpolation: Of what turns and shears.
    """
    require("RandAugment", "vision", "timm")
    from timm.data.auto_augment import rand_augment_transform

    colour = tuple(min(255, round(255 * part)) for part in mean)
    mode = getattr(Image.Resampling, interpolation.upper())
    options = {"translate_const": int(size * 0.45), "img_mean": colour, "interpolation": mode}
    transform = rand_augment_transform(text, options)

    def draw(picture: Image.Image) -> Image.Image:
        with _drawing_elsewhere(int(torch.randint(2**32, ()))):
            return transform(picture)

    return draw


def mixed(images: Tensor, labels: Tensor, classes: int, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """A batch whose images are blended in pairs, or have a rectangle of another; where both are asked for, either.

    Args:
        images: (B, C, H, W), float.
        labels: (B,) int64.
        classes: How many.
        mixup: Alpha of the beta distribution that the share is drawn from; 0 blends nothing.
        cutmix: The same for rectangles.

    Returns:
        The images, and probabilities (B, classes) in the place of labels; both as they were where neither is asked for.
    """
    kinds = [
        kind(alpha=alpha, num_classes=classes) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    if not kinds:
        return images, labels
    return kinds[int(torch.randint(len(kinds), ()))](images, labels)


@contextmanager
def drawing(*numbers: int) -> Iterator[None]:
    """Seed torch's global generator of the CPU; afterwards it is as it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(*numbers))
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextmanager
def _drawing_elsewhere(seed: int) -> Iterator[None]:
    """The same for the generators that timm draws from, Python's and NumPy's."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])


def _hw(picture: Image.Image) -> tuple[int, int]:
    return picture.size[1], picture.size[0]
