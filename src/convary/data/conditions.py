# SPDX-License-Identifier: Apache-2.0
"""``cifar10-conditions``: CIFAR-10 under four conditions, for one network that must serve them all.

A camera sees by day and by night, upright and on its side. Every image, of training and of test, is in one condition,
which the network is not told: as it is, a negative, on its side, or at night, with a quarter of the light and with
noise. The share of each is a quarter.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from convary.data.cifar import load_cifar
from convary.data.dataset import DataSet, Split, TensorSplit

CONDITIONS = ("as it is", "negative", "on its side", "at night")
LIGHT, NOISE = 0.25, 8.0  # of the night; noise in grey levels


def load_conditions(root: Path) -> DataSet:
    """The set, the same every time.

    Args:
        root: As for ``cifar10``.

    Raises:
        DataError: CIFAR-10 is missing or broken.
    """
    plain = load_cifar("cifar10", root)
    rng = torch.Generator().manual_seed(0)
    train, test = (_split(part, rng) for part in (plain.train, plain.test))
    std, mean = torch.std_mean(train.images.double().div(255), dim=(0, 2, 3))
    return dataclasses.replace(
        plain,
        name="cifar10-conditions",
        title=f"CIFAR-10 under four conditions: {', '.join(CONDITIONS)}",
        train=train,
        test=test,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )


def conditions_of(count: int) -> Tensor:
    """The number (count,) of each image's condition in :data:`CONDITIONS`: in turn, for the images are shuffled."""
    return torch.arange(count) % len(CONDITIONS)


def _split(part: Split, rng: torch.Generator) -> TensorSplit:
    count = len(part.labels)
    images, condition = part.batch(torch.arange(count)).clone(), conditions_of(count)
    images[condition == 1] = 255 - images[condition == 1]
    images[condition == 2] = images[condition == 2].rot90(1, (2, 3))
    night = images[condition == 3] * LIGHT
    night += torch.randn(night.shape, generator=rng) * NOISE
    images[condition == 3] = night.round().clamp(0, 255).byte()
    return TensorSplit(images, part.labels)
