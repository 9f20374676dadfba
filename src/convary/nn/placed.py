# SPDX-License-Identifier: Apache-2.0
"""The base of the layers that stand where a static one stood."""

from __future__ import annotations

from typing import Any

from torch import nn

from convary import hosts


class Placed(nn.Module):
    """A layer that a conversion can put in the place of a static one.

    Attributes:
        converted: The method's config where ``convert`` or ``reconvert`` made the layer; None where the network's own
            class did. ``recipe`` goes by it.
        folded: Number of the normalisation that ``fold_norms`` took into the layer; what stands in its place has the
            same. None where there is none.
    """

    converted: Any = None
    folded: int | None = None

    def __init__(self) -> None:
        super().__init__()
        hosts.attend()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        hosts.attend()
