# SPDX-License-Identifier: Apache-2.0
"""Accuracy on the test images, of a network or of a checkpoint."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from convary.data import DataSet, Split, load
from convary.data.cards import PHOTOGRAPHS
from convary.data.pictures import PictureSplit
from convary.data.reading import Reading, stream
from convary.errors import DataError, TemperatureWarning
from convary.nn import evaluating
from convary.train.checkpoint import load_model, read_checkpoint


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``convary eval`` prints.

    Attributes:
        method: ``"static"`` or a method's name.
        model: The network's name.
        data: The data set's name.
        images: Number of test images.
        top1: Percent.
        loss: Mean cross-entropy.
        classes: Name and accuracy (percent) of each class.
        confusion: Rows are true classes, columns what the network said; numbers of images.
    """

    method: str
    model: str
    data: str
    images: int
    top1: float
    loss: float
    classes: dict[str, float]
    confusion: list[list[int]]


def batches(split: Split, dataset: DataSet, size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a part in order, normalised (B, C, H, W), with their labels (B,)."""
    indices = torch.arange(len(split.labels)).split(size)
    if isinstance(split, PictureSplit):
        plan = ([(i, ()) for i in index.tolist()] for index in indices)
        pin = torch.device(device).type == "cuda"
        read = stream(split, plan, split.middle, dataset.reading, pin=pin)
    else:
        read = ((split.batch(index), split.labels[index]) for index in indices)
    for images, labels in read:
        if len(labels):
            yield dataset.normalise(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class Score:
    """Result on the test images.

    Attributes:
        loss: Mean cross-entropy.
        confusion: (classes, classes) numbers of images; rows are true classes.
    """

    loss: float
    confusion: Tensor

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * int(self.confusion.diagonal().sum()) / int(self.confusion.sum())


@torch.no_grad()
def score(
    model: nn.Module, dataset: DataSet, batch_size: int, device: torch.device | str, rank: int = 0, world: int = 1
) -> Score:
    """Loss and confusion on the test images, in eval mode, over all processes.

    Args:
        model: On ``device``; it keeps its mode.
        dataset: Gives the test images.
        batch_size: Images at a time.
        device: Where to compute.
        rank: Of this process; it takes every ``world``-th image.
        world: Number of processes.
    """
    confusion = MulticlassConfusionMatrix(len(dataset.classes)).to(device)
    loss = MeanMetric().to(device)
    part = dataset.test.take(torch.arange(rank, len(dataset.test.labels), world)) if world > 1 else dataset.test
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", TemperatureWarning)  # the learning curve looks at networks still annealing
        for x, y in batches(part, dataset, batch_size, device):
            scores = model(x)
            confusion.update(scores, y)
            loss.update(F.cross_entropy(scores, y, reduction="none"))
    return Score(float(loss.compute()), confusion.compute().cpu())


def evaluate(
    checkpoint: str | Path,
    data: str | None = None,
    *,
    root: str | Path | None = None,
    batch_size: int = 100,
    test_size: int | None = None,
    workers: int = 0,
) -> Evaluation:
    """Test a checkpoint of ``convary compare``.

    Args:
        checkpoint: ``OUT/METHOD/seed-N/checkpoint.pt``.
        data: A data set with the same classes; by default the one that the network was trained on.
        root: Data root.
        batch_size: Images at a time.
        test_size: Height and width that the centres of a folder's images are cut to; by default as in the training.
        workers: Processes that read images.

    Raises:
        CheckpointError: the file is missing, truncated or foreign.
        DataError: the data set is missing, or has other classes or images than the network knows.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    architecture, run = content["architecture"], content["run"]
    shape = tuple(architecture["shape"])
    name = data or run["data"]
    given = {field: run[field] for field in ("crops", "test_size", "interpolation") if field in run}
    given |= {} if test_size is None else {"crops": True, "test_size": test_size}
    size = shape[1] if name.startswith(PHOTOGRAPHS) else None
    dataset = load(name, root, image_size=size, reading=Reading(workers=workers, **given))
    if "mean" in content:  # those of trained weights, perhaps
        dataset = dataclasses.replace(dataset, **{part: tuple(content[part]) for part in ("mean", "std")})
    if len(dataset.classes) != architecture["num_classes"] or dataset.shape != shape:
        raise DataError(
            f"{name} has {len(dataset.classes)} classes and images of {dataset.shape}, but {path} was trained on "
            f"{architecture['num_classes']} classes and images of {shape}; give what it was trained on, {run['data']}"
        )
    result = score(load_model(path), dataset, batch_size, "cpu")
    confusion = result.confusion.tolist()
    per_class = (100 * row[i] / max(sum(row), 1) for i, row in enumerate(confusion))
    return Evaluation(
        method=content["method"],
        model=architecture["model"],
        data=name,
        images=len(dataset.test.labels),
        top1=result.top1,
        loss=result.loss,
        classes=dict(zip(dataset.classes, per_class, strict=True)),
        confusion=confusion,
    )
