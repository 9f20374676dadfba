# SPDX-License-Identifier: Apache-2.0
"""What a published table is made of: rows, their numbers as printed, and where these were read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from convary.errors import ConfigError, nearest
from convary.methods import MethodConfig
from convary.models import Comparator

COUNTS: dict[str, int] = {
    name: entry["params"]
    for name, entry in json.loads((Path(__file__).parent / "counts.json").read_text(encoding="utf-8"))["counts"].items()
}
"""Parameters of networks that were built from the authors' code, or by a rule that agrees with it, by name."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where numbers were read.

    Attributes:
        paper: Authors, title and year.
        place: The table, section or file.
        url: Of the paper, or of the released code.
    """

    paper: str
    place: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers exactly as they are printed, ``"78.50"`` and not 78.5; empty where there is none.

    Attributes:
        params: Parameters, as ``"11.94M"``.
        added: Parameters on top of the static network's.
        madds: Multiply-adds of one image, as ``"1.838G"``.
        top1: Top-1 accuracy on ImageNet, in percent.
        top5: Top-5 accuracy.
        error: Top-1 error.
        box_ap: COCO box AP.
        mask_ap: COCO mask AP.
        miou: Mean intersection over union.
        cpu: Milliseconds for an image on the authors' CPU.
        latency: Milliseconds for a batch on the source's GPU.
        rate: Images a second there.
        train_rate: The same in training.
        memory: Peak megabytes there.
    """

    params: str = ""
    added: str = ""
    madds: str = ""
    top1: str = ""
    top5: str = ""
    error: str = ""
    box_ap: str = ""
    mask_ap: str = ""
    miou: str = ""
    cpu: str = ""
    latency: str = ""
    rate: str = ""
    train_rate: str = ""
    memory: str = ""

    def items(self) -> Iterator[tuple[str, str]]:
        """Names and numbers of what there is."""
        for field in fields(self):
            if value := getattr(self, field.name):
                yield field.name, value


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network of a table.

    Attributes:
        name: What ``--rows`` calls it.
        title: As the table has it.
        network: ``torchvision:NAME`` or ``timm:NAME``, with ``@0.5`` for a width; None where the paper's network is no
            conversion of one of theirs. ``obstacle`` says why.
        method: What its layers become; None of a static network.
        where: Which layers: ``paper``, or a selector as ``--where`` has it.
        conversions: Of a network that needs several, one after the other: configs and selectors, instead of ``method``.
        recipe: Name of the training, see ``convary.train.recipes``; None where none is known here.
        published: The numbers, as printed.
        recalled: Numbers that nobody has read again. They are never printed as published.
        count: Entry of ``COUNTS``: parameters of the authors' own network.
        classifier_bias: Whether the classifier has a bias.
        strides_first: Whether the published multiply-adds are those of ResNet v1, whose bottlenecks stride in their
            first layer and not, as torchvision's, timm's and the released code's, in their second.
        obstacle: Why ``convary reproduce`` can't train it; empty where it can.
        untrained: Why there is no recipe, where that is all that is missing.
        detector: Of a detector that ``convary reproduce --data coco:PATH`` trains: Faster or Mask R-CNN.
        backbone: Of such a detector, its name in torchvision.
        schedule: Of such a detector, the system of ``convary train`` that trains it.
        released: Of a table of speed, the network in the authors' code, ``NAME:OPTION=NUMBER``.
        note: What a reader of the numbers must know.
    """

    name: str
    title: str
    network: str | None
    method: MethodConfig | Comparator | None = None
    where: str = "paper"
    conversions: tuple[tuple[MethodConfig, str], ...] = ()
    recipe: str | None = None
    published: Published = Published()
    recalled: Published = Published()
    count: str | None = None
    classifier_bias: bool = True
    strides_first: bool = False
    obstacle: str = ""
    untrained: str = ""
    detector: Literal["faster", "mask"] | None = None
    backbone: Literal["resnet50", "mobilenet_v2"] | None = None
    schedule: Literal["detection-published", "detection-adamw-published"] = "detection-published"
    released: str = ""
    note: str = ""

    @property
    def is_static(self) -> bool:
        """Whether no kernel depends on the input."""
        return self.method is None and not self.conversions


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table.

    Attributes:
        name: What the command line calls it.
        title: For people.
        source: Of all its numbers.
        rows: In the paper's order.
        note: What all rows have in common.
        measured: Whether it is of speed, which ``convary reproduce`` measures again.
    """

    name: str
    title: str
    source: Source
    rows: tuple[Row, ...]
    note: str = ""
    measured: bool = False

    def select(self, names: tuple[str, ...]) -> Table:
        """The table with only the rows of these names; without a name, all of them.

        Raises:
            ConfigError: there is no such row.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise ConfigError(f"{self.name} has no row {name!r}{nearest(name, known)}; it has {', '.join(known)}")
        kept = tuple(row for row in self.rows if not names or row.name in names)
        return replace(self, rows=kept)
