# SPDX-License-Identifier: Apache-2.0
"""Convary inside other people's programs: one module per program, imported when it is first asked for.

``convary.integrations.ultralytics`` needs Ultralytics, and so on; ``import convary`` needs none of them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from convary.hosts import expect

expect("timm.models._manipulate", "convary.integrations.reparameterize")
expect("torchinfo", "convary.integrations.counters")
expect("transformers.modeling_utils", "convary.integrations.transformers")
expect("huggingface_hub.hub_mixin", "convary.integrations.huggingface_hub")
expect("ultralytics.nn.tasks", "convary.integrations.ultralytics")

_MODULES = ("counters", "huggingface_hub", "lightning", "timm", "transformers", "ultralytics")


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return importlib.import_module(f"{__name__}.{name}")
