# SPDX-License-Identifier: Apache-2.0
"""Image classification sets: one embedded, some of torchvision's, and any folder of class folders."""

from __future__ import annotations

from convary.extras import require

require("convary.data", "vision", "torchvision", "PIL", "numpy")

from convary.data.augment import augment, derive_seed, epoch_order, generator  # noqa: E402  (after the check above)
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
