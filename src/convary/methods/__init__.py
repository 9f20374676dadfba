# SPDX-License-Identifier: Apache-2.0
"""The methods: one paper, one file. ``METHODS`` is the one list that tests, command line, report and docs iterate."""

from __future__ import annotations

import json
from typing import Any

from convary.errors import ConfigError, nearest
from convary.methods.condconv import CondConv, CondConv1d, CondConv2d, CondConv3d
from convary.methods.config import Annealing, MethodConfig
from convary.methods.dcd import DCD, DCDConv1d, DCDConv2d, DCDConv3d, DCDLinear
from convary.methods.dfn import DFNConv2d, DFNLocalFilter2d
from convary.methods.dyconv import DyConv, DyConv1d, DyConv2d, DyConv3d
from convary.methods.dynet import DyNet, DyNetConv1d, DyNetConv2d, DyNetConv3d
from convary.methods.kernel_warehouse import (
    KernelWarehouse,
    KernelWarehouse1d,
    KernelWarehouse2d,
    KernelWarehouse3d,
)
from convary.methods.odconv import ODConv, ODConv1d, ODConv2d, ODConv3d
from convary.methods.perceptron import MixedLinear

METHODS: tuple[type[MethodConfig], ...] = (CondConv, DyConv, DyNet, ODConv, KernelWarehouse, DCD)


def method(name: str, **options: Any) -> MethodConfig:
    """The config of a method by its name.

    Raises:
        ConfigError: unknown method or option, with the nearest name.

    >>> method("odconv", experts=1).experts
    1
    """
    by_name = {config.name: config for config in METHODS}
    if name not in by_name:
        raise ConfigError(f"there is no method {name!r}; choose from {', '.join(by_name)}{nearest(name, by_name)}")
    return by_name[name].from_options(options)


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
    known = {config.name: config.version for config in METHODS}
    if version != known.get(name, version):
        raise ConfigError(
            f"{name} config has version {version}, this convary reads version {known[name]}; update convary"
        )
    return method(str(name), **options)


__all__ = [
    "DCD", "METHODS", "Annealing", "CondConv", "CondConv1d", "CondConv2d", "CondConv3d", "DCDConv1d", "DCDConv2d",
    "DCDConv3d", "DCDLinear", "DFNConv2d", "DFNLocalFilter2d", "DyConv", "DyConv1d", "DyConv2d", "DyConv3d", "DyNet", "DyNetConv1d", "DyNetConv2d",
    "DyNetConv3d", "KernelWarehouse", "KernelWarehouse1d", "KernelWarehouse2d", "KernelWarehouse3d", "MethodConfig",
    "MixedLinear", "ODConv", "ODConv1d", "ODConv2d", "ODConv3d", "config_from_json", "method",
]  # fmt: skip
