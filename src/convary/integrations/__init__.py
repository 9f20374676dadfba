# SPDX-License-Identifier: Apache-2.0
"""convary inside other people's programs: one small module for each client, imported when it is asked for.

``cv.integrations.timm`` imports timm, and nothing here is imported before it is named. A client whose version is not
supported is refused with the range that is.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
