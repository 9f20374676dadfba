# SPDX-License-Identifier: Apache-2.0
"""Image classification sets: one embedded, some of torchvision's, and any folder of class folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convary.lazy import public_names

if TYPE_CHECKING:
    from convary.data._names import *  # noqa: F403
    from convary.data._names import __all__ as __all__
else:
    __getattr__, __dir__ = public_names(__name__)
