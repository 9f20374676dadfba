# SPDX-License-Identifier: Apache-2.0
"""Networks of torchvision and timm at another width than their own."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import ShuffleNetV2

from convary.errors import ConfigError

WIDE = "torchvision's MobileNets and ShuffleNets, and timm's ResNets and MobileNetV1"


def torchvision_at(name: str, width: float, **options: Any) -> nn.Module:
    """A classifier of torchvision; MobileNets and ShuffleNets also of another width.

    A ShuffleNet keeps its stem and the width of its head.

    Raises:
        ConfigError: this network has no width to choose.
    """
    if width == 1:
        return torchvision.models.get_model(name, **options)
    if name.startswith(("mobilenet_v2", "mobilenet_v3")):  # their builders hand width_mult on
        return torchvision.models.get_model(name, **options, width_mult=width)
    if name.startswith("shufflenet_v2"):
        if options.pop("weights", None) is not None:
            raise RuntimeError("there are none of another width")
        with torch.device("meta"):
            usual: Any = torchvision.models.get_model(name, weights=None)
        stem, *stages, head = usual._stage_out_channels
        repeats = [len(stage) for stage in (usual.stage2, usual.stage3, usual.stage4)]
        return ShuffleNetV2(repeats, [stem, *(2 * max(1, round(C * width / 2)) for C in stages), head], **options)
    raise ConfigError(f"torchvision:{name} has no width to choose, as {WIDE} have; leave out the @")


def timm_at(name: str, width: float, **options: Any) -> nn.Module:
    """A classifier of timm, whose name is known to be one; ResNets and MobileNetV1 also of another width.

    A ResNet keeps its stem.

    Raises:
        ConfigError: this network has no width to choose.
    """
    timm = importlib.import_module("timm")
    if width == 1:
        return timm.create_model(name, **options)
    if re.fullmatch(r"resnet\d+", name):
        return timm.create_model(name, channels=tuple(round(C * width) for C in (64, 128, 256, 512)), **options)
    if name == "mobilenetv1_100":
        return importlib.import_module("timm.models.efficientnet")._gen_mobilenet_v1(name, width, **options)
    raise ConfigError(f"timm:{name} has no width to choose, as {WIDE} have; leave out the @")
