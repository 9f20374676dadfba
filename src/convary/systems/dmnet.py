# SPDX-License-Identifier: Apache-2.0
"""DMNet for semantic segmentation: a class for every pixel, scored by mean IoU.

He, Deng, Qiao, "Dynamic Multi-scale Filters for Semantic Segmentation", ICCV 2019; losses and schedule as in the
released code's configs (mmsegmentation).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from convary.data.image import read_image
from convary.data.normalisation import normalised
from convary.data.segmentation import IGNORE, load_pairs, load_sample
from convary.data.views import random_view
from convary.errors import ConfigError
from convary.models.dmnet import DMNet
from convary.systems.segments import draw_segments
from convary.train.system import LEARNED, System, SystemConfig

AUXILIARY = 0.4
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class DMNetConfig(SystemConfig):
    """DMNet on a photograph of Pascal VOC, or on --data. The defaults are for the photograph and two CPU cores."""

    name: ClassVar[str] = "dmnet"
    title: ClassVar[str] = "DMNet, semantic segmentation"
    citation: ClassVar[str] = "He, Deng, Qiao, Dynamic Multi-scale Filters for Semantic Segmentation, ICCV 2019"

    out: Path = Path("runs/dmnet")
    data: Path | None = None
    """A folder in Pascal VOC's layout, or with {train,val}/{images,masks} and classes.txt; else the photograph."""
    steps: int = 320
    batch_size: int = 2
    lr: float = 0.05
    weight_decay: float = 5e-4
    """Of SGD, whose momentum is 0.9."""
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet18"
    """Published: resnet50 and resnet101."""
    pretrained: bool = False
    """Start the backbone from ImageNet's weights, which are downloaded. Published: yes."""
    channels: int = 64
    """Of the head. Published: 512."""
    kernel_sizes: tuple[int, ...] = (1, 3, 5, 7)
    """Of the head's dynamic convolution modules."""
    fusion: bool = False
    """A 1x1 convolution ends each module, as in the paper; the released configs leave it out."""
    dropout: float = 0.1
    """Before the classifiers."""
    crop: int = 256
    """Side of the squares that are trained on. Published: 512 and more."""
    scales: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest factor that images are scaled by in training. Published: 0.5 and 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("channels", "crop"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1; got {getattr(self, field)}")
        if not self.kernel_sizes or min(self.kernel_sizes) < 1:
            raise ConfigError(f"kernel_sizes must be one or more sizes of at least 1; got {self.kernel_sizes}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigError(f"scales must be a smallest and a largest factor above 0; got {self.scales}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1; got {self.dropout}")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0; got {self.weight_decay}")

    def load(self) -> DMNetSystem:
        """The photograph or the folder; raises DataError where it is missing or broken."""
        return DMNetSystem(self)


@dataclass(frozen=True, kw_only=True)
class DMNetPublishedConfig(DMNetConfig):
    """DMNet in the setting of the released configs: a ResNet-101 from ImageNet's weights, 40,000 steps of 16 views."""

    name: ClassVar[str] = "dmnet-published"
    title: ClassVar[str] = "DMNet, published setting"

    out: Path = Path("runs/dmnet-published")
    steps: int = 40_000
    batch_size: int = 16
    lr: float = 0.01
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet101"
    pretrained: bool = True
    channels: int = 512
    crop: int = 512
    scales: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            raise ConfigError("the published setting wants --data, a folder in Pascal VOC's layout or a plain one")


class DMNetSystem(System):
    """Cross entropy on both heads; SGD with a polynomial schedule."""

    measures = {  # noqa: RUF012  (as the base class declares it)
        "IoU": "intersection over union, the mean over the classes; higher is better, at most 1",
        "accuracy": "share of the pixels whose class is right; higher is better, at most 1",
    }

    def __init__(self, config: DMNetConfig) -> None:
        self.config: DMNetConfig = config
        self.data = load_sample() if config.data is None else load_pairs(config.data)

    @property
    def size(self) -> int:
        """Training photographs."""
        return len(self.data.train)

    @property
    def scored_on(self) -> str:
        """The photograph that was trained on, unless others are given."""
        return "" if self.config.data else LEARNED.format(what="the photograph")

    def item(self, index: int, rng: torch.Generator) -> dict[str, Tensor]:
        """A random view of a photograph: image (3, crop, crop) and mask (crop, crop)."""
        image, mask = self.data.train[index]
        image, mask = random_view(image, mask, rng, size=self.config.crop, scales=self.config.scales)
        return {"image": image, "mask": mask}

    def model(self) -> DMNet:
        """The network."""
        config = self.config
        return DMNet(
            len(self.data.classes),
            backbone=config.backbone,
            pretrained=config.pretrained,
            channels=config.channels,
            kernel_sizes=config.kernel_sizes,
            fusion=config.fusion,
            dropout=config.dropout,
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with momentum 0.9."""
        decay = self.config.weight_decay
        return torch.optim.SGD(model.parameters(), self.config.lr, momentum=0.9, weight_decay=decay)

    def rate(self, step: int) -> float:
        """From 1 to 0, almost linearly."""
        return (1 - step / self.config.steps) ** 0.9

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Cross entropy of the head and, times 0.4, of the auxiliary head."""
        logits, auxiliary = model(batch["image"])
        return {
            "cross entropy": cross_entropy(logits, batch["mask"]),
            "auxiliary": AUXILIARY * cross_entropy(auxiliary, batch["mask"]),
        }

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean IoU over the classes that occur, and the share of pixels that are right; images are taken whole."""
        count = len(self.data.classes)
        options: dict[str, Any] = {"ignore_index": IGNORE, "sync_on_compute": False}  # no other process has a part
        iou = MulticlassJaccardIndex(count, **options).to(device)
        accuracy = MulticlassAccuracy(count, average="micro", **options).to(device)
        for index in range(len(self.data.val)):
            image, mask = self.data.val[index]
            predicted = predict(model, image, device)
            for metric in (iou, accuracy):
                metric.update(predicted, mask.to(device))
        return {"mean IoU": iou.compute().item(), "pixel accuracy": accuracy.compute().item()}

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The first photographs with their true and their predicted classes."""
        rows = []
        for index in range(min(SHOWN, len(self.data.val))):
            image, mask = self.data.val[index]
            rows.append((image, mask, predict(model, image, device).cpu()))
        return [draw_segments(rows, self.data.classes, folder / "dmnet.png", name="DMNet")]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """A photograph and its classes."""
        image = read_image(source)
        draw_segments([(image, None, predict(model, image, device).cpu())], self.data.classes, target, name="DMNet")


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels whose class is known; 0 where none is."""
    known = (mask != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), mask, ignore_index=IGNORE, reduction="sum") / known


def predict(model: nn.Module, image: Tensor, device: torch.device) -> Tensor:
    """The class ids (H, W) of an image (3, H, W) uint8."""
    return model(normalised(image)[None].to(device))[0].argmax(0)
