# SPDX-License-Identifier: Apache-2.0
"""CondInst: instance segmentation whose mask head is generated for every instance, on torchvision's FCOS.

Tian, Shen, Chen, "Conditional Convolutions for Instance Segmentation", ECCV 2020. Backbone, pyramid and towers are
torchvision's, so weights of its ``fcos_resnet50_fpn`` fit by name; unlike the authors' FCOS they have no learned scale
per level. The mask branch sums three levels of the pyramid as the authors' code does (the paper's text: P3 alone).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import RegNet, get_model, get_model_weights, list_models
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from convary.errors import ConfigError, ShapeError, nearest
from convary.methods.condinst import MaskHead, aligned_bilinear
from convary.models.backbone import pretrained

BACKBONES = tuple(list_models(module=torchvision.models, include=["resnet*", "resnext*", "wide_resnet*", "regnet*"]))
STRIDE = 8  # of P3 and of the mask features
UNIT = 8  # strides of its level that make one unit of an instance's relative coordinates


class Dense(NamedTuple):
    """What the network says at each of P positions of its pyramid, level after level, P3 first.

    Attributes:
        logits: (B, P, classes).
        distances: (B, P, 4) from the position to the left, top, right and bottom of its box, in pixels.
        centerness: (B, P) logits.
        params: (B, P, head.num_params): the mask head of the instance there.
        features: (B, head.features, ceil(H / 8), ceil(W / 8)) that the mask heads run on.
        points: (P, 2) x and y of the positions, in pixels.
        strides: (P,) pixels between the positions of a level.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    params: Tensor
    features: Tensor
    points: Tensor
    strides: Tensor


