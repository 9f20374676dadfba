# SPDX-License-Identifier: Apache-2.0
"""One router for all dynamic convolutions of a block, as CondConv's paper has it."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from convary.errors import ShapeError
from convary.nn.layer import DynamicLayer
from convary.nn.router import Router


class RoutedBlock:
    """Mixed into a block's class by ``share_router``: routes on the block's input, once, for all its dynamic layers."""

    router: Router

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Route the first argument, lend the coefficients to the block's layers, and run the block as it is."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Proxy) and not self._is_routed(x):
            got = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ShapeError(
                f"the shared router of this {type(self).__mro__[2].__name__} wants the block's input to be a tensor "
                f"(B, {self.router.in_channels}, *S); got {got}; use router='layer' for such blocks"
            )
        coeffs = self.router(x)
        layers = routed_layers(self)  # type: ignore[arg-type]
        for layer in layers:
            layer.lend(coeffs)
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            for layer in layers:
                layer.take_back()

    def _is_routed(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.ndim >= 3 and x.shape[1] == self.router.in_channels

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Pickle and deepcopy by the block's own class: the routed one is made anew."""
        return _restore, (type(self).__mro__[2],), self.__dict__


def routed_layers(block: nn.Module) -> list[DynamicLayer]:
    """The layers of a block that take its shared router's coefficients."""
    return [m for m in block.modules() if isinstance(m, DynamicLayer) and m.router is None]


def share_router(block: nn.Module, router: Router) -> None:
    """Give ``block`` one router, called on the block's input, for all its dynamic layers that have none of their own.

    The block keeps its type (its class becomes a subclass), its forward signature and its parameter names; the
    router is added as ``block.router``.

    Args:
        block: The module whose forward's first argument is routed.
        router: Makes the coefficients.
    """
    block.router = router
    block.__class__ = _routed_class(type(block))


def unshare_router(block: nn.Module) -> None:
    """Undo ``share_router``: the block gets its class back and loses the router."""
    block.__class__ = type(block).__mro__[2]
    del block.router


@functools.cache
def _routed_class(base: type[nn.Module]) -> type[nn.Module]:
    return type(f"Routed{base.__name__}", (RoutedBlock, base), {"__module__": __name__})


def _restore(base: type[nn.Module]) -> nn.Module:
    cls = _routed_class(base)
    return cls.__new__(cls)
