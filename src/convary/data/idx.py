# SPDX-License-Identifier: Apache-2.0
"""The IDX files of MNIST-like sets, plain or gzipped, and full Fashion-MNIST out of them."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from convary.data.cards import FASHION_LICENSE, PARTS, find_idx
from convary.data.dataset import DataSet, TensorSplit
from convary.errors import DataError

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
FASHION_SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes as a uint8 tensor of the shape that its header gives.

    Raises:
        DataError: the file is no IDX file of unsigned bytes, or shorter than its header says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; fetch the file again") from error
    rank = content[3] if len(content) >= 4 else 0
    header = 4 + 4 * rank
    if content[:3] != b"\x00\x00\x08" or len(content) < header:
        raise DataError(f"{path} is not an IDX file of unsigned bytes; fetch it again")
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    if len(content) != header + prod(shape):
        raise DataError(
            f"{path} has {len(content) - header} bytes of data but its header says {tuple(shape)}, which is "
            f"{prod(shape)}; the file is truncated, fetch it again"
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def load_fashion(root: Path) -> DataSet:
    """Full Fashion-MNIST, 60,000 + 10,000 images of 28x28.

    Args:
        root: A torchvision data root, or a folder with the four IDX files such as Debian's.

    Raises:
        DataError: a file is missing or broken.
    """
    parts = []
    for part in PARTS:
        images, labels = (find_idx(root, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if images is None or labels is None:
            raise DataError(
                f"no Fashion-MNIST under {root}; run: convary data fashion-mnist --root {root}   "
                f"(or: apt-get install dataset-fashion-mnist, and pass --root {DEBIAN_FOLDER})"
            )
        parts.append(TensorSplit(read_idx(images).unsqueeze(1), read_idx(labels).long()))
    return DataSet(
        name="fashion-mnist",
        title="Fashion-MNIST",
        classes=FASHION_CLASSES,
        shape=(1, 28, 28),
        train=parts[0],
        test=parts[1],
        mean=FASHION_MEAN,
        std=FASHION_STD,
        license=FASHION_LICENSE,
        source=FASHION_SOURCE,
    )
