# SPDX-License-Identifier: Apache-2.0
"""Image files to pictures and to uint8 tensors; a broken file is named by its path."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convary.errors import DataError

# What Pillow raises for a bad file. Ultralytics, where it is imported, looks for a reader of HEIF files then.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError, ModuleNotFoundError
)  # fmt: skip
_DEEP = ("I", "F")  # modes of more than 8 bits a channel begin so; Pillow would cut them off at 255
_SIXTEEN = 1 << 16


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
    picture = open_image(source, mode, name)
    return pixels(picture if size is None else middle(picture, size))


def open_image(source: Path | IO[bytes], mode: str = "RGB", name: str | None = None) -> Image.Image:
    """One decoded image: palettes, CMYK and 16 bits a channel become ``mode``, of 8 bits.

    Args:
        source: A path or an open file.
        mode: ``"RGB"`` or ``"L"``.
        name: What to call it in an error; the path where there is one.

    Raises:
        DataError: the file cannot be decoded, or holds numbers that are no brightness.
    """
    try:
        with Image.open(source) as image:
            return (_to_bytes(image) if image.mode.startswith(_DEEP) else image).convert(mode)
    except BROKEN as error:
        raise DataError(f"{name or source} is not a readable image ({error}); repair or remove it") from error


def pixels(picture: Image.Image) -> Tensor:
    """A picture as uint8 (C, H, W)."""
    values = torch.from_numpy(np.array(picture))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1)


def middle(picture: Image.Image, size: int) -> Image.Image:
    """The shorter side scaled to ``size``, and the middle square of that."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _to_bytes(image: Image.Image) -> Image.Image:
    """16 bits a channel as the upper 8 of them."""
    values = np.array(image)
    if values.dtype.kind == "f" or (values.size and not 0 <= values.min() <= values.max() < _SIXTEEN):
        raise ValueError(f"its pixels are of {values.dtype}, and wanted are 8 or 16 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))
