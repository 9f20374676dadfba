# SPDX-License-Identifier: Apache-2.0
"""Tables of Hugging Face ``datasets``, made of class folders; who imports this is skipped where it is not installed."""

from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def table(folder: Path, label: int | None = None, broken: int | None = None, content: bytes | None = None):
    """The images of a folder with one sub-folder for each class.

    Args:
        folder: The folder.
        label: Of all images, instead of their class.
        broken: A row that has something else in the place of its image.
        content: What.
    """
    classes = sorted(path.name for path in folder.iterdir())
    files = [(path, number) for number, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    images = [{"bytes": path.read_bytes(), "path": None} for path, _ in files]
    if broken is not None:
        images[broken] = None if content is None else {"bytes": content, "path": None}
    labels = [number if label is None else label for _, number in files]
    features = datasets.Features({"image": datasets.Image(), "class": datasets.ClassLabel(names=classes)})
    return datasets.Dataset.from_dict({"image": images, "class": labels}, features=features)


def save(root: Path, path: Path, **parts: str) -> Path:
    """What ``save_to_disk`` writes of splits, each the images of a folder in ``root``."""
    datasets.DatasetDict({split: table(root / part) for split, part in parts.items()}).save_to_disk(path)
    return path
