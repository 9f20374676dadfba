# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""Multiply-adds of dynamic layers for counters that know torch's own layers only.

    import convary as cv, ptflops, thop, torchinfo

    thop.profile(model, inputs=(x,), custom_ops=cv.integrations.counters.thop())
    ptflops.get_model_complexity_info(
        model, (3, 224, 224), custom_modules_hooks=cv.integrations.counters.ptflops(),
        backend="pytorch", backend_specific_config={"count_functional": False},
    )
    cv.integrations.counters.attend()  # torchinfo
    torchinfo.summary(model, input_data=x)

``attend`` is called by itself where torchinfo was imported before the first dynamic layer was made. What a dynamic
layer adds is then what ``convary.summary`` says; what these programs count besides (normalisations, activations) is
theirs. fvcore and torch's ``FlopCounterMode`` need nothing: they follow the operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from convary.methods import METHODS, DCDLinear, Involution2d, MixedLinear

_Hook = Callable[[Any, tuple, Tensor], None]


def counted_layers() -> list[type[Any]]:
    """The layers that know their multiply-adds."""
    return [*(layer for config in METHODS for layer in config.layers.values()), MixedLinear, DCDLinear, Involution2d]


def macs(layer: Any, size: Sequence[int]) -> int:
    """Multiply-adds of a call of a layer whose output has that size, of all samples."""
    linear = hasattr(layer, "in_features")
    fewest = 2 if linear else len(layer.kernel_size) + 2
    size = (1,) * (len(size) < fewest) + tuple(size)
    return size[0] * sum(layer.macs(prod(size[1:-1] if linear else size[2:])).values())


def thop() -> dict[type[nn.Module], _Hook]:
    """``thop.profile``'s ``custom_ops``, for thop and for ultralytics-thop, a module of the same name.

    The latter also counts the modules inside a layer that has an operation of its own; these are taken off again.
    """
    import thop

    counts_inside = int(thop.__version__.split(".")[0]) >= 2  # ultralytics-thop

    def add(layer: Any, args: tuple, y: Tensor) -> None:
        layer.total_ops += macs(layer, y.shape)
        if counts_inside:
            layer.total_ops -= sum(getattr(m, "total_ops", 0) for m in layer.modules() if m is not layer)

    return dict.fromkeys(counted_layers(), add)


def ptflops() -> dict[type[nn.Module], _Hook]:
    """``custom_modules_hooks`` of ``ptflops.get_model_complexity_info`` with ``backend="pytorch"``.

    With ``backend_specific_config={"count_functional": False}``, or ptflops counts the functions inside the layers too.
    """

    def add(layer: Any, args: tuple, y: Tensor) -> None:
        layer.__flops__ += macs(layer, y.shape)

    return dict.fromkeys(counted_layers(), add)


@functools.cache
def attend() -> None:
    """Tell torchinfo, which counts modules without children by their parameters, about dynamic layers, once."""
    from torchinfo import layer_info, model_statistics

    row: Any = layer_info.LayerInfo
    sums: Any = model_statistics.ModelStatistics
    row.calculate_macs, row.macs_to_str = _calculating(row.calculate_macs), _showing(row.macs_to_str)
    sums.__init__ = _totalling(sums.__init__)


def _is_counted(info: Any) -> bool:
    return isinstance(info.module, tuple(counted_layers()))


def _calculating(calculate: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(calculate)
    def calculate_macs(self: Any) -> None:
        if _is_counted(self):
            self.macs = macs(self.module, self.output_size)
        else:
            calculate(self)

    return calculate_macs


def _showing(show: Callable[[Any, bool], str]) -> Callable[[Any, bool], str]:
    @functools.wraps(show)
    def macs_to_str(self: Any, reached_max_depth: bool) -> str:
        return f"{self.macs:,}" if _is_counted(self) else show(self, reached_max_depth)

    return macs_to_str


def _totalling(total: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(total)
    def __init__(self: Any, summary_list: list[Any], *args: Any, **kwargs: Any) -> None:
        total(self, summary_list, *args, **kwargs)
        for info in filter(_is_counted, summary_list):  # in the place of what torchinfo counts inside the layer
            self.total_mult_adds += info.macs - sum(child.macs for child in info.children if child.is_leaf_layer)

    return __init__
