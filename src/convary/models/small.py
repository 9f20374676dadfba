# SPDX-License-Identifier: Apache-2.0
"""Networks for small images; those of blocks have torchvision's, so that every paper's own placement finds them."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from convary.errors import ConfigError


class MobileNetV2Tiny(nn.Module):
    """MobileNetV2 for images of about 28x28 that trains in seconds on a CPU: six of torchvision's blocks.

    The stem halves the image as published; two later stages halve it again, so 28x28 ends at 4x4.

    Args:
        num_classes: Rows of the classifier.
        in_channels: C of the images.
        width: Multiplies every number of channels.
    """

    stem, head = 16, 128
    setting = ((1, 16, 1, 1), (3, 24, 2, 2), (3, 40, 1, 1), (3, 64, 2, 2))  # expansion, channels, blocks, first stride

    def __init__(self, num_classes: int, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        C, head = widened(self.stem, width), widened(self.head, width)
        layers: list[nn.Module] = [Conv2dNormActivation(in_channels, C, stride=2, activation_layer=nn.ReLU6)]
        for expansion, base, blocks, first_stride in self.setting:
            channels = widened(base, width)
            for i in range(blocks):
                layers.append(InvertedResidual(C, channels, first_stride if i == 0 else 1, expansion))
                C = channels
        layers.append(Conv2dNormActivation(C, head, kernel_size=1, activation_layer=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(head, num_classes)
        init_fan_out(self)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) images to (B, num_classes) scores."""
        return self.classifier(self.features(x).mean((2, 3)))


class PlainNet(nn.Module):
    """3x3 convolutions with batch normalisation and ReLU one after the other, mean over positions, a linear layer."""

    channels: ClassVar[tuple[int, ...]]
    strides: ClassVar[tuple[int, ...]]

    def __init__(self, num_classes: int, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        C, layers = in_channels, []
        for channels, stride in zip(self.channels, self.strides, strict=True):
            layers.append(Conv2dNormActivation(C, widened(channels, width), stride=stride))
            C = widened(channels, width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(C, num_classes)
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) images to (B, num_classes) scores."""
        return self.classifier(self.features(x).mean((2, 3)))


class ConvNetNano(PlainNet):
    """Four layers and 3,332 parameters (one channel, ten classes): too few for the task, so that capacity decides.

    Args:
        num_classes: Rows of the classifier.
        in_channels: C of the images.
        width: Multiplies every number of channels.
    """

    channels, strides = (6, 8, 12, 16), (2, 2, 1, 1)


class OneConv(PlainNet):
    """One layer of four filters, for the data set ``control``, which static ones learn slowly or not at all.

    Args:
        num_classes: Rows of the classifier.
        in_channels: C of the images.
        width: Multiplies the number of filters.
    """

    channels, strides = (4,), (1,)


class PadShortcut(nn.Module):
    """Option A of He et al.: take every second pixel and fill the new channels with zeros; no parameters.

    Args:
        extra: How many channels come in.
    """

    def __init__(self, extra: int):
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) to (B, C + extra, ceil(H/2), ceil(W/2))."""
        return F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2])


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2): three stages of three blocks with 16, 32 and 64 channels.

    Args:
        num_classes: Rows of the classifier.
        in_channels: C of the images.
        width: Multiplies every number of channels.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        a, b, c = (widened(channels, width) for channels in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, a, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(a, a)
        self.layer2 = self._stage(a, b)
        self.layer3 = self._stage(b, c)
        self.fc = nn.Linear(c, num_classes)
        init_fan_out(self)

    @staticmethod
    def _stage(in_channels: int, channels: int) -> nn.Sequential:
        if in_channels == channels:
            first = BasicBlock(in_channels, channels)
        else:
            first = BasicBlock(in_channels, channels, stride=2, downsample=PadShortcut(channels - in_channels))
        return nn.Sequential(first, BasicBlock(channels, channels), BasicBlock(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) images to (B, num_classes) scores."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def widened(channels: int, width: float) -> int:
    """A number of channels times a width, rounded.

    Raises:
        ConfigError: none would be left.
    """
    if round(channels * width) < 1:
        raise ConfigError(f"width {width:g} leaves nothing of a layer of {channels} channels; give a larger one")
    return round(channels * width)


def init_fan_out(model: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out, as torchvision initialises its own networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
