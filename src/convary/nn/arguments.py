# SPDX-License-Identifier: Apache-2.0
"""The types of arguments: those that layers share with torch's own, and the model that is changed."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import nn

from convary.ops.geometry import Size

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Device = torch.device | str | int | None
Dtype = torch.dtype | None
Model = TypeVar("Model", bound=nn.Module)  # what changes a model returns one of the same class

__all__ = ["Device", "Dtype", "Model", "PaddingMode", "Size"]
