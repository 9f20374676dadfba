# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits of 28x28: torchvision's MNIST, or scikit-learn's smaller ones where that cannot be had."""

from __future__ import annotations

import gzip
import socket
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import MNIST

from convary.data.cards import default_root
from convary.data.samples import package_file
from convary.errors import DataError

Source = Literal["auto", "mnist", "scikit-learn"]
TEST = 297  # of scikit-learn's digits; 1,500 remain


class DigitsWarning(UserWarning):
    """MNIST was wanted and could not be had; scikit-learn's digits stand in."""


class Digits(NamedTuple):
    """Images of single digits, (N, 28, 28) float32 in 0..1, white on black.

    Attributes:
        source: Which they are: "mnist" (60,000 + 10,000) or "scikit-learn" (1,500 + 297).
        train: To learn from.
        test: Only to look at.
    """

    source: str
    train: Tensor
    test: Tensor


def load_digits(source: Source = "auto", root: Path | None = None, *, seconds: float = 20.0) -> Digits:
    """Digits to make moving ones of.

    Args:
        source: "mnist": torchvision's, downloaded where they are not under ``root``; "scikit-learn": those bundled with
            that package, 8x8, enlarged to the 20x20 in 28x28 of MNIST; "auto": the former or else, with a warning, the
            latter.
        root: Data root; by default :func:`convary.data.default_root`.
        seconds: Of silence after which the download is given up.

    Raises:
        DataError: the digits asked for are not there and cannot be downloaded.
    """
    if source == "scikit-learn":
        return _scikit_learn()
    try:
        return _mnist(default_root() if root is None else root.expanduser(), seconds)
    except DataError as error:
        if source == "mnist":
            raise
        warnings.warn(f"{error}. Going on with scikit-learn's 1,797 digits", DigitsWarning, stacklevel=2)
        return _scikit_learn()


def _mnist(root: Path, seconds: float) -> Digits:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        train, test = (MNIST(str(root), train=train, download=True).data.float() / 255 for train in (True, False))
    except (OSError, RuntimeError) as error:  # no network, no right to write, a broken file
        reason = " ".join(str(error).split())
        raise DataError(
            f"no MNIST under {root} and no download ({reason}); put its files there, or use scikit-learn's digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return Digits("mnist", train, test)


def _scikit_learn() -> Digits:
    path = package_file("sklearn", "datasets/data/digits.csv.gz")
    with gzip.open(path, "rt") as file:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    small = rows[:, :64].reshape(-1, 1, 8, 8) / 16
    large = F.interpolate(small, size=20, mode="bicubic").clamp(0, 1).squeeze(1)
    train, test = F.pad(large, [4] * 4).split([len(large) - TEST, TEST])
    return Digits("scikit-learn", train, test)
