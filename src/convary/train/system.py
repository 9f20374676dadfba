# SPDX-License-Identifier: Apache-2.0
"""What is trained: a whole network with the data, the loss and the scores that belong to it."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from convary.errors import ConfigError
from convary.train.checkpoint import SYSTEM
from convary.train.layout import Layout
from convary.train.run_config import Kind, RunConfig, check_threads
from convary.train.stream import stream

LEARNED = "Scored on {what} that it was trained on: this shows that it can learn, not how it does on others."


@dataclass(frozen=True, kw_only=True)
class SystemConfig(RunConfig, abc.ABC):
    """The options every system has; a system's config derives from it, with its own options and defaults.

    Attributes:
        name: What the command line calls it.
        title: For people.
        citation: The paper.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    group: ClassVar[str] = "training"  # the title of these options in the help
    places: ClassVar[tuple[str, ...]] = (*RunConfig.places, "workers", "threads", "cpu")

    out: Path
    """Folder of the checkpoint, the scores and the pictures; an interrupted run in it is resumed."""
    steps: int
    """Training steps."""
    batch_size: int
    """Items per step, over all processes."""
    lr: float
    """Highest learning rate."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    evaluate_every: int = 0
    """Steps between two evaluations, each of which draws the pictures; 0: only at the end."""
    save_every: float = 60.0
    """Seconds between two checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: automatic mixed precision."""
    workers: int = 0
    """Processes that load data; 0: the training process itself."""
    threads: int | None = None
    """torch's threads; by default torch's own choice."""
    cpu: bool = False
    """Stay on the CPU where there is an accelerator."""
    watch: bool = False
    """Write report.html while it trains too, with the pictures of each evaluation; an open page reloads itself."""
    log: tuple[Kind, ...] = ()
    """Give losses and scores, which OUT/log.csv always has, to tensorboard (OUT/tensorboard) or wandb too."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            cls.command_name = ("train", cls.name)

    def __post_init__(self) -> None:
        for field, least in (("steps", 1), ("batch_size", 1), ("evaluate_every", 0), ("workers", 0), ("save_every", 0)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} must be at least {least}; got {getattr(self, field)}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be above 0; got {self.lr}")
        check_threads(self.threads)

    @abc.abstractmethod
    def load(self) -> System:
        """The system with its data; raises DataError where the data are missing or broken."""

    def others(self) -> dict[str, SystemConfig]:
        """What ``convary train`` trains beside it, by what the report calls them; as a rule nothing."""
        return {}

    @property
    def label(self) -> str:
        """What the report calls it beside others."""
        return self.name

    def identity(self) -> dict[str, Any]:
        """The system, and the fields that decide the result."""
        return {"system": self.name} | super().identity()


