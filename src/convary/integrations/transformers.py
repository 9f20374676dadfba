# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: converted models save their recipe, load by it, and are annealed by their ``Trainer``.

``save_pretrained`` writes the recipe to the config (``config.convary``), and ``from_pretrained`` of any class restores
the dynamic layers by it. The weight decay of ``Trainer`` leaves routers out. Dynamic layers in a class of one's own
start as published where a checkpoint has no weights for them. A process that makes or converts a model has all that by
itself; one that only loads a model imports this module first.
"""

from __future__ import annotations

import functools
from typing import Any

from convary._decay import router_parameters
from convary._recipe import recipe
from convary._schedule import TemperatureAnnealing, anneal, tempered_routers
from convary.errors import CheckpointError, ConfigError
from convary.extras import require_version
from convary.integrations.restored import is_converted, restoring
from convary.nn.opaque import Opaque

require_version("convary.integrations.transformers", "transformers", "5.0", "6")
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback  # noqa: E402  # pyright: ignore[reportMissingImports]
from transformers.utils.import_utils import is_accelerate_available  # noqa: E402  # pyright: ignore[reportMissingImports]

_HUB = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


class TemperatureCallback(TrainerCallback):
    """Steps ``convary.anneal`` after every optimizer step of a ``Trainer``.

    How far it is follows from the trainer's own count of steps, which its checkpoints hold, so a resumed training
    continues at the temperature where it was.

    Args:
        start: First temperature; None for that of each router's own method.
        stop: Last temperature; None for that of each router's own method.
        fraction: Of the training's steps that the way from start to stop takes, from 0 to 1.
        steps: The way's length in steps, instead of ``fraction``.

    Raises:
        ConfigError: fraction can't be.
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or continue where a checkpoint was."""
        model = kwargs["model"]
        if not tempered_routers(model):
            return
        steps = int(state.max_steps * self.fraction) if self.steps is None else self.steps
        self.annealing = anneal(model, start=self.start, stop=self.stop, steps=steps)
        self.annealing.load_state_dict(self.annealing.state_dict() | {"last_step": state.global_step})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step per optimizer step; gradients that are only accumulated are none."""
        if self.annealing is not None:
            self.annealing.step()


def attend() -> None:
    """Make ``PreTrainedModel`` save and load recipes and ``Trainer`` spare routers; once, however often called."""
    if hasattr(PreTrainedModel, "_convary"):
        return
    base: Any = PreTrainedModel
    base._convary = True
    base.save_pretrained = _saving(base.save_pretrained)
    base.from_pretrained = classmethod(_loading(base.from_pretrained.__func__))
    base._initialize_weights = _initialising(base._initialize_weights)
    if is_accelerate_available():  # without it there is no Trainer
        from transformers import Trainer  # pyright: ignore[reportMissingImports]

        Trainer.get_decay_parameter_names = _sparing(Trainer.get_decay_parameter_names)
        Trainer._load_from_checkpoint = _resuming(Trainer._load_from_checkpoint)


def _saving(original: Any) -> Any:
    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **options: Any) -> Any:
        if is_converted(self):
            self.config.convary = recipe(self)
            self._tied_weights_keys = dict(self._tied_weights_keys or {}) | _shared(self)
        elif getattr(self.config, "convary", None):  # folded since it was loaded
            del self.config.convary
        return original(self, *args, **options)

    return save_pretrained


def _loading(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(cls: Any, path: Any, *args: Any, config: Any = None, **options: Any) -> Any:
        found = _recipe(path, config, options)
        if found is None:
            return _as_static(functools.partial(original, cls, path, *args, config=config), path, options)
        made = original(_restoring(cls, found), path, *args, config=config, **options)
        model = made[0] if isinstance(made, tuple) else made  # with output_loading_info=True
        model.__class__ = cls
        return made

    return from_pretrained


def _as_static(load: Any, path: Any, options: dict[str, Any]) -> Any:
    """What transformers makes of a checkpoint without recipe; where it does not fit, whether that is the reason.

    Raises:
        CheckpointError: the weights have routers, so a converted model wrote them.
    """
    try:
        return load(**options)
    except RuntimeError as error:  # of weights that do not fit, whose names only a report in the log has
        tolerant = options | {"ignore_mismatched_sizes": True, "output_loading_info": True}
        _, report = load(**tolerant)
        if not report["mismatched_keys"] or not any(".router." in name for name in report["unexpected_keys"]):
            raise
        raise CheckpointError(
            f"{path} has the weights of a converted model, with routers, but no recipe in its config: write it with "
            "save_pretrained of the converted model, or set config.convary = convary.recipe(model) and save the config"
        ) from error


def _initialising(original: Any) -> Any:
    """Before the model's own initialisation, which knows no bank: what is not loaded is memory that nobody filled."""

    @functools.wraps(original)
    def _initialize_weights(self: Any, module: Any, *args: Any, **options: Any) -> None:
        if isinstance(module, Opaque) and not getattr(module, "_is_hf_initialized", False):
            tensors = (*module.parameters(), *module.buffers())
            loaded = [(t, t.clone()) for t in tensors if getattr(t, "_is_hf_initialized", False)]
            module.reset_parameters()
            for tensor, values in loaded:
                tensor.copy_(values)
        original(self, module, *args, **options)

    return _initialize_weights


def _restoring(cls: Any, found: Any) -> Any:
    """``restoring``, with the weights that layers share declared, which transformers ties after loading."""
    dynamic = restoring(cls, found)
    construct = dynamic.__init__

    @functools.wraps(construct)
    def declare(self: Any, *args: Any, **options: Any) -> None:
        construct(self, *args, **options)
        self.all_tied_weights_keys = dict(self.all_tied_weights_keys) | _shared(self)

    dynamic.__init__ = declare
    return dynamic


def _recipe(path: Any, config: Any, options: dict[str, Any]) -> Any:
    """The recipe that a checkpoint's config has, or None."""
    if isinstance(config, PreTrainedConfig):
        return getattr(config, "convary", None)
    where = path if config is None else config
    if where is None:
        return None
    try:
        found, _ = PreTrainedConfig.get_config_dict(where, **{key: options[key] for key in _HUB if key in options})
    except OSError:  # no config there: an adapter's folder, or nothing, which from_pretrained will say
        return None
    return found.get("convary")


def _shared(model: Any) -> dict[str, str]:
    """The names of weights that layers share, each with the name that the weight is saved under."""
    first: dict[int, str] = {}
    names = ((name, id(p)) for name, p in model.named_parameters(remove_duplicate=False))
    return {name: first[key] for name, key in names if first.setdefault(key, name) != name}


def _resuming(original: Any) -> Any:
    @functools.wraps(original)
    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        live = self.model if model is None else model
        if _recipe(resume_from_checkpoint, None, {}) is not None and not is_converted(live):
            raise CheckpointError(
                f"{resume_from_checkpoint} is of a converted model, and the Trainer's {type(live).__name__} is static: "
                "convert it with convary.convert as before, or take model = "
                f"{type(live).__name__}.from_pretrained(checkpoint), and make the Trainer of that"
            )
        original(self, resume_from_checkpoint, model)

    return _load_from_checkpoint


def _sparing(original: Any) -> Any:
    @functools.wraps(original)
    def get_decay_parameter_names(self: Any, model: Any) -> list[str]:
        spared = set(router_parameters(model))
        return [name for name in original(self, model) if name not in spared]

    return get_decay_parameter_names


attend()
