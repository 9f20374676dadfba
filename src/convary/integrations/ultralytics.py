# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""Ultralytics' YOLO with dynamic convolutions: train, resume, val, predict and export as usual.

    import convary as cv
    from ultralytics import YOLO

    odconv = cv.integrations.ultralytics.trainer(cv.ODConv(experts=4), cv.where.kernel_size(3))
    YOLO("yolo11n.yaml").train(trainer=odconv, data="coco8.yaml", epochs=100)

Ultralytics folds every normalisation by the formula of a static convolution, counts by THOP and builds networks from
their yaml. ``attend`` exchanges the functions that do so by ones that know dynamic layers and leave static networks to
the original. It is called when this module is imported, and that happens by itself when the first dynamic layer is made
or unpickled in a process that has loaded Ultralytics: ``YOLO("best.pt")`` is enough.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import ultralytics
from torch import nn
from ultralytics.engine.model import Model
from ultralytics.models import yolo
from ultralytics.utils import LOGGER, torch_utils

from convary._convert import convert
from convary._recipe import recipe, reconvert
from convary._schedule import TemperatureAnnealing, anneal, tempered_routers
from convary.errors import ConfigError, ConversionWarning
from convary.integrations import _yolo
from convary.integrations._yolo import NAMED, converted
from convary.methods import MethodConfig
from convary.nn import Placed
from convary.where import Selector

__all__ = ["NAMED", "attend", "check_version", "trainer"]

SUPPORTED = ((8, 4), (8, 5))  # from the first on, and below the second
_STATE = "convary_annealing"  # attribute of the network in a checkpoint

_TRAINERS = {
    "detect": yolo.detect.DetectionTrainer,
    "segment": yolo.segment.SegmentationTrainer,
    "classify": yolo.classify.ClassificationTrainer,
    "pose": yolo.pose.PoseTrainer,
    "obb": yolo.obb.OBBTrainer,
}


