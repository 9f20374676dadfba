# SPDX-License-Identifier: Apache-2.0
"""The batches of a comparison's training: whichever way images are read, every arm sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convary.data import DataSet, augment, epoch_order, generator
from convary.data.crops import RandomViews, drawing, mixed
from convary.data.pictures import PictureSplit
from convary.data.reading import stream
from convary.errors import DataError
from convary.train.config import CompareConfig

_AUGMENT, _CROP, _MIX = 1, 2, 3  # set the random numbers of different uses apart


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """What is drawn for an image depends on (seed, epoch, image), for a batch on (seed, step, process).

    Attributes:
        config: How.
        dataset: Has the images.
        batch_size: Images per step, over all processes.
        seed: Of order and augmentation.
        device: Where to put them.
    """

    config: CompareConfig
    dataset: DataSet
    batch_size: int
    seed: int
    device: torch.device

    @property
    def every(self) -> int:
        """Steps of an epoch; images that fill no batch are left out of it."""
        return len(self.dataset.train.labels) // self.batch_size

    def batches(self, steps: range, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A process' share of steps: images (B, C, H, W), augmented and normalised, and labels.

        Labels are (B,), or (B, classes) where images are mixed.

        Raises:
            DataError: an image, or with ``skip_broken`` all of a share, can't be read.
        """
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        for step, (images, labels) in zip(steps, self._read(self._shares(steps, rank, world)), strict=True):
            if not len(labels):
                raise DataError(f"none of the images of step {step} can be read; repair or remove them")
            epoch, position = divmod(step, self.every)
            if self.config.augment and not self.config.crops:
                rng = generator(self.seed, epoch, position, _AUGMENT, rank)
                images = augment(images, rng, padding=self.dataset.padding, flip=self.dataset.flip)
            x = self.dataset.normalise(images.to(self.device, non_blocking=True)).contiguous(memory_format=layout)
            y = labels.to(self.device, non_blocking=True)
            if self.config.mixup or self.config.cutmix:
                with drawing(self.seed, step, _MIX, rank):
                    x, y = mixed(x, y, len(self.dataset.classes), **self._alphas(epoch))
            yield x, y

    def _shares(self, steps: range, rank: int, world: int) -> Iterator[tuple[int, Tensor]]:
        """Of each step its epoch and the process' images (B,)."""
        size, ordered, order = len(self.dataset.train.labels), -1, torch.empty(0)
        for step in steps:
            epoch, position = divmod(step, self.every)
            if epoch != ordered:
                ordered, order = epoch, epoch_order(size, self.seed, epoch)
            yield epoch, order[position * self.batch_size : (position + 1) * self.batch_size][rank::world]

    def _read(self, shares: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W), as they lie in the data set or cropped, and labels (B,)."""
        train, seed = self.dataset.train, self.seed
        if self.config.crops:
            view = random_views(self.config, self.dataset)
            plan = ([(i, (seed, epoch, i, _CROP)) for i in index.tolist()] for epoch, index in shares)
        elif isinstance(train, PictureSplit):
            view = train.middle
            plan = ([(i, ()) for i in index.tolist()] for _, index in shares)
        else:
            return ((train.batch(index), train.labels[index]) for _, index in shares)
        return stream(train, plan, view, self.dataset.reading, pin=self.device.type == "cuda")

    def _alphas(self, epoch: int) -> dict[str, float]:
        """Of mixup and CutMix in an epoch."""
        risen = min(1.0, epoch / self.config.mixup_epochs) if self.config.mixup_epochs else 1.0
        return {"mixup": self.config.mixup * risen, "cutmix": self.config.cutmix}


def random_views(config: CompareConfig, dataset: DataSet) -> RandomViews:
    """What a training with crops sees of a picture."""
    return RandomViews(
        size=dataset.shape[1],
        interpolation=config.interpolation,
        flip=dataset.flip,
        rand_augment=config.rand_augment,
        erasing=config.erasing,
        mean=dataset.mean,
        std=dataset.std,
    )
