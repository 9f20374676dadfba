# SPDX-License-Identifier: Apache-2.0
"""torchvision's Faster and Mask R-CNN with a pyramid, on the convolutions of a classifier, static or dynamic.

The levels are those of the published detectors: of a ResNet the last layer of every stage, of MobileNetV2 the last
layers of strides 4, 8 and 16 and the 1280 channels before its classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import FrozenBatchNorm2d

from convary.errors import ConfigError, nearest
from convary.nn import Router

# The module they are in; where levels are taken, with their channels; what is frozen where weights are pretrained.
LEVELS: dict[str, tuple[str, dict[str, int], tuple[str, ...]]] = {
    "resnet50": ("", {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}, ("conv1", "bn1", "layer1")),
    "mobilenet_v2": ("features", {"3": 24, "6": 32, "13": 96, "18": 1280}, ("0", "1")),
}
_POOLED = 7  # positions of a region for the box head
_ANCHORS = 3  # of a position of a level


def detector(
    classifier: nn.Module,
    backbone: str,
    classes: int,
    *,
    masks: bool = True,
    frozen: bool = False,
    channels: int = 256,
    hidden: int = 1024,
    norm: Callable[[int], nn.Module] | None = None,
    **options: Any,
) -> FasterRCNN | MaskRCNN:
    """A detector on a classifier's convolutions.

    Norms of routers stay as they are: a router sees one vector an image, and a detector's batch has two images, whose
    statistics are those of no other.

    Args:
        classifier: A network of ``LEVELS``, static or converted; its layers move into the detector.
        backbone: Its name.
        classes: Of objects; the background is one more.
        masks: Whether it is a Mask R-CNN.
        frozen: Keep all statistics of the backbone's norms, and its stem and first stage, as they are.
        channels: Of the pyramid and the heads.
        hidden: Of the box head.
        norm: Of the pyramid and the mask head, by channels; none is published.
        options: What ``FasterRCNN`` and ``MaskRCNN`` take, as in ``min_size``.

    Raises:
        ConfigError: there is no such backbone.
    """
    if backbone not in LEVELS:
        raise ConfigError(
            f"the backbone must be one of {', '.join(LEVELS)}; got {backbone!r}{nearest(backbone, LEVELS)}"
        )
    inside, levels, first = LEVELS[backbone]
    body = classifier.get_submodule(inside)
    for router in [module for module in body.modules() if isinstance(module, Router)]:
        freeze_norms(router)
    if frozen:
        freeze_norms(body)
        for name in first:
            body.get_submodule(name).requires_grad_(False)
    named = {name: str(place) for place, name in enumerate(levels)}
    pyramid = BackboneWithFPN(body, named, list(levels.values()), channels, norm_layer=norm)
    options |= {
        "rpn_head": RPNHead(channels, _ANCHORS),
        "box_head": TwoMLPHead(channels * _POOLED**2, hidden),
        "box_predictor": FastRCNNPredictor(hidden, classes + 1),
    }
    if not masks:
        return FasterRCNN(pyramid, **options)
    options |= {
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1, norm_layer=norm),
        "mask_predictor": MaskRCNNPredictor(channels, channels, classes + 1),
    }
    return MaskRCNN(pyramid, **options)


def freeze_norms(body: nn.Module) -> None:
    """Put ``FrozenBatchNorm2d`` with the same numbers in the place of every batch norm of two axes."""
    for name, module in [(name, module) for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)]:
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict(), strict=False)
        parent, _, own = name.rpartition(".")
        setattr(body.get_submodule(parent), own, frozen)