def trainer(
    config: MethodConfig | None = None,
    where: Selector | None = None,
    *,
    anneal_epochs: float | None = None,
    base: type | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """What ``YOLO(...).train(trainer=...)`` takes: Ultralytics' trainer of the task, which converts what it builds.

    A network that starts from a converted checkpoint (fine-tuning, ``resume=True``) is converted as the checkpoint's
    was, whatever ``config`` says, and gets its weights. Temperatures are annealed per batch; the moving average has
    them as they are now, and its checkpoints the state of the annealing.

    Args:
        config: The method and its options; None where the model yaml itself names dynamic layers, or for fine-tuning.
        where: Which layers; by default the method's paper's own placement.
        anneal_epochs: Over which the temperature falls; by default as published, a third of the training at most.
            A fine-tuning from a converted checkpoint keeps the checkpoint's temperature unless this is given.
        base: The trainer to derive from; by default the one of the task: detect, segment, classify, pose or obb.
        **options: More arguments of ``convary.convert``: ``upcycle``, ``noise``, ``blocks``.

    Returns:
        A function of the trainer's arguments that returns the trainer.

    Raises:
        ConfigError: this version of Ultralytics is not supported.
    """
    check_version()
    conversion = None if config is None else {"config": config, "where": where, **options}
    own = {"conversion": conversion, "anneal_epochs": anneal_epochs}

    def make(*args: Any, overrides: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        chosen = base or _trainer_of((overrides or {}).get("task", "detect"))
        kind: Any = type(f"Converting{chosen.__name__}", (_Converting, chosen), own)
        return kind(*args, overrides=overrides, **kwargs)

    return make


def _trainer_of(task: str) -> type:
    if task not in _TRAINERS:
        raise ConfigError(f"there is no trainer for task {task!r}; it has {', '.join(_TRAINERS)}; give base=...")
    return _TRAINERS[task]


def check_version() -> None:
    """Raise ConfigError where the installed version of Ultralytics is not among the supported ones."""
    version = ultralytics.__version__
    first, end = SUPPORTED
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if not first <= numbers < end:
        low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
        raise ConfigError(
            f"Ultralytics {version} is not supported: this convary knows versions from {low} to below {high}; install "
            f"one of them: pip install 'ultralytics>={low},<{high}'"
        )


@functools.cache
def attend() -> None:
    """Tell Ultralytics about dynamic layers, once; warns where its version is not supported, and then does nothing."""
    try:
        check_version()
    except ConfigError as error:
        warnings.warn(f"{error}; its fuse() may be wrong for dynamic layers", ConversionWarning, stacklevel=2)
        return
    _yolo.patch()
    Model.train = _watching(Model.train)


def _watching(train: Callable[..., Any]) -> Callable[..., Any]:
    """``YOLO.train`` that warns where the trainer builds its network anew, without the conversion."""

    @functools.wraps(train)
    def wrapped(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        layers = converted(self.model)
        if not layers:
            return train(self, trainer, **kwargs)
        lost = functools.partial(_warn_if_lost, layers)
        self.add_callback("on_pretrain_routine_end", lost)
        try:
            return train(self, trainer, **kwargs)
        finally:
            self.callbacks["on_pretrain_routine_end"].remove(lost)

    return wrapped


def _warn_if_lost(layers: list[Placed], running: Any) -> None:
    if converted(running.model):
        return
    titles = sorted({layer.converted.title for layer in layers})
    warnings.warn(
        f"the conversion of {len(layers)} layers to {', '.join(titles)} is lost: {type(running).__name__} built a "
        "static network anew from its yaml, and trains that. Pass the conversion to the trainer: "
        f"YOLO(...).train(trainer=convary.integrations.ultralytics.trainer({layers[0].converted}, where), ...)",
        ConversionWarning,
        stacklevel=2,
    )


class _Converting:
    """Mixed into a trainer of Ultralytics in front of it."""

    conversion: dict[str, Any] | None
    anneal_epochs: float | None
    annealing: TemperatureAnnealing | None = None

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """The trainer's network, converted: as the weights' one was, or by ``config``."""
        again = bool(converted(weights))
        model: Any = super().get_model(cfg=cfg, weights=None if again else weights, verbose=verbose)  # type: ignore
        self._kept, self._again = getattr(weights, _STATE, None), again
        if again:
            model = reconvert(model, recipe(weights), inplace=True)
            model.load(weights)
        elif self.conversion is not None:
            model = convert(model, **self.conversion, inplace=True)
        LOGGER.info(f"convary: {len(converted(model))} layers are converted{' as in the checkpoint' * again}")
        return model

    def run_callbacks(self, event: str) -> None:
        """Where the annealing starts and steps."""
        if event == "on_train_start":
            self._start_annealing()
        elif event == "on_train_batch_end" and self.annealing is not None:
            self.annealing.step()
            self._show_average()
        super().run_callbacks(event)  # type: ignore[misc]

    def save_model(self) -> Any:
        """With the state of the annealing at the network that is pickled."""
        if self.annealing is not None:
            setattr(self.ema.ema, _STATE, self.annealing.state_dict())  # type: ignore[attr-defined]
        return super().save_model()  # type: ignore[misc]

    def _start_annealing(self) -> None:
        trained: Any = self
        model = torch_utils.unwrap_model(trained.model)
        epochs = _published_epochs(model) if self.anneal_epochs is None else self.anneal_epochs
        if epochs is None or (self._again and self.anneal_epochs is None and not (trained.resume and self._kept)):
            return
        if self.anneal_epochs is None:
            epochs = min(epochs, trained.epochs / 3)
        self.annealing = anneal(model, steps=round(epochs * len(trained.train_loader)))
        if trained.resume and self._kept:
            self.annealing.load_state_dict(self._kept)
        self._show_average()

    @torch.no_grad()
    def _show_average(self) -> None:
        """The temperature is no weight: an average of it would lag behind what the network routes by."""
        trained: Any = self
        live, average = torch_utils.unwrap_model(trained.model), trained.ema.ema
        for router, copied in zip(tempered_routers(live), tempered_routers(average), strict=True):
            copied.temperature.copy_(router.temperature)  # type: ignore[union-attr]


def _published_epochs(model: nn.Module) -> float | None:
    """The longest published annealing among the methods of a model's layers, or None."""
    configs = [getattr(layer, "config", layer.converted) for layer in model.modules() if isinstance(layer, Placed)]
    return max((config.annealing.epochs for config in configs if config is not None and config.annealing), default=None)


attend()