class CondInst(nn.Module):
    """The network: images to ``Dense``. ``convary.models.detect`` makes instances of that.

    Args:
        classes: Number of classes; there is none for the background.
        backbone: One of ``BACKBONES``.
        pretrained: Start from ImageNet's weights; the stem, the first stage and all statistics then stay as they are.
            Where the weights cannot be downloaded, a ``RandomWeightsWarning`` says so and everything is trained.
        channels: Of the pyramid and the towers: 64, 96, ...
        convs: Convolutions of either tower.
        mask_channels: Of the mask branch.
        head: The dynamic mask head.
        mask_stride: Pixels per position of the masks, 8, 4 or 2: 4 in the authors' code, 2 in the paper (0.1 AP more).
    """

    def __init__(
        self,
        classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool = False,
        channels: int = 256,
        convs: int = 4,
        mask_channels: int = 128,
        head: MaskHead | None = None,
        mask_stride: int = 4,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ConfigError(
                f"backbone must be a ResNet or RegNet of torchvision; got {backbone!r}{nearest(backbone, BACKBONES)}"
            )
        if channels < 64 or channels % 32:  # a group of one channel has no variance where a level is one position
            raise ConfigError(f"channels must be 64, 96, ..., for the towers' 32 groups of a norm; got {channels}")
        if classes < 1:
            raise ConfigError(f"classes must be at least 1; got {classes}")
        if mask_stride not in (8, 4, 2):
            raise ConfigError(f"mask_stride must be 8, 4 or 2; got {mask_stride}")
        self.mask_head, self.mask_stride = head or MaskHead(), mask_stride
        body, stages, self.frozen = _body(backbone, pretrained)
        if self.frozen:
            _freeze(body, stages)
        self.backbone = BackboneWithFPN(
            body,
            {stage: str(level) for level, stage in enumerate(stages[1:])},
            [_width(body.get_submodule(stage)) for stage in stages[1:]],
            channels,
            LastLevelP6P7(channels, channels),
        )
        self.head = nn.ModuleDict(
            {
                "classification_head": ClassTower(channels, 1, classes, convs),
                "regression_head": BoxTower(channels, convs, self.mask_head.num_params),
            }
        )
        self.mask_branch = MaskBranch(channels, mask_channels, self.mask_head.features)
        self.train()

    def train(self, mode: bool = True) -> CondInst:
        """As ``nn.Module.train``; pretrained statistics stay frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.body.eval()
        return self

    def forward(self, images: Tensor) -> Dense:
        """Run the network.

        Args:
            images: (B, 3, H, W) of any size, normalised as torchvision's backbones want them.

        Raises:
            ShapeError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images must be (B, 3, H, W); got {tuple(images.shape)}")
        levels = list(self.backbone(images).values())
        distances, centerness, params = self.head["regression_head"](levels)
        points, strides = positions(levels)
        return Dense(
            logits=self.head["classification_head"](levels).float(),
            distances=distances.float() * strides[:, None],
            centerness=centerness.squeeze(2).float(),
            params=params.float(),
            features=self.mask_branch(levels[:3]).float(),
            points=points,
            strides=strides,
        )


class ClassTower(FCOSClassificationHead):
    """torchvision's class tower; takes an empty batch too."""

    def forward(self, x: list[Tensor]) -> Tensor:
        """Levels (B, C, H, W) to logits (B, P, classes)."""
        return _by_position([self.cls_logits(self.conv(level)) for level in x])


class BoxTower(FCOSRegressionHead):
    """torchvision's box tower with the controller beside its two predictions.

    Args:
        channels: Of the pyramid.
        convs: Of the tower.
        num_params: Numbers per mask head.
    """

    def __init__(self, channels: int, convs: int, num_params: int) -> None:
        super().__init__(channels, 1, convs)
        self.controller = nn.Conv2d(channels, num_params, 3, padding=1)
        nn.init.normal_(self.controller.weight, std=0.01)
        self.controller.bias = nn.Parameter(torch.zeros(num_params))

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Levels (B, C, H, W) to distances (B, P, 4) in strides, centerness (B, P, 1) and params (B, P, num_params)."""
        towers = [self.conv(level) for level in x]
        distances, centerness, params = (
            _by_position([layer(tower) for tower in towers])
            for layer in (self.bbox_reg, self.bbox_ctrness, self.controller)
        )
        return distances.relu(), centerness, params


class MaskBranch(nn.Module):
    """The features that all mask heads of an image share.

    Args:
        channels: Of the pyramid.
        width: Of the branch.
        features: Channels of the result.
    """

    def __init__(self, channels: int, width: int, features: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_conv(channels, width) for _ in range(3))
        self.tower = nn.Sequential(*[_conv(width, width) for _ in range(4)], nn.Conv2d(width, features, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """P3, P4 and P5 to (B, features, *P3's size)."""
        H, W = levels[0].shape[2:]
        x = self.refine[0](levels[0])
        for factor, refine, level in zip((2, 4), self.refine[1:], levels[1:], strict=True):
            # A level of an odd size is rounded up, so enlarged it may reach over P3.
            x = x + aligned_bilinear(refine(level), factor)[:, :, :H, :W]
        return self.tower(x)


def _by_position(levels: list[Tensor]) -> Tensor:
    """Levels (B, C, H, W) one after the other: (B, P, C)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)


def positions(levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Points (P, 2) and strides (P,) of all positions of a pyramid whose first level has a stride of 8."""
    points, strides = [], []
    for number, level in enumerate(levels):
        stride = STRIDE * 2**number
        H, W = level.shape[2:]
        x, y = (torch.arange(n, device=level.device, dtype=torch.float32) * stride + stride // 2 for n in (W, H))
        points.append(torch.stack((x.expand(H, W), y.unsqueeze(1).expand(H, W)), 2).flatten(0, 1))
        strides.append(torch.full((H * W,), float(stride), device=level.device))
    return torch.cat(points), torch.cat(strides)


def _body(name: str, imagenet: bool) -> tuple[nn.Module, list[str], bool]:
    """A classification network without its classifier, its stages of strides 4 to 32, and whether it is pretrained."""
    loaded = False

    def build(weights=None):
        nonlocal loaded
        body = get_model(name, weights=weights)
        loaded = weights is not None
        return body

    build.__name__ = name
    body = pretrained(build, get_model_weights(name)["DEFAULT"]) if imagenet else build()
    stages = [f"layer{stage}" for stage in range(1, 5)]
    if isinstance(body, RegNet):
        body = nn.Sequential(OrderedDict(stem=body.stem, **dict(body.trunk_output.named_children())))
        stages = [f"block{stage}" for stage in range(1, 5)]
    return body, stages, loaded


def _freeze(body: nn.Module, stages: list[str]) -> None:
    """As detectors are fine-tuned: normalisation, stem and first stage stay as pretraining left them."""
    for name, part in body.named_children():
        if name not in stages[1:]:
            part.requires_grad_(False)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def _width(stage: nn.Module) -> int:
    """Channels that a stage of a ResNet or RegNet gives: those of its last normalisation."""
    return [module.num_features for module in stage.modules() if isinstance(module, nn.BatchNorm2d)][-1]


def _conv(C: int, O: int) -> nn.Sequential:
    conv = nn.Conv2d(C, O, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(O), nn.ReLU())
