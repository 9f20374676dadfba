# SPDX-License-Identifier: Apache-2.0
"""Annealing the temperature of a model's routers, stepped like a learning-rate scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from convary.errors import CheckpointError, ConfigError
from convary.nn import Router

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


class TemperatureAnnealing:
    """Sets every router's temperature; made by ``anneal``.

    Attributes:
        temperature: The value that the routers have now; the highest, where methods with ranges of their own are mixed.
        last_step: Steps taken.
    """

    def __init__(self, model: nn.Module, start: float | None, stop: float | None, steps: int, shape: str) -> None:
        self._routers = tempered_routers(model)
        if not self._routers:
            raise ConfigError(
                f"{type(model).__name__} has no router with a temperature; DyConv, ODConv and KernelWarehouse layers "
                "have one"
            )
        if shape not in _SHAPES:
            raise ConfigError(f"shape must be one of {', '.join(_SHAPES)}; got {shape!r}")
        if steps < 0:
            raise ConfigError(f"steps must be at least 0; got {steps}")
        self.start, self.stop = (_checked(self._routers, value) for value in (start, stop))
        self.steps, self.shape = int(steps), shape
        self.last_step = 0
        if self.steps:
            for router in self._routers:
                router.kin.part(router)
        Router.warned = False
        self._set()

    def __repr__(self) -> str:
        done, routers = f"step {min(self.last_step, self.steps)} of {self.steps}", f"{len(self._routers)} routers"
        return f"TemperatureAnnealing({self.shape}, {done}, temperature {self.temperature:g}, {routers})"

    @property
    def temperature(self) -> float:
        """``stop + (start - stop) * shape(last_step / steps)``."""
        return max(map(self._temperature_of, self._routers))

    def step(self) -> None:
        """Take one step: call it after every iteration."""
        self.last_step += 1
        if self.last_step <= self.steps:
            self._set()
        else:
            for router in self._routers:  # a moving average may have begun late
                router.lead_averages_()

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
        for name in ("start", "stop"):
            _checked(self._routers, state[name])
        if state["shape"] not in _SHAPES:
            raise CheckpointError(f"shape must be one of {', '.join(_SHAPES)}; got {state['shape']!r}")
        for name in self.state_dict():
            setattr(self, name, state[name])
        self._set()

    def _set(self) -> None:
        for router in self._routers:
            router.set_temperature_(self._temperature_of(router))

    def _temperature_of(self, router: Router) -> float:
        start = router.first_temperature if self.start is None else self.start
        stop = router.final_temperature if self.stop is None else self.stop
        if self.last_step >= self.steps:
            return stop
        return stop + (start - stop) * _SHAPES[self.shape](self.last_step / self.steps)


def tempered_routers(model: nn.Module) -> list[Router]:
    """The routers of a model that have a temperature."""
    return [m for m in model.modules() if isinstance(m, Router) and m.temperature is not None]


def anneal(
    model: nn.Module,
    *,
    start: float | None = None,
    stop: float | None = None,
    steps: int,
    shape: Literal["linear", "cosine"] = "linear",
) -> TemperatureAnnealing:
    """Anneal the temperature of all routers of a model.

    The routers are at ``start`` right away; call ``step()`` after every iteration, next to the learning-rate
    scheduler's. DyConv and ODConv publish a linear descent from 30 to 1 over the first ten epochs, KernelWarehouse one
    from 1 to 0 over the first twenty: ``anneal(model, steps=10 * len(loader))``.

    A moving average of the model that was deep-copied from it (timm's ``ModelEmaV3``, torch's ``AveragedModel``,
    Ultralytics' and Lightning's) routes at the live temperature too, from the step after its first update on. Other
    copies keep the temperature that they have. An average that was built in another way gets it by
    ``set_temperature(average, annealing.temperature)``.

    Args:
        model: A model with DyConv, ODConv or KernelWarehouse layers.
        start: First temperature; None for that of each router's own method.
        stop: Last temperature; it stays there. None for that of each router's own method.
        steps: Iterations from one to the other.
        shape: "linear" or "cosine".

    Raises:
        ConfigError: no router has a temperature, or a value that can't work.

    Examples:
        >>> from convary.methods import ODConv2d
        >>> layer = ODConv2d(4, 4, 3)
        >>> annealing = anneal(layer, steps=100)
        >>> for _ in range(50):
        ...     annealing.step()  # after optimizer.step()
        >>> annealing
        TemperatureAnnealing(linear, step 50 of 100, temperature 15.5, 1 routers)
    """
    return TemperatureAnnealing(model, start, stop, steps, shape)


def _checked(routers: list[Router], value: float | None) -> float | None:
    """None stands for each router's own."""
    if value is None:
        return None
    for router in routers:
        router.check_temperature(value)
    return float(value)


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Give all routers of a model one temperature.

    Raises:
        ConfigError: no router has a temperature, or the value can't work.

    Examples:
        >>> from convary.methods import ODConv2d
        >>> layer = ODConv2d(4, 4, 3)
        >>> set_temperature(layer, 30)
        >>> layer.router.temperature
        tensor(30.)
    """
    TemperatureAnnealing(model, temperature, temperature, 0, "linear")
