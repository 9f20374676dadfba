# SPDX-License-Identifier: Apache-2.0
"""Batches of images read ahead by worker processes; what is drawn for an image depends on its numbers alone.

A worker sends uint8, a quarter of what normalised images are, and a broken file as words: the first process decides
whether to stop there or to go on without it.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convary.data.crops import CENTRE, Interpolation, Middle, drawing
from convary.errors import DataError
from convary.files import writing

if TYPE_CHECKING:
    from convary.data.dataset import Split

AHEAD = 4  # batches per worker
Key = tuple[int, tuple[int, ...]]  # an image, and the numbers that seed what is drawn for it
LOST = "DataLoader worker"  # what torch says of one that died begins so


class BrokenImageWarning(UserWarning):
    """An image can't be read and is left out."""


class LostWorkerError(DataError):
    """A process that reads images was killed."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images of a set are read.

    Attributes:
        crops: Test on the centres of larger images, as most papers do; the images stay in their files.
        test_size: Height and width for the test images, where they differ from the training images'; with ``crops``.
        interpolation: Of the scaling, with ``crops``.
        workers: Processes that read images from files; 0: this one.
        skipped: A file that broken images are listed in, and left out; without it the first one is an error.
    """

    crops: bool = False
    test_size: int | None = None
    interpolation: Interpolation = "bilinear"
    workers: int = 0
    skipped: Path | None = None

    def middle(self, size: int) -> Middle:
        """What is looked at in testing, of images that are trained on at this size."""
        if not self.crops:
            return Middle(size=size)
        return Middle(size=self.test_size or size, part=CENTRE, interpolation=self.interpolation)


class Broken(NamedTuple):
    """What a worker sends instead of an image that can't be read."""

    index: int
    reason: str


def refuse(broken: Broken) -> None:
    """Raise for an image that can't be read."""
    raise DataError(broken.reason)


class Listing:
    """Lists images that can't be read in a file, and warns of them.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.listed = path, set[str]()

    def __call__(self, broken: Broken) -> None:
        """Note an image."""
        self.note(broken.reason)

    def note(self, reason: str) -> None:
        """List and tell what is wrong with an image, once."""
        reason = " ".join(reason.split())
        if reason not in self.listed:
            self.listed.add(reason)
            warnings.warn(f"left out: {reason}", BrokenImageWarning, stacklevel=4)
            if reason not in self.read(self.path):  # as it is where a run is resumed
                with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(reason + "\n")

    @staticmethod
    def read(path: Path) -> list[str]:
        """What is wrong with each image that any process listed there, once."""
        return sorted(set(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def stream(
    split: Split,
    plan: Iterable[list[Key]],
    view: Callable[[Image.Image], Tensor],
    reading: Reading | None = None,
    *,
    pin: bool = False,
    note: Callable[[Broken], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of each batch of a plan.

    Args:
        split: Has the pictures.
        plan: Of each batch the images; where numbers are given, ``view`` draws from generators that they seed.
        view: What to make of a picture.
        reading: How many workers, and what becomes of broken images.
        pin: Put them where a GPU reads fast.
        note: Hears of every broken image, instead of what ``reading`` says.

    Yields:
        (B, C, H, W) and (B,) of those that could be read; of none, empty tensors.

    Raises:
        DataError: an image can't be read; names it.
        LostWorkerError: a worker was killed.
    """
    reading = reading or Reading()
    options: dict[str, Any] = {"prefetch_factor": AHEAD, "worker_init_fn": leave_interrupts} if reading.workers else {}
    batches: Any = plan  # torch asks for a list of lists, and takes any
    loader = DataLoader(
        _Pictures(split, view), batch_sampler=batches, num_workers=reading.workers, collate_fn=_together,
        pin_memory=pin, generator=torch.Generator(), **options,
    )  # fmt: skip
    note = note or (refuse if reading.skipped is None else Listing(reading.skipped))
    try:
        for images, labels, broken in loader:
            for image in broken:
                note(image)
            yield images, labels
    except RuntimeError as error:
        if lost := lost_worker(error):
            raise lost from error
        raise


def lost_worker(error: RuntimeError) -> LostWorkerError | None:
    """What to raise instead of what torch raises where a worker died; None for any other error."""
    if LOST not in str(error):
        return None
    return LostWorkerError(
        f"a process that reads images was killed, perhaps for want of memory ({str(error).splitlines()[0]}); run the "
        "command again with fewer --workers"
    )


def leave_interrupts(number: int) -> None:
    """Of a worker: Ctrl-C is the first process' affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Pictures(Dataset):
    def __init__(self, split: Split, view: Callable[[Image.Image], Tensor]) -> None:
        self.split, self.view = split, view

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Broken:
        index, numbers = key
        try:
            picture = self.split.picture(index)
        except DataError as error:
            return Broken(index, str(error))
        if not numbers:
            return self.view(picture), int(self.split.labels[index])
        with drawing(*numbers):
            return self.view(picture), int(self.split.labels[index])


def _together(items: list[tuple[Tensor, int] | Broken]) -> tuple[Tensor, Tensor, list[Broken]]:
    """Images, labels, and what is wrong with the broken ones."""
    whole = [item for item in items if not isinstance(item, Broken)]
    broken = [item for item in items if isinstance(item, Broken)]
    images = torch.stack([image for image, _ in whole]) if whole else torch.empty(0)
    return images, torch.tensor([label for _, label in whole], dtype=torch.int64), broken
