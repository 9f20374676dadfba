# SPDX-License-Identifier: Apache-2.0
"""Class folders of small JPEG files that can be told apart, for tests to write."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(root: Path, classes: int, train: int, val: int, size: tuple[int, int] = (40, 32)) -> Path:
    """``root/train`` and ``root/val``; a class has a colour and a direction of stripes, an image its noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[1], : size[0]]
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / part / f"n{label:04}"
            folder.mkdir(parents=True)
            angle, colour = np.pi * label / classes, rng.random(3)
            stripes = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 0.8)
            for i in range(count):
                noise = rng.normal(0, 20, (size[1], size[0], 3))
                pixels = 128 + 60 * stripes[:, :, None] * colour + noise
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg")
    return root


def truncate(path: Path) -> None:
    """Cut a file off in its middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
