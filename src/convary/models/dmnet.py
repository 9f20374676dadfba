# SPDX-License-Identifier: Apache-2.0
"""DMNet: a dilated ResNet, dynamic convolution modules of several sizes side by side, and a classifier per pixel.

He, Deng, Qiao, "Dynamic Multi-scale Filters for Semantic Segmentation", ICCV 2019; head as in the released code
(Junjun2016/DMNet, mmsegmentation's ``DMHead``), the auxiliary head as in its configs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ResNet

from convary.errors import ConfigError
from convary.methods.dmnet import DynamicConvModule
from convary.models.backbone import pretrained as with_weights
from convary.nn.conv_norm_relu import conv_norm_relu

WEIGHTS = {
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": models.ResNet101_Weights.IMAGENET1K_V1,
}


class DMHead(nn.Module):
    """Dynamic convolution modules of several sizes on one map, their outputs and the map together classified.

    Args:
        in_channels: C.
        channels: Of each module and of the layer before the classifier.
        num_classes: N.
        kernel_sizes: One module for each.
        fusion: See ``DynamicConvModule``.
        dropout: Of whole channels before the classifier.

    Shape:
        x (B, C, H, W) to logits (B, N, H, W).

    >>> DMHead(16, 8, 5)(torch.randn(2, 16, 9, 7)).shape
    torch.Size([2, 5, 9, 7])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        kernel_sizes: Sequence[int] = (1, 3, 5, 7),
        fusion: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dcm_modules = nn.ModuleList(
            DynamicConvModule(in_channels, channels, size, fusion=fusion) for size in kernel_sizes
        )
        self.bottleneck = conv_norm_relu(in_channels + len(kernel_sizes) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H, W)."""
        scales = torch.cat([x, *(module(x) for module in self.dcm_modules)], 1)
        return self.conv_seg(self.dropout(self.bottleneck(scales)))


class FCNHead(nn.Module):
    """One 3x3 convolution and a classifier: the auxiliary head that stage 3 is trained with.

    Shape:
        x (B, C, H, W) to logits (B, N, H, W).
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_norm_relu(in_channels, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H, W)."""
        return self.conv_seg(self.dropout(self.convs(x)))


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to logits, its weights normal with a deviation of 0.01 as released."""
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


class DMNet(nn.Module):
    """Semantic segmentation with multi-scale kernels made of the image.

    Args:
        num_classes: N.
        backbone: One of torchvision's ResNets: resnet18, resnet34, resnet50, resnet101.
        pretrained: Start from the backbone's ImageNet weights, or from random ones with a ``RandomWeightsWarning``
            where they cannot be downloaded.
        channels: Of the head; the auxiliary head has half as many.
        kernel_sizes: Of the head's modules.
        fusion: See ``DynamicConvModule``.
        dropout: Of both heads.

    Shape:
        x (B, 3, H, W), normalised, of any size, to logits (B, N, H, W); in training mode to a pair of these, the
        second from the auxiliary head.

    Raises:
        ConfigError: there is no such backbone.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool = False,
        channels: int = 512,
        kernel_sizes: Sequence[int] = (1, 3, 5, 7),
        fusion: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if backbone not in WEIGHTS:
            raise ConfigError(f"backbone must be one of {', '.join(WEIGHTS)}; got {backbone!r}")
        build = getattr(models, backbone)
        resnet = with_weights(build, WEIGHTS[backbone]) if pretrained else build()
        self.backbone = dilate(cast("ResNet", resnet))
        width = self.backbone.fc.in_features
        del self.backbone.fc
        self.decode_head = DMHead(
            width, channels, num_classes, kernel_sizes=kernel_sizes, fusion=fusion, dropout=dropout
        )
        self.auxiliary_head = FCNHead(width // 2, max(1, channels // 2), num_classes, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, H, W) to logits (B, N, H, W); in training mode with those of the auxiliary head."""
        net = self.backbone
        stage2 = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))
        stage3 = net.layer3(stage2)
        logits = enlarge(self.decode_head(net.layer4(stage3)), x)
        return (logits, enlarge(self.auxiliary_head(stage3), x)) if self.training else logits


def enlarge(logits: Tensor, x: Tensor) -> Tensor:
    """Bring logits to the size of x."""
    return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def dilate(resnet: ResNet) -> ResNet:
    """Give up the strides of the last two stages for dilations of 2 and 4: the same weights at an eighth of the size.

    At every fourth position of the last stage, the result is what the network computed before. torchvision's
    ``replace_stride_with_dilation`` does the same, but not for the blocks of ResNet-18 and 34.

    Args:
        resnet: Of torchvision; changed in place.
    """
    reach = 1
    for stage in (resnet.layer3, resnet.layer4):
        before, reach = reach, 2 * reach
        for conv in stage.modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            d = before if conv.stride != (1, 1) else reach  # what comes after a given-up stride reaches further
            conv.stride = (1, 1)
            if conv.kernel_size != (1, 1):
                conv.dilation = conv.padding = (d, d)
    return resnet
