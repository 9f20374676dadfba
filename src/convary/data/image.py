# SPDX-License-Identifier: Apache-2.0
"""Image files to uint8 tensors; a broken file is named by its path."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convary.errors import DataError

# What Pillow raises for a bad file. Ultralytics, where it is imported, looks for a reader of HEIF files then.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, ModuleNotFoundError)


def read_image(source: Path | IO[bytes], mode: str = "RGB", size: int | None = None, name: str | None = None) -> Tensor:
    """One decoded image, uint8 (C, H, W).

    Args:
        source: A path or an open file.
        mode: ``"RGB"`` for C = 3, ``"L"`` for C = 1.
        size: Scale the shorter side to ``size`` and cut out the middle ``size`` x ``size``; ``None`` keeps the size.
        name: What to call it in an error; the path where there is one.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(source) as image:
            picture = image.convert(mode)
    except BROKEN as error:
        raise DataError(f"{name or source} is not a readable image ({error}); repair or remove it") from error
    if size is not None:
        picture = _resize(picture, size)
    pixels = torch.from_numpy(np.array(picture))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _resize(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
