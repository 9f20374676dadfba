# SPDX-License-Identifier: Apache-2.0
"""``folder:PATH``: one folder per class, ImageNet-style, or one level of class folders that is split 90 to 10."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convary.data.dataset import DataSet, TensorSplit
from convary.data.image import read_image
from convary.errors import DataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IN_MEMORY = 1 << 30  # bytes; a folder that decodes to less is decoded once, so a broken image is found at the start


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images that are decoded when they are asked for.

    Attributes:
        paths: N files.
        labels: (N,) int64.
        size: Height and width that images are brought to.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    size: int

    def batch(self, index: Tensor) -> Tensor:
        """The images of ``index`` (B,) as uint8 (B, 3, size, size); raises DataError naming a broken file."""
        if not len(index):
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.stack([read_image(self.paths[i], size=self.size) for i in index.tolist()])

    def take(self, index: Tensor) -> FolderSplit:
        """The part with only the images of ``index`` (M,), in that order."""
        return FolderSplit(tuple(self.paths[i] for i in index.tolist()), self.labels[index], self.size)


def load_folder(path: Path, size: int) -> DataSet:
    """A set of class folders.

    Args:
        path: A folder with ``train/`` and ``val/`` or ``test/``, each with the same class folders; or with the class
            folders themselves, in which case a hash of each file's name decides on which side of 90 to 10 it falls.
        size: Height and width that images are brought to.

    Raises:
        DataError: no such folder; no class folders; a class folder without images; classes that differ between the
            parts; a broken image.
    """
    if not path.is_dir():
        raise DataError(f"no folder {path}; give folder:PATH with one sub-folder of images per class")
    if (path / "train").is_dir():
        test = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
        if test is None:
            raise DataError(f"{path} has train/ but neither val/ nor test/; add one, or give folder:{path / 'train'}")
        classes = _classes(path / "train")
        train_files, test_files = _files(path / "train", classes), _files(test, classes)
        if extra := sorted(set(_classes(test)) - set(classes)):
            raise DataError(f"{test} has the class {extra[0]!r}, which {path / 'train'} has not; make both the same")
    else:
        classes = _classes(path)
        train_files, test_files = zip(*map(_divided, _files(path, classes)), strict=True)
    return DataSet(
        name=f"folder:{path}",
        title=path.name,
        classes=classes,
        shape=(3, size, size),
        train=_split(train_files, size),
        test=_split(test_files, size),
        mean=(0.485, 0.456, 0.406),  # ImageNet's, as every torchvision model assumes
        std=(0.229, 0.224, 0.225),
        license="unknown",
        source=str(path),
        padding=size // 8,
    )


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} class folders; give a folder with one of images per class")
    return classes


def _files(folder: Path, classes: tuple[str, ...]) -> list[list[Path]]:
    found = []
    for name in classes:
        directory = folder / name
        if not directory.is_dir():
            raise DataError(f"no class folder {directory}; train, val and test must have the same class folders")
        paths = sorted(p for p in directory.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not paths:
            raise DataError(
                f"class folder {directory} has no images ({', '.join(sorted(EXTENSIONS))}); add some or remove it"
            )
        found.append(paths)
    return found


def _divided(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Nine tenths to train on and one tenth to test on, at least one each; a name always falls on the same side."""
    if len(paths) < 2:
        raise DataError(f"class folder {paths[0].parent} has one image; two are needed to train on one and test on one")
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    test = [path for path in ranked if hashlib.sha256(path.name.encode()).digest()[0] < 26] or ranked[:1]
    test = test[: len(paths) - 1]
    return sorted(set(paths) - set(test)), sorted(test)


def _split(files: list[list[Path]] | tuple[list[Path], ...], size: int) -> TensorSplit | FolderSplit:
    labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files]))
    split = FolderSplit(tuple(path for paths in files for path in paths), labels, size)
    if len(labels) * 3 * size * size > IN_MEMORY:
        return split
    return TensorSplit(split.batch(torch.arange(len(labels))), labels)
