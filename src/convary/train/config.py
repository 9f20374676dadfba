# SPDX-License-Identifier: Apache-2.0
"""Everything that decides what ``convary compare`` does; the command line makes its flags of this class."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from convary.errors import ConfigError
from convary.train.options import BasicOptions, LearningOptions, MachineOptions, ScaleOptions
from convary.train.recipes import training_recipe
from convary.train.run_config import RunConfig, check_threads

if TYPE_CHECKING:
    from convary.data import DataSet
    from convary.train.arms import Arm

SKIPPED = "skipped.txt"
RANDOM = "random"
USUAL = {"init": "paper", "lr": (0.01,)}
TUNED = {"init": "upcycle", "lr": (0.001,)}  # with trained weights


@dataclass(frozen=True, kw_only=True)
class CompareConfig(MachineOptions, ScaleOptions, LearningOptions, BasicOptions, RunConfig):
    """Train a static network and its dynamic versions on the same data, with the same budget and seeds."""

    command_name: ClassVar[tuple[str, ...]] = ("compare",)
    shown: ClassVar[tuple[str, ...]] = ("data", "model", "methods", "epochs", "seeds", "out")
    places: ClassVar[tuple[str, ...]] = (
        *RunConfig.places,
        "workers",
        "threads",
        "skip_broken",
        "shard",
        "methods",
        "seeds",
        "measure_seconds",
    )
    later: ClassVar[tuple[str, ...]] = (
        *("weights", "recipe", "milestones", "exponential", "nesterov", "decay", "dropout", "classifier_bias"),
        *(
            field.name
            for field in dataclasses.fields(ScaleOptions)
            if field.name not in ("workers", "skip_broken", "shard")
        ),
    )

    def __post_init__(self) -> None:
        """Check every field that can be checked without data.

        Raises:
            ConfigError: a value that cannot work.
        """
        for name, value in (TUNED if self.pretrained else USUAL).items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, value)
        object.__setattr__(self, "lr", (self.lr,) if isinstance(self.lr, (int, float)) else tuple(sorted(self.lr)))
        for name in ("methods", "milestones", "log"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("out", "root", "start"):
            object.__setattr__(self, name, None if getattr(self, name) is None else Path(getattr(self, name)))
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ConfigError(f"methods must name at least one method and none twice; got {' '.join(self.methods)!r}")
        for name in ("epochs", "seeds", "batch_size", "image_size", "jobs", "lr_seeds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")
        check_threads(self.threads)
        if not self.lr or len(set(self.lr)) != len(self.lr):
            raise ConfigError(f"lr must be one learning rate or several different ones; got {self.lr}")
        for lr in self.lr:
            if not 0 < lr < math.inf:
                raise ConfigError(f"lr must be above 0 and finite; got {lr}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be a part between 0 and 1; got {self.held_out}")
        parts = {"warmup": 1, "label_smoothing": 1}
        for name in ("weight_decay", "save_every", "measure_seconds", *parts):
            top = parts.get(name, math.inf)
            if not 0 <= getattr(self, name) < top:
                raise ConfigError(f"{name} must be at least 0 and below {top}; got {getattr(self, name)}")
        if self.anneal_epochs is not None and not 0 <= self.anneal_epochs <= self.epochs:
            raise ConfigError(f"anneal_epochs must be between 0 and epochs={self.epochs}; got {self.anneal_epochs}")
        if self.start is not None and self.pretrained:
            raise ConfigError(f"start={self.start} and weights={self.weights} both say what to start from; give one")
        if self.trained is not None and not self.classifier_bias:
            raise ConfigError(f"{self.trained} has a classifier with a bias; leave out --no-classifier-bias")
        self._check_recipe()
        self.check_scale()
        for arm in self.arms().values():
            self._check_arm(arm)

    def _check_recipe(self) -> None:
        if self.recipe is not None:
            training_recipe(self.recipe)
        if list(self.milestones) != sorted({epoch for epoch in self.milestones if epoch > 0}):
            raise ConfigError(f"milestones must be epochs in rising order, from 1; got {self.milestones}")
        if self.exponential is not None:
            object.__setattr__(self, "exponential", tuple(self.exponential))
            if self.milestones:
                raise ConfigError(f"milestones and exponential both say how lr falls; got {self.milestones} too")
            if not (0 < self.exponential[0] <= 1 and self.exponential[1] > 0):
                raise ConfigError(
                    f"exponential is a factor up to 1 and a number of epochs, as in 0.97 2.4; got {self.exponential}"
                )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1; got {self.dropout}")

    @classmethod
    def from_recipe(cls, name: str, **given: Any) -> CompareConfig:
        """A comparison under a published training.

        Args:
            name: Of the recipe, see ``convary.train.recipes``.
            given: Any other field; it takes precedence over the recipe's.

        Raises:
            ConfigError: no such recipe, or a value that cannot work.
        """
        return cls(**{**training_recipe(name).options(), "recipe": name, **given})

    def usual(self, field: dataclasses.Field) -> Any:
        """The default of a flag, which is the recipe's where there is one."""
        options = TUNED if self.pretrained else USUAL
        options = options if self.recipe is None else {**options, **training_recipe(self.recipe).options()}
        return options.get(field.name, field.default)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result; those of ``later``, which older runs had not, only where they are set."""
        unset = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) == field.default}
        return {name: value for name, value in super().identity().items() if name not in unset.intersection(self.later)}

    def training(self) -> str | None:
        """The recipe and what was changed of it, in one line; None without a recipe."""
        if self.recipe is None:
            return None
        wanted = training_recipe(self.recipe).options()
        changed = [
            f"{name} {_told(getattr(self, name))} instead of {_told(value)}"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]
        return "; ".join([self.recipe, *changed])

    def _check_arm(self, arm: Arm) -> None:
        init = self.start_of(arm)
        if self.decay != "kernels" and init == "upcycle":
            raise ConfigError(
                f"decay={self.decay} is for networks that start anew; with init=upcycle leave it out (kernels)"
            )
        if self.anneal_epochs is not None and init == "neutral":
            raise ConfigError(
                "init=neutral starts at the last temperature and anneals nothing; leave anneal_epochs out"
            )
        if init == "upcycle" and arm.method is not None and not arm.method.upcycles:
            instead = "give another init" if self.trained is None else "leave it out"
            raise ConfigError(f"{arm.name} cannot start as what the static network computes; {instead}")
        if self.trained is not None and init != "upcycle":
            raise ConfigError(f"{self.trained} wants init=upcycle: add --init upcycle; {arm.name} has init={init}")
        if self.trained is not None and arm.method is None and not arm.is_static:
            raise ConfigError(
                f"{arm.name} cannot start from the weights of {self.trained}, which are of another width; leave it out"
            )
        from convary.methods import METHODS
        from convary.selector import selector

        selector(self.where, arm.method if arm.is_dynamic and arm.method else METHODS[0]())

    @property
    def pretrained(self) -> bool:
        """Whether networks start from trained weights that were given."""
        return self.weights != RANDOM

    @property
    def trained(self) -> str | None:
        """What it starts from, as written; None where networks start untrained."""
        if self.start is not None:
            return f"start={self.start}"
        return f"weights={self.weights}" if self.pretrained else None

    def start_of(self, arm: Arm) -> str:
        """How the arm starts."""
        return arm.init or str(self.init)

    def load_images(self) -> DataSet:
        """The data set, read as this says; raises DataError where it is missing or broken."""
        from convary.data import load
        from convary.data.cards import PHOTOGRAPHS
        from convary.data.reading import Reading
        from convary.models.pretrained import read

        reading = Reading(
            crops=self.crops,
            test_size=self.test_size,
            interpolation=self.interpolation,
            workers=self.workers,
            skipped=self.out / SKIPPED if self.skip_broken else None,
        )
        wanted = read(self.model, self.weights).seen if self.pretrained else None
        size = self.image_size or (wanted.size if wanted is not None and self.data.startswith(PHOTOGRAPHS) else None)
        dataset = load(self.data, self.root, self.limit_train, image_size=size, reading=reading)
        if wanted is None or wanted.mean is None or wanted.std is None:
            return dataset
        if len(wanted.mean) != dataset.shape[0]:
            raise ConfigError(
                f"the weights of {self.model} want images with {len(wanted.mean)} channels, but those of {self.data} "
                f"have {dataset.shape[0]}; give --weights random, or other images"
            )
        return dataclasses.replace(dataset, mean=wanted.mean, std=wanted.std)

    def arms(self) -> dict[str, Arm]:
        """What to train, in order, by name.

        Raises:
            ConfigError: an unknown arm, one with options that its method does not take, or one as expensive as a
                method that is not trained.
        """
        from convary.train.arms import read_arm

        arms = {name: read_arm(name) for name in self.methods}
        for arm in arms.values():
            if arm.like and arm.like not in arms:
                raise ConfigError(f"{arm.name} needs {arm.like} among the methods; got {' '.join(self.methods)}")
        return arms

    def annealing_epochs(self, arm: Arm) -> float | None:
        """Epochs over which the arm's temperature falls; None where it has none, or begins at its end."""
        annealing = None if arm.method is None else arm.method.annealing
        if annealing is None:
            return None
        if self.start_of(arm) == "neutral" and annealing.stop > 0:  # KernelWarehouse's falls to 0 from there
            return None
        if self.anneal_epochs is not None:
            return self.anneal_epochs
        return min(annealing.epochs, self.epochs / 3)


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
