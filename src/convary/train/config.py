# SPDX-License-Identifier: Apache-2.0
"""Everything that decides what ``convary compare`` does; the command line makes its flags of this class."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from convary.catalogue import METHOD_NAMES
from convary.errors import ConfigError
from convary.train.options import ScaleOptions
from convary.train.recipes import training_recipe
from convary.train.run_config import Kind, RunConfig, check_threads

if TYPE_CHECKING:
    from convary.data import DataSet
    from convary.train.arms import Arm

Init = Literal["paper", "neutral", "upcycle"]
SKIPPED = "skipped.txt"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ScaleOptions, RunConfig):
    """Train a static network and its dynamic versions on the same data, with the same budget and seeds."""

    command_name: ClassVar[tuple[str, ...]] = ("compare",)
    shown: ClassVar[tuple[str, ...]] = ("data", "model", "methods", "epochs", "seeds", "out")
    places: ClassVar[tuple[str, ...]] = (*RunConfig.places, "workers", "skip_broken")
    later: ClassVar[tuple[str, ...]] = (
        *("recipe", "milestones", "nesterov", "decay", "dropout"),
        *(field.name for field in dataclasses.fields(ScaleOptions) if field.name not in ("workers", "skip_broken")),
    )

    data: str = "fashion-mnist-mini"
    """fashion-mnist-mini (embedded), control (a made-up task that needs a dynamic kernel), fashion-mnist, cifar10,
    cifar10-conditions (day, night, negatives, on its side), cifar100, or folder:PATH with one sub-folder per class."""

    model: str = "mobilenet_v2_tiny"
    """mobilenet_v2_tiny, convnet_nano (3,332 parameters for ten classes in grey), resnet20, one_conv,
    torchvision:NAME or timm:NAME; convnet_nano@1.25 is 1.25 times as wide."""

    methods: tuple[str, ...] = ("static", *METHOD_NAMES)
    """What to train: static and any of the methods, in the order of the report. odconv:experts=2,sharing=per_kernel is
    a method with options of its own, odconv:init=neutral one with another start than the others. static@1.25 is a
    static network 1.25 times as wide, static@macs:odconv (or static@params:odconv) one as expensive as the network of
    a method. se, cbam, eca and we (weight excitation) are what the papers compare with."""

    where: str = "paper"
    """Which layers become dynamic: paper, or a selector as in 'all & ~first'; see convary plan."""

    epochs: int = 3
    """Passes over the training images, for every method."""

    seeds: int = 1
    """How many times to train each method, with the seeds 0, 1, ...; more than one gives a standard deviation."""

    out: Path = Path("runs/compare")
    """Folder for the report, results.json and checkpoints. An interrupted run in it is resumed."""

    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""

    batch_size: int = 32
    """Images per training step, over all processes."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw; or sgd with Nesterov momentum 0.9, which wants lr=0.1 and weight_decay=0.0005. In a short training
    adamw lets routers learn before their temperature falls."""

    lr: tuple[float, ...] = (0.01,)
    """Highest learning rate: it rises during the warm-up, then falls along a cosine. Of several, every network gets
    the one that is best for it on the held-out part of the training images; test images are not looked at for it."""

    held_out: float = 0.1
    """Part of the training images that the choice of a learning rate is judged on; the final trainings have it too."""

    lr_seeds: int = 1
    """Seeds with which each of several learning rates is tried."""

    weight_decay: float = 0.05
    """Weight decay of kernels and linear layers; routers, gates, norms and biases have none, see cv.param_groups."""

    warmup: float = 0.1
    """Part of all steps over which the learning rate rises to its highest value."""

    clip: float | None = 1.0
    """Largest norm of a step's gradient; longer ones are scaled down. Routers that sharpen give such steps."""

    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""

    augment: bool = False
    """Shift and mirror the training images at random. Helps long trainings, costs short ones."""

    init: Init = "paper"
    """paper: every expert is initialised on its own, as published. neutral: experts likewise, but routers begin with
    the same coefficients for every image, at their final temperature. upcycle: from the seed's static weights."""

    anneal_epochs: float | None = None
    """Epochs over which temperatures fall to their last value; by default as published, but at most a third of all."""

    start: Path | None = None
    """Folder of a finished comparison: every network starts as what its trained static network of the same seed
    computes, and trains on; add --init upcycle. What static gains by training on is then no gain of a method. It has
    seen the images that several lr are judged on; a single lr needs no judge."""

    image_size: int | None = None
    """Height and width for the images of folder:PATH; 64 by default."""

    root: Path | None = None
    """Where data sets lie; by default $CONVARY_DATA, or a folder in your cache."""

    threads: int | None = None
    """CPU threads; by default torch's own choice. Another number may give other roundings."""

    cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""

    jobs: int = 1
    """Trainings at a time, each in a process of its own with one thread (or --threads); for CPUs. With --threads 1
    another number of jobs gives the same results to the last digit."""

    save_every: float = 20.0
    """Seconds between checkpoints inside an epoch."""

    watch: bool = False
    """Write report.html while it trains too, after each epoch; an open page reloads itself."""

    log: tuple[Kind, ...] = ()
    """Write losses and scores as they come: to csv (OUT/log.csv), tensorboard (OUT/tensorboard), wandb."""

    measure_seconds: float = 1.0
    """Seconds for each timing of a dynamic network against the static one."""

    recipe: str | None = None
    """A published training, as in odconv-resnet: it sets epochs, batch size, optimizer, learning rate, decay, dropout
    and more, each of which its own flag overrides. The results name the recipe and what was changed."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls to a tenth; without any it falls along a cosine."""

    nesterov: bool = True
    """Whether the momentum of sgd is Nesterov's."""

    decay: Literal["kernels", "weights", "all"] = "kernels"
    """What weight_decay shrinks: kernels and linear layers; weights, which are all but biases and those of one axis; or
    all parameters, routers among them, as most papers did."""

    dropout: float | None = None
    """Probability of dropping a feature before the classifier; by default the network's own."""

    def __post_init__(self) -> None:
        """Check every field that can be checked without data.

        Raises:
            ConfigError: a value that cannot work.
        """
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
        for name, value in (*(("lr", lr) for lr in self.lr), ("measure_seconds", self.measure_seconds)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite; got {value}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be a part between 0 and 1; got {self.held_out}")
        for name, top in (("weight_decay", math.inf), ("warmup", 1), ("label_smoothing", 1), ("save_every", math.inf)):
            if not 0 <= getattr(self, name) < top:
                raise ConfigError(f"{name} must be at least 0 and below {top}; got {getattr(self, name)}")
        if self.anneal_epochs is not None and not 0 <= self.anneal_epochs <= self.epochs:
            raise ConfigError(f"anneal_epochs must be between 0 and epochs={self.epochs}; got {self.anneal_epochs}")
        self._check_recipe()
        self.check_scale()
        for arm in self.arms().values():
            self._check_arm(arm)

    def _check_recipe(self) -> None:
        if self.recipe is not None:
            training_recipe(self.recipe)
        if list(self.milestones) != sorted({epoch for epoch in self.milestones if epoch > 0}):
            raise ConfigError(f"milestones must be epochs in rising order, from 1; got {self.milestones}")
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
        options = {} if self.recipe is None else training_recipe(self.recipe).options()
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
        init = arm.init or self.init
        if self.decay != "kernels" and init == "upcycle":
            raise ConfigError(
                f"decay={self.decay} is for networks that start anew; with init=upcycle leave it out (kernels)"
            )
        if self.anneal_epochs is not None and init == "neutral":
            raise ConfigError(
                "init=neutral starts at the last temperature and anneals nothing; leave anneal_epochs out"
            )
        if init == "upcycle" and arm.method is not None and not arm.method.upcycles:
            raise ConfigError(f"{arm.name} cannot start as what the static network computes; give another init")
        if self.start is not None and init != "upcycle":
            raise ConfigError(f"start={self.start} wants init=upcycle: add --init upcycle; {arm.name} has init={init}")
        if self.start is not None and arm.method is None and not arm.is_static:
            raise ConfigError(f"{arm.name} cannot start from the static network of {self.start}: it is another one")
        from convary.methods import METHODS
        from convary.selector import selector

        selector(self.where, arm.method if arm.is_dynamic and arm.method else METHODS[0]())

    def load_images(self) -> DataSet:
        """The data set, read as this says; raises DataError where it is missing or broken."""
        from convary.data import load
        from convary.data.reading import Reading

        reading = Reading(
            crops=self.crops,
            test_size=self.test_size,
            interpolation=self.interpolation,
            workers=self.workers,
            skipped=self.out / SKIPPED if self.skip_broken else None,
        )
        return load(self.data, self.root, self.limit_train, image_size=self.image_size, reading=reading)

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
        if (
            arm.init or self.init
        ) == "neutral" and annealing.stop > 0:  # KernelWarehouse's falls to 0 from a neutral start
            return None
        if self.anneal_epochs is not None:
            return self.anneal_epochs
        return min(annealing.epochs, self.epochs / 3)


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
