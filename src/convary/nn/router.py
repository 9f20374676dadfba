# SPDX-License-Identifier: Apache-2.0
"""Routers: from features to mixing coefficients; their temperature, and keeping them from learning."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convary.errors import ConfigError, TemperatureWarning
from convary.nn.arguments import Device
from convary.nn.kin import Kin
from convary.nn.opaque import Opaque
from convary.ops.geometry import autocasting
from convary.ops.tracing import is_traced


def pool(x: Tensor) -> Tensor:
    """Global average pooling: (B, C, *S) to (B, C)."""
    if x.ndim < 3:
        return x
    axes = tuple(range(2, x.ndim))
    if x.dtype is torch.bfloat16 and x.is_cpu and not is_traced(x):  # mean would write x in float32 before it adds up
        return x.sum(axes).float() / math.prod(x.shape[2:])
    return x.mean(axes)


class Router(Opaque):
    """Base of all routers: pools, leaves autocast, and keeps a temperature where the method has one.

    A subclass defines ``coefficients(vector)`` and ``neutral_()``.

    Args:
        in_channels: C.
        temperature: Start value of the temperature, or None for a router without one. It is a buffer: saved with the
            model, moved with it, and read as a tensor, so that annealing never recompiles.
    """

    first_temperature = 30.0  # where annealing begins, as published
    final_temperature = 1.0
    warned: ClassVar[bool] = False
    temperature: Tensor | None
    frozen = False  # by freeze_routing: stays in eval mode

    def __init__(self, in_channels: int, temperature: float | None = None, device: Device = None) -> None:
        super().__init__()
        self.in_channels, self.initial_temperature = in_channels, temperature
        start = None
        if temperature is not None:  # in float32 whatever the default: bfloat16 would make 30 of 29.97
            start = torch.tensor(self.check_temperature(temperature), dtype=torch.float32, device=device)
        self.register_buffer("temperature", start)
        self.kin = Kin()
        self.kin.settle(self)

    def initialise_(self) -> None:
        """Fill in the router's own numbers, its temperature too; a subclass says how its layers differ from theirs."""
        if self.temperature is not None and self.initial_temperature is not None:
            self.set_temperature_(self.initial_temperature)

    @torch.no_grad()
    def set_temperature_(self, value: float) -> None:
        """Fill in a temperature, in place; moving averages of the router get it too.

        Raises:
            ConfigError: no temperature that this router can have.
        """
        assert self.temperature is not None
        self.temperature.fill_(self.check_temperature(value))
        self.kin.settle(self)
        self.lead_averages_()

    @torch.no_grad()
    def lead_averages_(self) -> None:
        """Give the moving averages of the router its temperature: it is a setting, not something learnt."""
        for average in self.kin.averages():
            average.temperature.copy_(self.temperature)
            average.kin.settle(average)

    @classmethod
    def check_temperature(cls, value: float) -> float:
        """``value`` as a float.

        Raises:
            ConfigError: no temperature that this router can have.
        """
        return check_temperature(value)

    def forward(self, x: Tensor) -> Any:
        """Coefficients for x (B, C, *S); computed in the parameters' dtype, also under autocast."""
        if autocasting(x):
            with torch.autocast(x.device.type, enabled=False):
                return self._route(x)
        return self._route(x)

    def _route(self, x: Tensor) -> Any:
        return self.coefficients(pool(x).to(self.dtype()))

    def dtype(self) -> torch.dtype:
        """The dtype that routing is computed in; torch's default where int8 layers hold no parameters any more."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def coefficients(self, vector: Tensor) -> Any:
        """Coefficients for pooled features (B, C), of the kind that the router's layers take."""
        raise TypeError(f"{type(self).__name__} must define coefficients(vector)")

    def neutral_(self) -> None:
        """Make the coefficients the same for every input and every kernel, at every temperature, in place."""
        raise TypeError(f"{type(self).__name__} must define neutral_()")

    def fold_(self) -> None:
        """Put what inference only multiplies and adds into the linear layers, in place; nothing where it can't be.

        For a copy that is recorded: it is exact in eval mode, and no router to train.
        """

    def macs(self) -> int:
        """Multiply-adds per sample after pooling."""
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))

    def train(self, mode: bool = True) -> Router:
        """Switch modes, unless frozen; warns once when evaluation starts above the final temperature."""
        super().train(mode and not self.frozen)
        if not mode:
            self._warn_if_hot()
        return self

    def _warn_if_hot(self) -> None:
        """Warn of the first hot router that evaluates; ``anneal`` and ``set_temperature`` arm the warning again."""
        if self.training or Router.warned or self.temperature is None or self.temperature.is_meta:
            return
        temperature = float(self.temperature)
        if temperature > self.final_temperature:
            Router.warned = True
            warnings.warn(
                f"evaluating with routers at temperature {temperature:g}, above the final {self.final_temperature:g}; "
                f"step convary.anneal to its end, or convary.set_temperature(model, {self.final_temperature}) to "
                "measure the final model",
                TemperatureWarning,
                stacklevel=3,
            )

    def _tempered(self, logits: Tensor) -> Tensor:
        return logits if self.temperature is None else logits / self.temperature

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        value = state_dict.get(f"{prefix}temperature")
        if value is not None and not value.is_meta:
            self.check_temperature(float(value))
            self.kin.settle(self)
            self._warn_if_hot()

    def _apply(self, fn, recurse=True):
        before = self.temperature
        module = super()._apply(fn, recurse)
        if before is not None and self.temperature is not None and self.temperature.dtype != before.dtype:
            self.temperature = before.to(self.temperature.device)  # .half() must not round 29.97
        self.kin.settle(self)
        return module

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.kin.settle(self)


def check_temperature(value: float) -> float:
    """``value`` as a float.

    Raises:
        ConfigError: NaN, infinite, zero or negative.
    """
    value = float(value)
    if not 0.0 < value < float("inf"):
        raise ConfigError(
            f"temperature must be a finite number above 0; got {value}; usual are 30 to start with and 1 at the end"
        )
    return value


def freeze_routing(model: nn.Module, frozen: bool = True) -> None:
    """Stop routers from learning, in place: their parameters get no gradient, their norms keep their statistics.

    For the last epochs of a training, or for fine-tuning banks and static layers alone. ``model.train()`` leaves frozen
    routers in eval mode.

    Args:
        model: A model with dynamic layers.
        frozen: False lets them learn again.

    Raises:
        ConfigError: the model has no router.

    Examples:
        >>> import convary as cv
        >>> layer = cv.ODConv2d(3, 8, 3)
        >>> cv.freeze_routing(layer)
        >>> any(p.requires_grad for p in layer.router.parameters()), layer.weight.requires_grad
        (False, True)
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    if not routers:
        raise ConfigError(f"{type(model).__name__} has no router to freeze")
    for router in routers:
        router.frozen = frozen
        router.requires_grad_(not frozen)
        router.train(model.training)


def kaiming_(linear: nn.Linear | None) -> None:
    """Kaiming-normal weight by the fan-out, and bias zero, of a layer that is there."""
    if linear is None:
        return
    nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def zero_(linear: nn.Linear) -> None:
    """Zero weight and bias, so that the output does not depend on the input until trained."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def map_outputs_(linear: nn.Linear, scale: Tensor, shift: Tensor | None = None) -> None:
    """Multiply a linear layer's outputs by ``scale`` and add ``shift``, in place."""
    linear.weight.mul_(scale.to(linear.weight.dtype).reshape(-1, 1))
    if linear.bias is not None:
        linear.bias.mul_(scale.to(linear.bias.dtype))
    if shift is not None:
        linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias + shift)
