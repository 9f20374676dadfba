# SPDX-License-Identifier: Apache-2.0
"""Telling a moving average's copy of a router from other copies, so that it can have the live temperature."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class Kin:
    """The deep copies of one router, and whether something averages it.

    A moving average (timm's ``ModelEma``, torch's ``AveragedModel``, Ultralytics', Lightning's) deep-copies the model
    and writes into the copy's tensors behind the modules' backs. A snapshot is a deep copy too, but nobody writes into
    it. So a router counts its own writes to its temperature, by the tensor's version: any other write is an average's.

    Args:
        origin: That of the router that this one's router is a deep copy of.
    """

    def __init__(self, origin: Kin | None = None) -> None:
        self.origin = None if origin is None else weakref.ref(origin)
        self.copies: weakref.WeakSet[Any] = weakref.WeakSet()
        self.written = 0

    def settle(self, router: Any) -> None:
        """Note that the router's temperature is as convary wrote it; enter a copy with what it was copied from."""
        self.written = _version(router.temperature)
        origin = None if self.origin is None else self.origin()
        if origin is not None:
            origin.copies.add(router)

    def part(self, router: Any) -> None:
        """The router is trained on its own from now on: no average, whoever writes into it."""
        origin = None if self.origin is None else self.origin()
        if origin is not None:
            origin.copies.discard(router)
        self.origin = None

    def averages(self) -> Iterator[Any]:
        """The copies, of whatever depth, that something else writes into."""
        for router in list(self.copies):
            if _version(router.temperature) != router.kin.written:
                yield router
            yield from router.kin.averages()

    def __deepcopy__(self, memo: dict[int, Any]) -> Kin:
        return Kin(self)

    def __reduce__(self) -> tuple[type[Kin], tuple[()]]:
        return Kin, ()  # another process has no copies


def _version(temperature: Tensor | None) -> int:
    return 0 if temperature is None or temperature.is_inference() else temperature._version
