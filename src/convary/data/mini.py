# SPDX-License-Identifier: Apache-2.0
"""``fashion-mnist-mini``: the real set that is shipped in the package, 8,000 + 2,000 images of 28x28."""

from __future__ import annotations

import json
from importlib.resources import files

import torch

from convary.data.dataset import DataSet, TensorSplit
from convary.data.idx import FASHION_MEAN, FASHION_STD
from convary.data.image import read_image


def load_mini() -> DataSet:
    """The embedded set, cut out of its sheet; ``scripts/build_fashion_mnist_mini.py`` makes it from the full set."""
    folder = files("convary.data") / "embedded"
    record = json.loads((folder / "fashion_mnist_mini.json").read_text())
    with (folder / "fashion_mnist_mini.png").open("rb") as file:
        sheet = read_image(file, mode="L", name="fashion_mnist_mini.png in the package convary")

    K, rows, columns = len(record["classes"]), record["train_rows"] + record["test_rows"], record["images_per_row"]
    grid = sheet.reshape(K, rows, 28, columns, 28).permute(0, 1, 3, 2, 4)  # (class, row, column, 28, 28)
    parts = []
    for part in (grid[:, : record["train_rows"]], grid[:, record["train_rows"] :]):
        images = part.reshape(K, -1, 1, 28, 28)
        parts.append(TensorSplit(images.flatten(0, 1), torch.arange(K).repeat_interleave(images.shape[1])))
    return DataSet(
        name="fashion-mnist-mini",
        title=record["title"],
        classes=tuple(record["classes"]),
        shape=(1, 28, 28),
        train=parts[0],
        test=parts[1],
        mean=FASHION_MEAN,
        std=FASHION_STD,
        license=record["license"],
        source=record["source"],
    )
