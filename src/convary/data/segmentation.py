# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation sets: photographs, each with a map of class ids, in Pascal VOC's layout or in plain folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convary.data.folder import EXTENSIONS
from convary.data.image import BROKEN, read_image
from convary.data.samples import class_map, scene
from convary.errors import DataError

IGNORE = 255  # the id of pixels that neither train nor count
BAND = 5  # pixels
PARTS = ("train", "val")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class Pairs(Protocol):
    """A sequence of images (3, H, W) uint8 with their masks (H, W) int64."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class FilePairs:
    """Photographs and their masks, decoded when they are asked for.

    Attributes:
        files: The image and the mask of each pair.
        classes: How many class ids there are.
    """

    files: tuple[tuple[Path, Path], ...]
    classes: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image (3, H, W) uint8 and the mask (H, W) int64 of class ids.

        Raises:
            DataError: names the file that is broken, of another size than its image, or has ids out of range.
        """
        image_file, mask_file = self.files[index]
        image, mask = read_image(image_file), read_mask(mask_file)
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"mask {mask_file} is {_size(mask)} but its image {image_file} is {_size(image[0])} (height x width); "
                "give both the same size"
            )
        wrong = mask[(mask >= self.classes) & (mask != IGNORE) | (mask < 0)]
        if wrong.numel():
            raise DataError(
                f"mask {mask_file} has the class id {int(wrong[0])}; wanted 0 to {self.classes - 1}, or {IGNORE} for "
                "pixels that do not count"
            )
        return image, mask


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationSet:
    """Photographs to train on and others to score.

    Attributes:
        title: For people.
        classes: Names by class id; 0 is the background where there is one.
        train: What is learned from.
        val: What is scored.
    """

    title: str
    classes: tuple[str, ...]
    train: Pairs
    val: Pairs


def load_sample() -> SegmentationSet:
    """One photograph of Pascal VOC, to train on and to score; see ``convary.data.samples``.

    Its annotators left a band around every object undecided, as everywhere in Pascal VOC. The sample holds objects
    only, so what belongs to none within the width of that band of one is set to 255.
    """
    photo = scene("voc")
    mask = class_map(photo)
    objects = (mask > 0).float()[None]
    near = F.max_pool2d(objects, 2 * BAND + 1, 1, BAND) > objects
    pairs = [(photo.image, mask.masked_fill(near[0], IGNORE))]
    return SegmentationSet(title="a photograph of Pascal VOC", classes=photo.classes, train=pairs, val=pairs)


def load_pairs(root: Path) -> SegmentationSet:
    """A set in one of two layouts.

    - Pascal VOC's: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` and ``ImageSets/Segmentation/train.txt``
      and ``val.txt``, one NAME a line.
    - Folders: ``train/images``, ``train/masks``, ``val/images`` and ``val/masks``, where an image and its mask have
      the same name but for the ending, and ``classes.txt`` with the name of class 0, 1, ... a line.

    A mask is an image with one class id per pixel, 255 where a pixel does not count; palettes are ignored.

    Raises:
        DataError: there is no such folder, it has neither layout, a list or a part is empty, or an image or a mask is
            missing; names it.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; give one in Pascal VOC's layout, or with train/images and train/masks")
    if (root / "ImageSets" / "Segmentation").is_dir():
        classes = VOC_CLASSES
        train, val = (_voc_files(root, part) for part in PARTS)
    elif (root / "train").is_dir():
        classes = _class_names(root / "classes.txt")
        train, val = (_folder_files(root / part) for part in PARTS)
    else:
        raise DataError(
            f"{root} has neither ImageSets/Segmentation (Pascal VOC's layout; its folder is called VOC2012) nor "
            "train/images and train/masks"
        )
    return SegmentationSet(
        title=root.name,
        classes=classes,
        train=FilePairs(train, len(classes)),
        val=FilePairs(val, len(classes)),
    )


def read_mask(path: Path) -> Tensor:
    """The class ids of a mask, (H, W) int64: the numbers in the file, not the colours of its palette.

    Raises:
        DataError: the file can't be decoded or holds colours.
    """
    try:
        with Image.open(path) as image:
            bands, ids = image.getbands(), np.array(image)
    except BROKEN as error:
        raise DataError(f"mask {path} is not a readable image ({error}); repair or remove it") from error
    if len(bands) != 1 or ids.dtype.kind == "f":
        raise DataError(
            f"mask {path} has the bands {''.join(bands)}; wanted one band of class ids, with or without palette"
        )
    return torch.from_numpy(ids.astype(np.int64))


def _voc_files(root: Path, part: str) -> tuple[tuple[Path, Path], ...]:
    listed = root / "ImageSets" / "Segmentation" / f"{part}.txt"
    if not listed.is_file():
        raise DataError(f"no list {listed}; write the names of the images to {part} on, one a line, without .jpg")
    names = listed.read_text().split()
    if not names:
        raise DataError(f"the list {listed} is empty; write one name of an image a line, without .jpg")
    files = [(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png") for name in names]
    _refuse_missing([path for pair in files for path in pair if not path.is_file()], f"listed in {listed}")
    return tuple(files)


def _folder_files(folder: Path) -> tuple[tuple[Path, Path], ...]:
    found: list[dict[str, Path]] = []
    for directory in (folder / "images", folder / "masks"):
        if not directory.is_dir():
            raise DataError(f"no folder {directory}; {folder} must have images/ and masks/")
        paths = sorted(p for p in directory.iterdir() if p.suffix.lower() in EXTENSIONS)
        found.append({path.stem: path for path in paths})
    images, masks = found
    if not images:
        raise DataError(f"{folder / 'images'} has no images ({', '.join(sorted(EXTENSIONS))}); add some")
    _refuse_missing([folder / "masks" / f"{s}.png" for s in images.keys() - masks.keys()], "the mask of an image")
    _refuse_missing([folder / "images" / f"{s}.jpg" for s in masks.keys() - images.keys()], "the image of a mask")
    return tuple((images[stem], masks[stem]) for stem in images)


def _refuse_missing(paths: list[Path], what: str) -> None:
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise DataError(f"no file {min(paths)}{more}, {what}; add what is missing or remove its partner")


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"no file {path}; write the name of class 0, of class 1, ... into it, one a line")
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not 2 <= len(names) <= IGNORE:
        raise DataError(f"{path} names {len(names)} classes; wanted 2 to {IGNORE}, one a line")
    return names


def _size(mask: Tensor) -> str:
    return "x".join(map(str, mask.shape))
