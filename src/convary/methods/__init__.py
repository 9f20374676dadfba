# SPDX-License-Identifier: Apache-2.0
"""The methods: one paper, one file. ``METHODS`` is the one list that tests, command line, report and docs iterate.

It holds the methods that can start as what a trained convolution computes. ``Involution`` replaces convolutions too,
but can't take over what they learned; CARAFE and DMNet's module stand where no convolution stood.
"""

from __future__ import annotations

import json
from typing import Any

from convary.errors import ConfigError, nearest
from convary.methods.carafe import CARAFE
from convary.methods.cgc import CGC, CGC1d, CGC2d, CGC3d
from convary.methods.condconv import CondConv, CondConv1d, CondConv2d, CondConv3d
from convary.methods.config import Annealing, MethodConfig
from convary.methods.dcd import DCD, DCDConv1d, DCDConv2d, DCDConv3d, DCDLinear
from convary.methods.dfn import DFNConv2d, DFNLocalFilter2d
from convary.methods.dmnet import DynamicConvModule
from convary.methods.dyconv import DyConv, DyConv1d, DyConv2d, DyConv3d
from convary.methods.dynet import DyNet, DyNetConv1d, DyNetConv2d, DyNetConv3d
from convary.methods.fdconv import FDConv, FDConv1d, FDConv2d, FDConv3d
from convary.methods.hdfnet import DDPM, DepthDC
from convary.methods.involution import Involution, Involution2d
from convary.methods.kernelwarehouse import (
    KernelWarehouse,
    KernelWarehouse1d,
    KernelWarehouse2d,
    KernelWarehouse3d,
    KernelWarehouseLinear,
    share_warehouse,
)
from convary.methods.odconv import ODConv, ODConv1d, ODConv2d, ODConv3d
from convary.methods.perceptron import MixedLinear
from convary.methods.weightnet import WeightNet, WeightNet1d, WeightNet2d, WeightNet3d

METHODS: tuple[type[MethodConfig], ...] = (
    CondConv,
    DyConv,
    DyNet,
    ODConv,
    KernelWarehouse,
    DCD,
    WeightNet,
    CGC,
    FDConv,
)
"""The config of every method that a convolution can be converted to."""
_BY_NAME: dict[str, type[MethodConfig]] = {config.name: config for config in (*METHODS, Involution)}


def method(name: str, **options: Any) -> MethodConfig:
    """The config of a method by its name.

    Raises:
        ConfigError: unknown method or option, with the nearest name.

    >>> method("odconv", experts=1).experts
    1
    """
    if name not in _BY_NAME:
        raise ConfigError(f"there is no method {name!r}; choose from {', '.join(_BY_NAME)}{nearest(name, _BY_NAME)}")
    return _BY_NAME[name].from_options(options)


def config_from_json(text: str) -> MethodConfig:
    """The config that ``MethodConfig.to_json`` wrote.

    Raises:
        ConfigError: not such a text, an unknown method or option, or a newer version.

    >>> config_from_json(ODConv(experts=2).to_json()) == ODConv(experts=2)
    True
    """
    try:
        options = json.loads(text)
        name, version = options.pop("method"), options.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"a method config is JSON like {ODConv().to_json()}; got {text[:80]!r}") from error
    if name in _BY_NAME and version != _BY_NAME[name].version:
        raise ConfigError(
            f"{name} config has version {version}, this convary reads version {_BY_NAME[name].version}; update convary"
        )
    return method(str(name), **options)


__all__ = [
    "CARAFE", "CGC", "DCD", "DDPM", "METHODS", "Annealing", "CGC1d", "CGC2d", "CGC3d", "CondConv", "CondConv1d",
    "CondConv2d", "CondConv3d", "DCDConv1d", "DCDConv2d", "DCDConv3d", "DCDLinear", "DFNConv2d", "DFNLocalFilter2d",
    "DepthDC", "DyConv", "DyConv1d", "DyConv2d", "DyConv3d", "DyNet", "DyNetConv1d", "DyNetConv2d", "DyNetConv3d",
    "DynamicConvModule", "FDConv", "FDConv1d", "FDConv2d", "FDConv3d", "Involution", "Involution2d", "KernelWarehouse",
    "KernelWarehouse1d", "KernelWarehouse2d", "KernelWarehouse3d", "KernelWarehouseLinear", "MethodConfig",
    "MixedLinear", "ODConv", "ODConv1d", "ODConv2d", "ODConv3d", "WeightNet", "WeightNet1d", "WeightNet2d",
    "WeightNet3d", "config_from_json", "method", "share_warehouse",
]  # fmt: skip
