# SPDX-License-Identifier: Apache-2.0
"""Order and augmentation as functions of (seed, epoch, step): a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed out of several numbers; different numbers give unrelated seeds.

    >>> derive_seed(0, 1) == derive_seed(0, 1) != derive_seed(1, 0)
    True
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*numbers))


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """(size,) the order in which an epoch visits the images; the same for every method."""
    return torch.randperm(size, generator=generator(seed, epoch))


def augment(images: Tensor, rng: torch.Generator, *, padding: int, flip: bool) -> Tensor:
    """Shift each image by up to ``padding`` pixels (zeros come in) and mirror half of them.

    Args:
        images: (B, C, H, W), of a dtype that NumPy has, on the CPU.
        rng: Draws the shifts and the flips; on the CPU.
        padding: Largest shift, in pixels.
        flip: Whether to mirror left and right.

    Returns:
        (B, C, H, W)
    """
    B, _, H, W = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, B), generator=rng).numpy()
    windows = F.pad(images, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1).numpy()
    shifted = windows[np.arange(B), :, top, left]  # NumPy copies whole rows, torch byte by byte
    if flip:
        mirrored = (torch.rand(B, generator=rng) < 0.5).numpy()
        shifted[mirrored] = shifted[mirrored, ..., ::-1]
    return torch.from_numpy(shifted)
