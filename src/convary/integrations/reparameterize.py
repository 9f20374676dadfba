# SPDX-License-Identifier: Apache-2.0
"""timm's re-parameterisation of a converted network: refused in words, before it reads a bank as a kernel.

A block of RepVGG, MobileOne or RepViT adds up the kernels of its branches. It reads ``conv.weight`` and calls no layer,
so that a dynamic layer itself learns nothing of it.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import nn

from convary.errors import FusionError
from convary.nn import DynamicLayer

_WAYS = ("fuse", "reparameterize", "switch_to_deploy")  # what timm calls


def attend() -> None:
    """Check what timm is given; called once, by ``hosts``."""
    timm: Any = importlib.import_module("timm.models._manipulate")
    timm.reparameterize_model = _checked(timm.reparameterize_model)


def _checked(reparameterize: Any) -> Any:
    @functools.wraps(reparameterize)
    def checked(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        for name, block in model.named_modules():
            if block is model or not any(callable(getattr(type(block), way, None)) for way in _WAYS):
                continue
            inside = next((n for n, layer in block.named_modules() if isinstance(layer, DynamicLayer)), None)
            if inside is not None:
                raise FusionError(
                    f"{name}, a {type(block).__name__}, can't be re-parameterised: its {inside} is dynamic, and has no "
                    "one kernel to add to others; re-parameterise the network first and convert it then"
                )
        return reparameterize(model, *args, **kwargs)

    return checked
