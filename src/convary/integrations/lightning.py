# SPDX-License-Identifier: Apache-2.0
"""Lightning: a callback that anneals the routers and keeps the recipe, and the way back from a checkpoint.

Tested with ``lightning`` 2.5 to 2.6; ``pytorch_lightning`` of the same versions serves where it alone is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

from convary._recipe import recipe, reconvert
from convary._schedule import TemperatureAnnealing, anneal, tempered_routers
from convary.errors import CheckpointError, ConfigError, ConversionWarning
from convary.extras import require_version
from convary.nn import DynamicLayer

_ALONE = importlib.util.find_spec("lightning") is None
require_version("convary.integrations.lightning", "pytorch-lightning" if _ALONE else "lightning", "2.5", "3")
pl: Any = importlib.import_module("pytorch_lightning" if _ALONE else "lightning.pytorch")
_KEY = "convary"


class TemperatureCallback(pl.Callback):
    """Steps ``convary.anneal`` after every optimizer step and writes the recipe; both are part of the checkpoints.

    Args:
        start: First temperature; None for that of each router's own method.
        stop: Last temperature; None for that of each router's own method.
        fraction: Of the training's steps that the way from start to stop takes, from 0 to 1.
        steps: The way's length in steps, instead of ``fraction``.

    Raises:
        ConfigError: fraction or steps can't be.
    """

    def __init__(
        self,
        start: float | None = None,
        stop: float | None = None,
        fraction: float = 0.5,
        steps: int | None = None,
    ) -> None:
        if not 0.0 <= fraction <= 1.0:
            raise ConfigError(f"fraction must be from 0 to 1, a part of the training; got {fraction}")
        self.start, self.stop, self.fraction, self.steps = start, stop, fraction, steps
        self.annealing: TemperatureAnnealing | None = None
        self._restored: dict[str, Any] | None = None
        self._seen = self._layers = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Count the dynamic layers, before ``configure_model`` may build other ones."""
        self._layers = _dynamic_layers(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or continue where a checkpoint was."""
        if _dynamic_layers(pl_module) < self._layers:
            warnings.warn(
                f"the conversion is lost: configure_model of {type(pl_module).__name__} built the layers again, and "
                f"{_dynamic_layers(pl_module)} of {self._layers} are dynamic; call convary.convert at its end",
                ConversionWarning,
                stacklevel=2,
            )
        if not tempered_routers(pl_module):  # a method without a temperature: only the recipe is kept
            return
        steps = self.steps
        if steps is None:
            steps = int(trainer.estimated_stepping_batches * self.fraction)
        self.annealing = anneal(pl_module, start=self.start, stop=self.stop, steps=steps)
        if self._restored is not None:
            self.annealing.load_state_dict(self._restored)
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """One step per optimizer step: a batch whose gradient is only accumulated is none."""
        if self.annealing is not None and trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.annealing.step()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the recipe."""
        if _dynamic_layers(pl_module):
            checkpoint[_KEY] = recipe(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The annealing's."""
        return {} if self.annealing is None else self.annealing.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the model is there."""
        self._restored = state_dict or None


def load_from_checkpoint(module: type, path: Any, **options: Any) -> Any:
    """``module.load_from_checkpoint(path, **options)`` for a model that was converted after it was built.

    Args:
        module: A ``LightningModule`` that builds the static network, by the arguments that the checkpoint or the
            options have.
        path: A checkpoint that a trainer with ``TemperatureCallback`` wrote.
        **options: Of ``load_from_checkpoint``.

    Returns:
        The module with its dynamic layers and weights.

    Raises:
        CheckpointError: the checkpoint has no recipe.
    """

    class Restored(module):  # the hook that Lightning calls between building the module and loading its weights
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if _KEY not in checkpoint:
                raise CheckpointError(
                    f"{path} has no recipe of a conversion; train with convary.integrations.lightning."
                    "TemperatureCallback, or convert in __init__ and call load_from_checkpoint of the class"
                )
            reconvert(self, checkpoint[_KEY], inplace=True)
            super().on_load_checkpoint(checkpoint)

    made = Restored.load_from_checkpoint(path, **options)
    made.__class__ = module
    return made


def _dynamic_layers(module: Any) -> int:
    return sum(isinstance(layer, DynamicLayer) for layer in module.modules())
