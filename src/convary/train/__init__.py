# SPDX-License-Identifier: Apache-2.0
"""The main job: train a static network and its dynamic versions alike, measure them, write down what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convary.lazy import public_names

if TYPE_CHECKING:
    from convary.train._names import *  # noqa: F403
    from convary.train._names import __all__ as __all__
else:
    __getattr__, __dir__ = public_names(__name__)