class System(abc.ABC):
    """A network, its training data, its loss and its scores.

    Training draws nothing random but through the generators it hands out, which are seeded by (seed, step, item): so a
    resumed run equals an uninterrupted one.

    Attributes:
        format: What its checkpoints are called in their files.
        scored_together: Whether all processes take part in ``scores``; else the first one alone is asked.
        measures: What a score means and which direction is better, by the last word of its name.
        trial: Whether it serves a choice, and is scored on held-out training images.
        epochs: Passes over the data, for people; None where only steps are counted.
    """

    format: ClassVar[str] = SYSTEM
    scored_together: ClassVar[bool] = False
    measures: ClassVar[dict[str, str]] = {}
    trial: bool = False
    epochs: int | None = None

    config: SystemConfig
    """What the run is known by: as given, but for options such as "auto" that the data settled."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.config.name

    @property
    def title(self) -> str:
        """For people."""
        return self.config.title

    @property
    def scored_on(self) -> str:
        """A sentence on what the scores are taken from; empty where that needs none."""
        return ""

    @property
    def seed(self) -> int:
        """Of weights, order and augmentation."""
        return self.config.seed

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.config.steps

    @property
    def lr(self) -> float:
        """Highest learning rate."""
        return self.config.lr

    @property
    def clip(self) -> float | None:
        """Largest norm of a step's gradient; None leaves it as it is."""
        return None

    @property
    def accumulate(self) -> int:
        """Parts that a step's batch is trained in, see ``parts``."""
        return 1

    @property
    def ema(self) -> float | None:
        """Decay of the average of the weights, which is then what is scored and kept; None: the last weights are."""
        return None

    @property
    def layout(self) -> Layout:
        """How the network is laid out for the machine."""
        return Layout()

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations; 0: only at the end."""
        return self.config.evaluate_every

    @property
    def save_every(self) -> float:
        """Seconds between two checkpoints."""
        return self.config.save_every

    @property
    def temperature(self) -> float | None:
        """Of the routers now; None where none is annealed."""
        return None

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Items of an epoch. Where they are generated on the fly: any number."""

    @abc.abstractmethod
    def item(self, index: int, rng: torch.Generator) -> Any:
        """Training item ``index`` in [0, size), augmented with ``rng``; may run in a worker process."""

    def collate(self, items: list[Any]) -> Any:
        """A batch of items; nested tuples, lists and dicts of tensors."""
        return default_collate(items)

    def batches(self, first: int, rank: int, world: int) -> Iterable[Any]:
        """The share of process ``rank`` of ``world`` in the batches of steps ``first``, ``first + 1``, ...

        A system that has its data as tensors may cut its batches itself, and then has no ``item``.
        """
        return stream(self, first, rank, world)

    def parts(self, batch: Any) -> list[tuple[float, Any]]:
        """``accumulate`` parts of a batch that is a tuple of tensors or lists, each with its share of the items."""
        count = self.accumulate
        if count == 1:
            return [(1.0, batch)]
        size = len(batch[0])
        edges = [size * part // count for part in range(count + 1)]
        slices = [slice(first, last) for first, last in itertools.pairwise(edges) if last > first]
        return [((part.stop - part.start) / size, tuple(value[part] for value in batch)) for part in slices]

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """The network with its initial weights; called under the run's seed."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam at the learning rate."""
        return torch.optim.Adam(model.parameters(), lr=self.lr)

    def learning_rate(self, step: int) -> float:
        """The highest one times ``rate``."""
        return self.lr * self.rate(step)

    def rate(self, step: int) -> float:
        """What step ``step`` in [0, steps) multiplies the optimizer's learning rates by."""
        return 1.0

    def begin(self, model: nn.Module) -> None:  # noqa: B027  (a hook)
        """Called once, before the first step, with the bare network on its device."""

    def after_step(self) -> None:  # noqa: B027  (a hook)
        """Called after each step; anneals, for example."""

    @abc.abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss by name; the sum of those that have a gradient is minimised, the others are reported.

        Args:
            model: The network, possibly wrapped (DDP): only to be called.
            batch: What ``batches`` gave, on the model's device.
        """

    @abc.abstractmethod
    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The field's metrics of the bare network in eval mode, without gradient; the most important one first.

        Called in the first process alone: nothing in it may wait for others (torchmetrics: ``sync_on_compute=False``),
        unless ``scored_together``.
        """

    def observe(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """What a point of the curve has beside the scores, as JSON can hold it.

        Called in the first process alone; nothing in it may change the training.
        """
        return {}

    @abc.abstractmethod
    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Write pictures of what the network does, in eval mode, without gradient; returns their paths.

        Called after each evaluation in the first process alone; nothing in it may change the training.
        """

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """Write a picture (PNG) of what the network makes of a file of one's own, in eval mode, without gradient.

        Args:
            model: The trained network.
            device: Where it is.
            source: The file, or that which the others are found by.
            target: Where the picture goes.

        Raises:
            DataError: the file is missing or broken.
            ConfigError: this system has no picture of a single file.
        """
        raise ConfigError(f"{self.title} draws no prediction of a file; its pictures are those of the training")

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be of this run."""
        return {"run": self.config.identity()}

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What else a checkpoint says, for those who read it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What ``after_step`` changes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (a hook)
        """Take what ``state_dict`` gave."""
