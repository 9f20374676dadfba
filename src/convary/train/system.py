# SPDX-License-Identifier: Apache-2.0
"""What ``fit`` trains: a whole network with the data, the loss and the scores that belong to it."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from convary.errors import ConfigError
from convary.train.run_config import RunConfig


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
    """Steps between two evaluations; 0: only at the end."""
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
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1; got {self.threads}")

    @abc.abstractmethod
    def load(self) -> System:
        """The system with its data; raises DataError where the data are missing or broken."""

    def identity(self) -> dict[str, Any]:
        """The system, and the fields that decide the result."""
        return {"system": self.name} | super().identity()


class System(abc.ABC):
    """A network, its training data, its loss and its scores.

    ``fit`` draws nothing random but through the generators it hands out, which are seeded by (seed, step, item): so a
    resumed run equals an uninterrupted one.
    """

    config: SystemConfig
    """What the run is known by: as given, but for options such as "auto" that the data settled."""

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

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """The network with its initial weights; called under the run's seed."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam at the config's learning rate."""
        return torch.optim.Adam(model.parameters(), lr=self.config.lr)

    def rate(self, step: int) -> float:
        """What step ``step`` in [0, steps) multiplies the optimizer's learning rates by."""
        return 1.0

    @abc.abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss by name; their sum is minimised.

        Args:
            model: The network, possibly wrapped (DDP): only to be called.
            batch: What ``collate`` made, on the model's device.
        """

    @abc.abstractmethod
    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The field's metrics of the bare network in eval mode, without gradient; the most important one first.

        Called in the first process alone: nothing in it may wait for others (torchmetrics: ``sync_on_compute=False``).
        """

    @abc.abstractmethod
    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Write pictures of what the network does, in eval mode, without gradient; returns their paths."""
