# SPDX-License-Identifier: Apache-2.0
"""The public names of ``convary.data``."""

from __future__ import annotations

from convary.extras import require

require("convary.data", "vision", "torchvision", "PIL", "numpy")

from convary.data.augmentation import augment, derive_seed, epoch_order, generator  # noqa: E402  (after the check above)
from convary.data.dataset import DataSet, Split, TensorSplit, balanced  # noqa: E402
from convary.data.sets import NAMES, default_root, fetch, load  # noqa: E402

__all__ = [
    "NAMES",
    "DataSet",
    "Split",
    "TensorSplit",
    "augment",
    "balanced",
    "default_root",
    "derive_seed",
    "epoch_order",
    "fetch",
    "generator",
    "load",
]
