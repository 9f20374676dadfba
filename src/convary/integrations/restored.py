# SPDX-License-Identifier: Apache-2.0
"""A class whose networks are dynamic from their construction on, for loaders that build the network themselves."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from convary._recipe import reconvert
from convary.nn import Placed


def is_converted(model: nn.Module) -> bool:
    """Whether a conversion made a layer of the model, so that there is a recipe of it."""
    return any(isinstance(module, Placed) and module.converted is not None for module in model.modules())


def restoring(cls: Any, recipe: Mapping[str, Any]) -> Any:
    """A subclass of ``cls`` whose constructor ends with ``reconvert``; set ``__class__`` to ``cls`` after loading.

    Args:
        cls: A class of networks whose loader builds one by ``cls(...)`` and then fills in the weights.
        recipe: Of the conversion.
    """

    @functools.wraps(cls.__init__)
    def construct(self: Any, *args: Any, **options: Any) -> None:
        cls.__init__(self, *args, **options)
        reconvert(self, recipe, inplace=True)

    return type(cls)(cls.__name__, (cls,), {"__init__": construct, "__module__": cls.__module__})
