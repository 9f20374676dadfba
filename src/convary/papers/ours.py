# SPDX-License-Identifier: Apache-2.0
"""Our count of a row: its network is converted without memory, on torch's meta device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from convary._convert import convert
from convary._summary import summary
from convary.errors import GrowthWarning
from convary.methods import MethodConfig
from convary.models import Comparator, attend, create
from convary.models.architecture import drop_classifier_bias
from convary.nn.modes import shapes_only
from convary.papers.row import Row
from convary.selector import selector

IMAGE = (1, 3, 224, 224)
Conversion = tuple[MethodConfig | Comparator, str]


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What a row's network costs here.

    Attributes:
        params: All parameters.
        added: Parameters on top of the static network's.
        convolution: Multiply-adds of convolutions and linear layers, for an image of 224x224.
        routing: Of the routers.
        assembly: Of making kernels.
    """

    params: int
    added: int
    convolution: int
    routing: int
    assembly: int


def count(row: Row) -> Ours | None:
    """What a row's network costs; None where there is no such network.

    Static layers count as ``convary.summary`` counts them. Nothing is allocated but shapes.

    Raises:
        ConfigError: a network that can't be built.
    """
    if row.network is None:
        return None
    conversions = row.conversions or (((row.method, row.where),) if row.method else ())
    static = _count(row.network, (), True, row.strides_first)
    own = _count(row.network, conversions, row.classifier_bias, row.strides_first)
    params, *macs = own
    return Ours(params=params, added=params - static[0], convolution=macs[0], routing=macs[1], assembly=macs[2])


@lru_cache(maxsize=256)
def _count(network: str, conversions: tuple[Conversion, ...], bias: bool, strides_first: bool) -> tuple[int, ...]:
    with shapes_only():
        model = create(network)
        if not bias:
            drop_classifier_bias(model)
        if strides_first:
            stride_first(model)
        for config, where in conversions:
            model = _converted(model, config, where)
    costs = summary(model, torch.empty(IMAGE, device="meta"))
    return costs.params, costs.convolution + costs.other, costs.routing, costs.assembly


def _converted(model: nn.Module, config: MethodConfig | Comparator, where: str) -> nn.Module:
    if isinstance(config, Comparator):
        return attend(model, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GrowthWarning)  # what it grows to is what the table says
        return convert(model, config, selector(where, config), upcycle=False)


def stride_first(model: nn.Module) -> None:
    """Make a ResNet v1 of torchvision's v1.5: bottlenecks stride in their first layer instead of their second."""
    for block in model.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and first.kernel_size == (1, 1):
            first.stride, second.stride = second.stride, first.stride
