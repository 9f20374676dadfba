# SPDX-License-Identifier: Apache-2.0
"""``control``: a made-up task whose kernel must depend on the image, to see whether a router learns at all.

The images are gratings of four orientations with noise, half of them bright, half dark. The label of a bright image is
its orientation, that of a dark one the orientation turned by 90 degrees. Filters that depend on the brightness know
both rules at once; four static ones learn them slowly or not at all, by way of their thresholds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convary.data.dataset import DataSet, TensorSplit

CLASSES = ("0°", "45°", "90°", "135°")
SIZE, PERIOD = 16, 4.0  # pixels
BRIGHT, DARK, CONTRAST, NOISE = 170.0, 85.0, 40.0, 20.0  # grey levels
TRAIN, TEST = 6400, 4000


def load_control() -> DataSet:
    """The set, the same every time."""
    rng = torch.Generator().manual_seed(0)
    train, test = _split(TRAIN, rng), _split(TEST, rng)
    pixels = train.images.double() / 255
    return DataSet(
        name="control",
        title="Gratings whose label depends on the brightness (made up as a control)",
        classes=CLASSES,
        shape=(1, SIZE, SIZE),
        train=train,
        test=test,
        mean=(float(pixels.mean()),),
        std=(float(pixels.std()),),
        license="Apache-2.0 (computed)",
        source="convary.data.control",
        padding=0,
        flip=False,
    )


def _split(count: int, rng: torch.Generator) -> TensorSplit:
    orientation = torch.randint(4, (count,), generator=rng)
    bright = torch.rand(count, generator=rng) < 0.5
    images = _gratings(orientation * math.pi / 4, torch.rand(count, generator=rng) * 2 * math.pi)
    images = images * CONTRAST + torch.randn(images.shape, generator=rng) * NOISE
    images += torch.where(bright, BRIGHT, DARK)[:, None, None]
    labels = torch.where(bright, orientation, (orientation + 2) % 4)
    return TensorSplit(images.round().clamp(0, 255).byte().unsqueeze(1), labels)


def _gratings(angle: Tensor, phase: Tensor) -> Tensor:
    """(N, SIZE, SIZE) waves from -1 to 1 along each angle (N,), in radians."""
    at = torch.arange(SIZE, dtype=torch.float32)
    along = at[None, None] * angle.cos()[:, None, None] + at[None, :, None] * angle.sin()[:, None, None]
    return (2 * math.pi / PERIOD * along + phase[:, None, None]).sin()
