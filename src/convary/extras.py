# SPDX-License-Identifier: Apache-2.0
"""One clear error where an optional dependency is missing."""

from __future__ import annotations

import importlib.util

from convary.errors import ConvaryError


class MissingExtraError(ConvaryError, ImportError):
    """A part of convary is used whose optional dependencies are not installed."""


def require(part: str, extra: str, *modules: str) -> None:
    """Raise unless every module can be imported.

    Args:
        part: What needs them, for the message: ``"convary.data"``.
        extra: The extra of the package that brings them.
        modules: Names of top-level modules.

    Raises:
        MissingExtraError: a module is not installed; the message names the extra.

    >>> require("convary.data", "vision", "torch")
    >>> require("convary.data", "vision", "no_such_module")
    Traceback (most recent call last):
    convary.extras.MissingExtraError: convary.data needs no_such_module, which is not installed; run pip install ...
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{part} needs {', '.join(missing)}, which {verb} not installed; run pip install 'convary[{extra}]'"
        )
