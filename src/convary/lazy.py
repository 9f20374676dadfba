# SPDX-License-Identifier: Apache-2.0
"""Packages whose public names are imported when the first of them is used.

``convary --help`` and a mistyped flag need none of them, so they need not wait for torch. The names and the imports
that bring them are in the package's module ``_names``; type checkers see it by an import under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any


def public_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package. A submodule is an attribute too, and is imported on its own.

    >>> lookup, listed = public_names("convary")
    >>> lookup("errors").__name__, "plan" in listed()
    ('convary.errors', True)
    """

    def lookup(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what inspect and others try on every module
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        here = vars(sys.modules[package])
        if name in {module.name for module in pkgutil.iter_modules(here["__path__"])}:
            return importlib.import_module(f"{package}.{name}")
        behind = importlib.import_module(f"{package}._names")
        here.update({public: getattr(behind, public) for public in ("__all__", *behind.__all__)})
        if name not in here:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return here[name]

    def listed() -> list[str]:
        here = vars(sys.modules[package])
        rooms = (module.name for module in pkgutil.iter_modules(here["__path__"]) if module.ispkg)
        return sorted({*here, *lookup("__all__"), *(room for room in rooms if not room.startswith("_"))})

    return lookup, listed
