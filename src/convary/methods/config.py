# SPDX-License-Identifier: Apache-2.0
"""The base of all method configurations: frozen, keyword-only, self-checking, JSON round trip."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import nn

from convary.errors import ConfigError, nearest
from convary.nn import DynamicConv, Router, Site

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Annealing:
    """A published temperature schedule: linear from ``start`` to ``stop`` over the first ``epochs``."""

    start: float
    stop: float
    epochs: float


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options of a method. Subclasses are frozen, keyword-only dataclasses with a default for every field."""

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    annealing: ClassVar[Annealing | None] = None
    layers: ClassVar[dict[int, type[DynamicConv]]]
    version: ClassVar[int] = 1
    upcycles: ClassVar[bool] = True  # whether its layers can start as what a trained layer computes

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **options: Any) -> MethodConfig:
            """Look for options that there are not before Python does, which knows no nearest name."""
            cls._check_names(options)
            return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every field against its annotation; subclasses add what they know.

        Raises:
            ConfigError: a value that can't work.
        """
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            _check_field(field.name, value, hints[field.name])
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """A config from loose keyword arguments.

        Raises:
            ConfigError: an unknown option, with the nearest name.
        """
        return cls(**options)

    @classmethod
    def _check_names(cls, options: Iterable[str]) -> None:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{cls.title} has no option {name!r}; it has {', '.join(known)}{nearest(name, known)}"
                )

    @property
    def promise(self) -> float:
        """How many times the parameters of the layers there are to be, as published; the attentions add to it."""
        return 1.0

    @property
    def constant_weights(self) -> bool:
        """Whether its convolutions can run as ordinary ones whose outputs are mixed, as int8 quantisation needs."""
        return all(layer.constant_weights for layer in self.layers.values())

    def options(self) -> dict[str, Any]:
        """The fields as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def refuses(self, module: nn.Module) -> str | None:
        """Why the method has no dynamic form of a layer, or None."""
        if isinstance(module, nn.Linear):
            return f"{self.title} has no dynamic form of a linear layer"
        return None

    def block_router(self, in_channels: int, **factory: Any) -> Router | None:
        """A router for all layers of a block with that many input channels; None: each layer has its own."""
        return None

    def join(self, sites: Sequence[Site], layers: Mapping[str, nn.Module]) -> None:
        """Let the new layers of one model share what the method shares between layers, in place; nothing by default.

        Args:
            sites: Every convolution and linear layer of the model as it was, in order.
            layers: What ``build`` made of some of them, by name, before it is initialised from the model's weights.
        """

    def share(self, layers: Sequence[Any]) -> None:
        """Let layers share what ``join`` would let them share, in place; all of them have this config.

        Raises:
            ConfigError: the method shares nothing between layers.
        """
        raise ConfigError(f"layers of {self.title} share no weights; got {len(layers)} that should")

    def at(self, site: Site) -> MethodConfig:
        """The config of the layer at ``site``, where the paper's depends on the block around it."""
        return self

    def build(self, module: Any) -> nn.Module:
        """A dynamic layer of the same geometry, freshly initialised.

        Args:
            module: ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d``, or ``nn.Linear`` where the method has a form of it.

        Raises:
            ConfigError: the method has no dynamic form of ``module``.
        """
        reason = self.refuses(module)
        if reason:
            raise ConfigError(reason)
        return self.layers[len(module.kernel_size)].from_conv(module, self)

    @classmethod
    def placement(cls, site: Site) -> bool:
        """Whether the paper makes the layer at ``site`` dynamic."""
        raise TypeError(f"{cls.__name__} must define placement(site)")

    def to_json(self) -> str:
        """One line of JSON that ``config_from_json`` reads back."""
        return json.dumps({"method": self.name, "version": self.version, **self.options()})


@dataclass(frozen=True, kw_only=True)
class BankConfig(MethodConfig):
    """Options of a method that mixes a bank of kernels.

    Attributes:
        experts: K, the number of kernels in the bank.
    """

    experts: int = 4

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ConfigError: a value that can't work.
        """
        super().__post_init__()
        if self.experts < 1:
            raise ConfigError(f"experts must be at least 1; got {self.experts!r}")

    @property
    def promise(self) -> float:
        """K kernels instead of one."""
        return float(self.experts)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a config's fields; every layer has a config of its own, and reading them takes long."""
    return get_type_hints(cls)


def _plain(value: Any) -> Any:
    """Numbers of numpy, which width multipliers and YAML parsers give, as Python's own; anything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and value.ndim == 0 else value


def _check_field(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal and value not in get_args(hint):
        choices = ", ".join(repr(choice) for choice in get_args(hint))
        raise ConfigError(
            f"{name} must be one of {choices}; got {value!r}{nearest(str(value), map(str, get_args(hint)))}"
        )
    words = {bool: "True or False", int: "an int", float: "a number", int | None: "an int or None"}
    words[float | None] = "a number or None"
    if hint not in words or (value is None and hint in (int | None, float | None)):
        return
    kinds = {bool: bool, float: (int, float), float | None: (int, float)}.get(hint, int)
    if not isinstance(value, kinds) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{name} must be {words[hint]}; got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless ``value`` is a finite number above zero."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be a finite number above 0; got {value}")
