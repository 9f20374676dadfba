# SPDX-License-Identifier: Apache-2.0
"""Moving MNIST: digits that fly over a black canvas and bounce off its edges (Srivastava et al., ICML 2015)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.errors import DataError


def moving_digits(
    digits: Tensor, rng: torch.Generator, *, size: int = 64, frames: int = 20, count: int = 2, speed: float = 0.1
) -> Tensor:
    """A random sequence, made as Moving MNIST is.

    Each digit starts anywhere and flies in a straight line, ``speed`` of its room per frame (its room is the canvas
    less the digit), until it meets an edge. Where digits overlap the brighter pixel is seen.

    Args:
        digits: (M, h, w) in 0..1, drawn from at random.
        rng: Decides on digits, places and directions.
        size: Height and width of the canvas. Moving MNIST has 64 for digits of 28.
        frames: N.
        count: Digits on the canvas.
        speed: Of each digit, above 0, less than 1.

    Returns:
        (N, 1, size, size) in 0..1.

    Raises:
        DataError: the canvas is smaller than a digit.
    """
    h, w = digits.shape[1:]
    if size < max(h, w):
        raise DataError(f"a canvas of {size}x{size} has no room for digits of {h}x{w}; use a larger size")
    room = torch.tensor([size - h, size - w])
    chosen = torch.randint(len(digits), (count,), generator=rng)
    canvas = torch.zeros(frames, size, size)
    for digit in digits[chosen]:
        for frame, (top, left) in zip(canvas, (_path(rng, frames, speed) * room).long().tolist(), strict=True):
            seen = frame[top : top + h, left : left + w]
            torch.maximum(seen, digit, out=seen)
    return canvas.unsqueeze(1)


def _path(rng: torch.Generator, frames: int, speed: float) -> Tensor:
    """(frames, 2) places in the unit square along a line that is reflected at its sides."""
    y, x, turn = torch.rand(3, generator=rng).tolist()
    place, step = [y, x], [speed * math.sin(2 * math.pi * turn), speed * math.cos(2 * math.pi * turn)]
    places = []
    for _ in range(frames):
        for axis in (0, 1):
            place[axis] += step[axis]
            if not 0 < place[axis] < 1:
                place[axis], step[axis] = min(max(place[axis], 0.0), 1.0), -step[axis]
        places.append(list(place))
    return torch.tensor(places)


def scaled(digits: Tensor, side: int) -> Tensor:
    """Digits (M, h, w) brought to (M, side, side), by the mean of the pixels where that is smaller."""
    return F.interpolate(digits.unsqueeze(1), size=(side, side), mode="area").squeeze(1)
