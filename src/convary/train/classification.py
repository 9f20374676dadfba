# SPDX-License-Identifier: Apache-2.0
"""What ``compare`` trains: a classifier, static or dynamic, with a seed and a learning rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from convary._decay import param_groups
from convary._recipe import recipe
from convary._schedule import TemperatureAnnealing, anneal
from convary.data import DataSet, balanced
from convary.models.architecture import COMPARED
from convary.train.arms import Arm, checkpoint_path
from convary.train.config import CompareConfig
from convary.train.dropout import drop_branches, drop_features
from convary.train.evaluation import score
from convary.train.images import TrainingImages
from convary.train.layout import Layout
from convary.train.networks import architecture, start_weights
from convary.train.portraits import EXPERTS, layer_shares
from convary.train.system import System

OBSERVED = 64  # test images over which the experts' shares are taken at each evaluation


def learning_rate(
    step: int,
    total: int,
    highest: float,
    warmup: float,
    milestones: tuple[int, ...] = (),
    exponential: tuple[float, float] | None = None,
) -> float:
    """Linear from 0 over the first ``warmup`` of all steps, times half a cosine from 1 to 0, or a tenth per milestone.

    Args:
        step: In [0, total).
        total: Steps of the training.
        highest: Learning rate before it falls.
        warmup: Part of all steps.
        milestones: Steps from which on it is a tenth of what it was; without any it falls along the cosine.
        exponential: A factor and the steps after which it is applied each time, once the rate has risen.

    >>> learning_rate(0, 100, 1.0, 0.1), round(learning_rate(50, 100, 1.0, 0.1), 3)
    (0.1, 0.5)
    >>> [round(learning_rate(step, 90, 1.0, 0, (30, 60)), 6) for step in (29, 30, 60)]
    [1.0, 0.1, 0.01]
    """
    rising = min(1.0, (step + 1) / max(1.0, warmup * total))
    if exponential is not None:
        factor, steps = exponential
        return highest * (rising if rising < 1 else factor ** (step // steps))
    if milestones:
        return highest * rising * 0.1 ** sum(step >= milestone for milestone in milestones)
    return highest * rising * 0.5 * (1 + math.cos(math.pi * step / total))


def make_optimizer(model: nn.Module, config: CompareConfig, lr: float, init: str) -> torch.optim.Optimizer:
    """The optimizer that the config names; banks that start as static kernels get a learning rate to match."""
    own = lr if init == "upcycle" else None
    like = "sgd" if config.optimizer == "sgd" else "adamw"
    groups = param_groups(model, config.weight_decay, lr=own, optimizer=like)
    if config.decay != "kernels":
        groups = _decayed(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if config.optimizer == "rmsprop":
        from timm.optim.rmsprop_tf import RMSpropTF  # begins with squares of 1, and has epsilon under the root

        return RMSpropTF(groups, lr=lr, alpha=0.9, momentum=0.9, eps=1e-3)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=config.nesterov)


def _decayed(model: nn.Module, config: CompareConfig) -> list[dict[str, Any]]:
    """Groups in which all parameters decay, or all but biases and those of one axis."""
    spared: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, p in model.named_parameters():
        bare = name.rpartition(".")[2] == "bias" or p.ndim < 2
        spared[bare and config.decay == "weights"].append(p)
    groups = [{"params": found, "weight_decay": 0.0 if free else config.weight_decay} for free, found in spared.items()]
    return [group for group in groups if group["params"]]


class Run(NamedTuple):
    """One training of a comparison.

    Attributes:
        arm: The network.
        seed: Of weights, order and augmentation.
        lr: The highest learning rate.
        trial: Whether it serves the choice of the learning rate, and so leaves out the held-out images.
    """

    arm: Arm
    seed: int
    lr: float
    trial: bool = False

    def path(self, out: Path) -> Path:
        """Of its checkpoint."""
        path = checkpoint_path(out, self.arm, self.seed)
        return out / "trials" / f"lr-{self.lr:g}" / path.relative_to(out) if self.trial else path


class Classification(System):
    """A network of a comparison on its images; every arm sees the same ones in the same order.

    Args:
        comparison: What is compared, and how.
        run: What to train.
        dataset: What to train on.
        accelerator: Accelerate's processes, which share the images.
    """

    format: ClassVar[str] = COMPARED
    scored_together: ClassVar[bool] = True

    def __init__(self, comparison: CompareConfig, run: Run, dataset: DataSet, accelerator: Accelerator) -> None:
        self.comparison, self.run, self.accelerator = comparison, run, accelerator
        self.dataset = dataset.held_out(comparison.held_out) if run.trial else dataset
        self.architecture = architecture(run.arm, comparison, self.dataset, run.seed)
        self.batch_size = min(comparison.batch_size, self.size)
        self.trial, self.epochs = run.trial, comparison.epochs
        self.images = TrainingImages(
            config=comparison, dataset=self.dataset, batch_size=self.batch_size, seed=run.seed,
            device=accelerator.device,
        )  # fmt: skip
        self.annealing: TemperatureAnnealing | None = None

    @property
    def name(self) -> str:
        """Of the arm."""
        return self.run.arm.name

    @property
    def title(self) -> str:
        """Of the arm; of a trial with its learning rate."""
        return f"{self.run.arm.title}, lr {self.run.lr:g}" if self.trial else self.run.arm.title

    @property
    def seed(self) -> int:
        """Of weights, order and augmentation."""
        return self.run.seed

    @property
    def lr(self) -> float:
        """Highest learning rate."""
        return self.run.lr

    @property
    def clip(self) -> float | None:
        """As in the comparison."""
        return self.comparison.clip

    @property
    def accumulate(self) -> int:
        """As in the comparison."""
        return self.comparison.accumulate

    @property
    def ema(self) -> float | None:
        """As in the comparison."""
        return self.comparison.ema

    @property
    def layout(self) -> Layout:
        """As in the comparison."""
        names = [field.name for field in dataclasses.fields(Layout)]
        return Layout(**{name: getattr(self.comparison, name) for name in names})

    @property
    def size(self) -> int:
        """Training images."""
        return len(self.dataset.train.labels)

    @property
    def evaluate_every(self) -> int:
        """Steps of an epoch; images that fill no batch are left out of it."""
        return self.images.every

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.comparison.epochs * self.evaluate_every

    @property
    def save_every(self) -> float:
        """As in the comparison."""
        return self.comparison.save_every

    @property
    def temperature(self) -> float | None:
        """Of the routers now; None where none is annealed."""
        return None if self.annealing is None else self.annealing.temperature

    def item(self, index: int, rng: torch.Generator) -> Any:
        """One image and its label, as they lie in the data set; ``batches`` cuts whole batches."""
        return self.dataset.train.batch(torch.tensor([index]))[0], self.dataset.train.labels[index]

    def batches(self, first: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W), augmented and normalised, and labels (B,), or (B, classes) where images are mixed."""
        return self.images.batches(range(first, self.steps), rank, world)

    def model(self) -> nn.Module:
        """The network with the seed's initial weights, or those that it starts from."""
        return self.architecture.build(start_weights(self.comparison, self.dataset, self.seed))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW or SGD."""
        return make_optimizer(model, self.comparison, self.lr, self.architecture.init)

    def learning_rate(self, step: int) -> float:
        """Warm-up, then a cosine or steps."""
        milestones = tuple(epoch * self.evaluate_every for epoch in self.comparison.milestones)
        falls = self.comparison.exponential
        falls = None if falls is None else (falls[0], falls[1] * self.evaluate_every)
        return learning_rate(step, self.steps, self.lr, self.comparison.warmup, milestones, falls)

    def begin(self, model: nn.Module) -> None:
        """Start the annealing; set what is dropped."""
        if self.comparison.dropout is not None:
            drop_features(model, self.comparison.dropout)
        if self.comparison.stochastic_depth is not None:
            drop_branches(model, self.comparison.stochastic_depth)
        epochs, method = self.comparison.annealing_epochs(self.run.arm), self.run.arm.method
        if method is not None and method.annealing is not None and epochs is not None:
            steps = round(epochs * self.evaluate_every)
            stop = getattr(method, "temperature", method.annealing.stop)
            self.annealing = anneal(model, start=method.annealing.start, stop=stop, steps=steps)

    def after_step(self) -> None:
        """Anneal."""
        if self.annealing is not None:
            self.annealing.step()

    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy, and the training accuracy in percent, which has no gradient."""
        x, y = batch
        scores, right = model(x), y if y.ndim == 1 else y.argmax(1)
        loss = F.cross_entropy(scores, y, label_smoothing=self.comparison.label_smoothing)
        return {"loss": loss, "top1": 100 * (scores.argmax(1) == right).float().mean()}

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Top-1 in percent and loss on the test images, or in a trial on the held-out ones."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        found = score(model, self.dataset, self.comparison.batch_size, device, rank, world)
        return {"top1": found.top1, "loss": found.loss}

    def observe(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Mean share of each expert over some test images, of the first seed's network."""
        if self.trial or self.seed or not self.run.arm.is_dynamic:
            return {}
        labels = self.dataset.test.labels
        images = self.dataset.test.batch(balanced(labels, min(OBSERVED, len(labels)))).to(device)
        found = layer_shares(model, self.dataset.normalise(images))
        return {"experts": {layer: share.mean(0)[:EXPERTS].tolist() for layer, share in found.items()}}

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Nothing: a comparison draws its report."""
        return []

    def identity(self) -> dict[str, Any]:
        """The comparison, the network and the learning rate."""
        architecture = dataclasses.asdict(self.architecture)
        return {"run": self.comparison.identity(), "architecture": architecture, "lr": self.lr}

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """For who reads a checkpoint of ``compare``: arm, classes, how images are normalised, what conversions did."""
        recorded = recipe(model) if self.run.arm.is_dynamic else None
        seen = {name: list(getattr(self.dataset, name)) for name in ("classes", "mean", "std")}
        return {"method": self.name, **seen, "recipe": recorded}

    def state_dict(self) -> dict[str, Any]:
        """Of the annealing."""
        return {} if self.annealing is None else self.annealing.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of the annealing."""
        if self.annealing is not None:
            self.annealing.load_state_dict(state)

    def entry(self, point: dict[str, Any]) -> dict[str, Any]:
        """A point of the curve as results.json has it."""
        return {
            "epoch": point["step"] / self.evaluate_every,
            **{f"train_{name}": value for name, value in point["losses"].items()},
            **{f"test_{name}": value for name, value in point["scores"].items()},
            **point.get("observed", {}),
            **{name: point[name] for name in ("lr", "temperature", "seconds", "cpu_seconds")},
        }
