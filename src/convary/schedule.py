# SPDX-License-Identifier: Apache-2.0
"""Annealing the temperature of a model's routers, stepped like a learning-rate scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from convary.errors import CheckpointError, ConfigError
from convary.nn import Router, check_temperature

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


class TemperatureAnnealing:
    """Sets every router's temperature; made by ``anneal``.

    Attributes:
        temperature: The value that the routers have now.
        last_step: Steps taken.
    """

    def __init__(self, model: nn.Module, start: float, stop: float, steps: int, shape: str) -> None:
        self._routers = tempered_routers(model)
        if not self._routers:
            raise ConfigError(
                f"{type(model).__name__} has no router with a temperature; DyConv and ODConv layers have one"
            )
        if shape not in _SHAPES:
            raise ConfigError(f"shape must be one of {', '.join(_SHAPES)}; got {shape!r}")
        if steps < 0:
            raise ConfigError(f"steps must be at least 0; got {steps}")
        self.start, self.stop = check_temperature(start), check_temperature(stop)
        self.steps, self.shape = int(steps), shape
        self.last_step = 0
        Router.warned = False
        self._set()

    @property
    def temperature(self) -> float:
        """``stop + (start - stop) * shape(last_step / steps)``."""
        if self.last_step >= self.steps:
            return self.stop
        return self.stop + (self.start - self.stop) * _SHAPES[self.shape](self.last_step / self.steps)

    def step(self) -> None:
        """Take one step: call it after every iteration."""
        self.last_step += 1
        if self.last_step <= self.steps:
            self._set()

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs."""
        names = ("start", "stop", "steps", "shape", "last_step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            CheckpointError: not the state of an annealing.
        """
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise CheckpointError(f"not the state of a temperature annealing: {', '.join(sorted(missing))} missing")
        check_temperature(state["start"])
        check_temperature(state["stop"])
        if state["shape"] not in _SHAPES:
            raise CheckpointError(f"shape must be one of {', '.join(_SHAPES)}; got {state['shape']!r}")
        for name in self.state_dict():
            setattr(self, name, state[name])
        self._set()

    def _set(self) -> None:
        with torch.no_grad():
            for router in self._routers:
                router.temperature.fill_(self.temperature)  # type: ignore[union-attr]


def tempered_routers(model: nn.Module) -> list[Router]:
    """The routers of a model that have a temperature."""
    return [m for m in model.modules() if isinstance(m, Router) and m.temperature is not None]


def anneal(
    model: nn.Module,
    *,
    start: float = 30.0,
    stop: float = 1.0,
    steps: int,
    shape: Literal["linear", "cosine"] = "linear",
) -> TemperatureAnnealing:
    """Anneal the temperature of all routers of a model.

    The routers are at ``start`` right away; call ``step()`` after every iteration, next to the learning-rate
    scheduler's. DyConv and ODConv publish a linear descent from 30 to 1 over the first ten epochs:
    ``anneal(model, steps=10 * len(loader))``.

    Args:
        model: A model with DyConv or ODConv layers.
        start: First temperature.
        stop: Last temperature; it stays there.
        steps: Iterations from one to the other.
        shape: "linear" or "cosine".

    Raises:
        ConfigError: no router has a temperature, or a value that can't work.
    """
    return TemperatureAnnealing(model, start, stop, steps, shape)


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Give all routers of a model one temperature.

    Raises:
        ConfigError: no router has a temperature, or the value can't work.
    """
    TemperatureAnnealing(model, temperature, temperature, 0, "linear")
