# SPDX-License-Identifier: Apache-2.0
"""``folder:PATH``: one folder per class, ImageNet-style, or one level of class folders that is split 90 to 10."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convary.data.dataset import DataSet
from convary.data.image import open_image
from convary.data.normalisation import MEAN, STD
from convary.data.pictures import PictureSplit, settled
from convary.data.reading import Reading
from convary.errors import DataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderSplit(PictureSplit):
    """Images in files.

    Attributes:
        root: The folder that the names are in.
        names: (N,) bytes, paths under ``root``; an array, which worker processes share, and not a million objects.
    """

    root: Path
    names: np.ndarray

    def path(self, index: int) -> Path:
        """Of a file."""
        return self.root / os.fsdecode(self.names[index])

    def decoded(self, index: int) -> Image.Image:
        """One image; raises DataError naming a broken file."""
        return open_image(self.path(index))

    def take(self, index: Tensor) -> FolderSplit:
        """The part with only the images of ``index`` (M,), in that order."""
        return dataclasses.replace(self, names=self.names[index.numpy()], labels=self.labels[index])


def load_folder(path: Path, size: int, reading: Reading | None = None) -> DataSet:
    """A set of class folders.

    Images stay in memory where they need less than a gigabyte and are not cropped.

    Args:
        path: A folder with ``train/`` and ``val/`` or ``test/``, each with the same class folders; or with the class
            folders themselves, in which case a hash of each file's name decides on which side of 90 to 10 it falls.
        size: Height and width that images are brought to.
        reading: How. Where broken images are skipped, all test images are read once here, and the broken left out.

    Raises:
        DataError: no such folder; no class folders; a class folder without images; classes that differ between the
            parts; a broken image.
    """
    reading = reading or Reading()
    if not path.is_dir():
        raise DataError(f"no folder {path}; give folder:PATH with one sub-folder of images per class")
    classes, train, test = _parts(path)
    left_out: list[str] = []
    parts = [
        settled(_split(path, files, size, reading), reading, left_out, of=str(path), tested=files is test)
        for files in (train, test)
    ]
    return DataSet(
        name=f"folder:{path}",
        title=path.name,
        classes=classes,
        shape=(3, size, size),
        train=parts[0],
        test=parts[1],
        mean=MEAN,
        std=STD,
        license="unknown",
        source=str(path),
        padding=size // 8,
        reading=reading,
        left_out=tuple(left_out),
    )


def _parts(path: Path) -> tuple[tuple[str, ...], list[list[str]], list[list[str]]]:
    """Names of the classes, and of the files of each class to train and to test on."""
    if not (path / "train").is_dir():
        classes = _classes(path)
        train, test = zip(*(_divided(path, files) for files in _files(path, "", classes)), strict=True)
        return classes, list(train), list(test)
    name = next((name for name in ("val", "test") if (path / name).is_dir()), None)
    if name is None:
        raise DataError(f"{path} has train/ but neither val/ nor test/; add one, or give folder:{path / 'train'}")
    classes = _classes(path / "train")
    train, test = _files(path, "train", classes), _files(path, name, classes)
    if extra := sorted(set(_classes(path / name)) - set(classes)):
        raise DataError(f"{path / name} has the class {extra[0]!r}, which {path / 'train'} has not; make both the same")
    return classes, train, test


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} class folder{'s' * (len(classes) != 1)}; give a folder with two or more, one "
            f"for each class{_above(folder) or _inside(folder, classes)}"
        )
    return classes


def _above(folder: Path) -> str:
    """A suggestion where a class folder was given for the one that it lies in; empty where it is none."""
    above = folder.resolve().parent
    if not _has_images(folder) or sum(_has_images(entry) for entry in above.iterdir() if entry.is_dir()) < 2:
        return ""
    return f"; did you mean 'folder:{above}'?"


def _inside(folder: Path, classes: tuple[str, ...]) -> str:
    """A suggestion where the one folder holds the class folders; empty where it does not."""
    if len(classes) != 1 or sum(_has_images(entry) for entry in (folder / classes[0]).iterdir() if entry.is_dir()) < 2:
        return ""
    return f"; did you mean 'folder:{folder / classes[0]}'?"


def _has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself; not in one that can't be looked into."""
    return os.access(folder, os.R_OK | os.X_OK) and any(
        entry.suffix.lower() in EXTENSIONS for entry in folder.iterdir()
    )


def _files(root: Path, part: str, classes: tuple[str, ...]) -> list[list[str]]:
    """Of each class the images in its folder and in those inside it, as paths under ``root``."""
    found = []
    for name in classes:
        directory = root / part / name
        if not directory.is_dir():
            raise DataError(f"no class folder {directory}; train, val and test must have the same class folders")
        paths = [
            os.path.relpath(os.path.join(folder, file), root)
            for folder, _, files in os.walk(directory)
            for file in files
            if os.path.splitext(file)[1].lower() in EXTENSIONS
        ]
        if not paths:
            raise DataError(
                f"class folder {directory} has no images ({', '.join(sorted(EXTENSIONS))}); add some or remove it"
            )
        found.append(sorted(paths, key=lambda path: path.split(os.sep)))
    return found


def _divided(root: Path, paths: list[str]) -> tuple[list[str], list[str]]:
    """Nine tenths to train on and one tenth to test on, at least one each; a name always falls on the same side."""
    if len(paths) < 2:
        folder = (root / paths[0]).parent
        raise DataError(f"class folder {folder} has one image; two are needed to train on one and test on one")
    digests = {path: hashlib.sha256(os.fsencode(os.path.basename(path))).digest() for path in paths}
    ranked = sorted(paths, key=digests.__getitem__)
    test = set(([path for path in ranked if digests[path][0] < 26] or ranked[:1])[: len(paths) - 1])
    return [path for path in paths if path not in test], [path for path in paths if path in test]


def _split(root: Path, files: list[list[str]], size: int, reading: Reading) -> FolderSplit:
    """The images of each class' files."""
    labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files]))
    names = np.array([os.fsencode(path) for paths in files for path in paths])
    middle = reading.middle(size)
    return FolderSplit(root=root, names=names, labels=labels, middle=middle, skips=reading.skipped is not None)
