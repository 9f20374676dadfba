# SPDX-License-Identifier: Apache-2.0
"""The base of what is compared with the methods."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convary.methods import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Comparator(MethodConfig):
    """Options of an attention that is compared with the methods; it makes no kernel depend on the input."""

    def refuses(self, module: nn.Module) -> str | None:
        """It takes no convolution's place."""
        return f"{self.title} takes no layer's place; put it into a network with convary.models.attend(model, config)"

    def put_into(self, model: nn.Module, upcycle: bool) -> None:
        """Change a static network in place; see :func:`convary.models.attend`."""
        raise TypeError(f"{type(self).__name__} must define put_into()")
