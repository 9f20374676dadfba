# SPDX-License-Identifier: Apache-2.0
"""The public names of ``convary.train``."""

from __future__ import annotations

from convary.extras import require

require("convary.train", "train", "accelerate", "torchmetrics")

from convary.train.checkpoint import load_model, read_checkpoint  # noqa: E402  (after the check above)
from convary.train.comparison import compare  # noqa: E402
from convary.train.config import CompareConfig  # noqa: E402
from convary.train.evaluation import Evaluation, evaluate  # noqa: E402
from convary.train.progress import Listeners, Progress, RunInfo, StepInfo  # noqa: E402

__all__ = [
    "CompareConfig",
    "Evaluation",
    "Listeners",
    "Progress",
    "RunInfo",
    "StepInfo",
    "compare",
    "evaluate",
    "load_model",
    "read_checkpoint",
]
