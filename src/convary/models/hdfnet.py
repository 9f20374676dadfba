# SPDX-License-Identifier: Apache-2.0
"""HDFNet: salient objects in RGB-D, by kernels that both modalities generate and the RGB decoder is filtered with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import (
    ResNet50_Weights,
    VGG16_BN_Weights,
    VGG19_BN_Weights,
    WeightsEnum,
    resnet50,
    vgg16_bn,
    vgg19_bn,
)

from convary.errors import ConfigError, ShapeError, nearest
from convary.methods.hdfnet import DDPM, ConvNormReLU, DenseTransLayer, Released
from convary.models.backbone import pretrained as with_weights

Backbone = Literal["vgg16", "vgg19", "resnet50"]
WIDTH = 64  # channels of the decoder, of the guidance, and inside the transport layers


class HDFNet(Released):
    """Two encoders of the same shape, transport layers between them, pyramids of generated kernels in the decoder.

    Per level, from the coarsest: ``y = block(y + lateral(rgb))``; at the three coarsest ``y = DDPM(y, guide)`` with
    ``guide = transport(rgb, depth)``; then y is enlarged to the next level's size. ``hdfnet`` builds the published
    networks.

    Args:
        rgb: The stages of the RGB encoder by their stride, the finest first.
        depth: Those of the depth encoder, which takes one channel.
        channels: Of each stage's output, by stride.
        recompute: Make the generated kernels again in the backward pass; see ``convary.methods.hdfnet.DepthDC``.
    """

    def __init__(
        self,
        rgb: Mapping[int, nn.Module],
        depth: Mapping[int, nn.Module],
        channels: Mapping[int, int],
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        strides = sorted(channels)
        guided = strides[-3:]
        self.rgb, self.depth = _by_stride(rgb), _by_stride(depth)
        self.laterals = _by_stride({s: nn.Conv2d(channels[s], WIDTH if s > 1 else WIDTH // 2, 1) for s in strides})
        self.transports = _by_stride({s: DenseTransLayer(channels[s], WIDTH) for s in guided})
        self.pyramids = _by_stride({s: DDPM(WIDTH, WIDTH, WIDTH, recompute=recompute) for s in guided})
        narrow = WIDTH // 2
        sizes = {s: (WIDTH, WIDTH if s > 2 else narrow) for s in strides if s > 1} | {1: (narrow, narrow)}
        self.decoders = _by_stride({s: ConvNormReLU(*size) for s, size in sizes.items()})
        self.classifier = nn.Conv2d(narrow, 1, 1)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        """Saliency as logits; the authors' network ends in the sigmoid.

        Args:
            image: (B, 3, H, W), normalised as ImageNet's.
            depth: (B, 1, H, W) in [0, 1]. H and W are any, at least the coarsest stride.

        Returns:
            (B, 1, H, W)

        Raises:
            ShapeError: the two do not fit together.
        """
        if image.shape[1:2] != (3,) or depth.shape[1:2] != (1,) or image.shape[2:] != depth.shape[2:]:
            raise ShapeError(
                f"image wants (B, 3, H, W) and depth (B, 1, H, W) of one size; got {tuple(image.shape)} and "
                f"{tuple(depth.shape)}; resize the depth"
            )
        laterals, guides = {}, {}
        x, z = image, depth
        for stride in self.rgb:
            x, z = self.rgb[stride](x), self.depth[stride](z)
            laterals[stride] = self.laterals[stride](x)
            if stride in self.transports:
                guides[stride] = self.transports[stride](x, z)
        *finer, coarsest = laterals
        y = self._decoded(coarsest, laterals[coarsest], guides)
        for stride in reversed(finer):
            y = laterals[stride] + F.interpolate(y, laterals[stride].shape[2:], mode="bilinear", align_corners=False)
            y = self._decoded(stride, y, guides)
        if "1" not in laterals:  # ResNet; here, unlike above, the authors align the corners
            y = self.decoders["1"](F.interpolate(y, image.shape[2:], mode="bilinear", align_corners=True))
        return self.classifier(y)

    def _decoded(self, stride: str, y: Tensor, guides: Mapping[str, Tensor]) -> Tensor:
        y = self.decoders[stride](y)
        return self.pyramids[stride](y, guides[stride]) if stride in guides else y

    def released_name(self, name: str) -> str:
        """The authors' name of a tensor: ``pyramids.16.`` is ``selfdc_16.``, and so on."""
        name = super().released_name(name)
        for ours, theirs in _THEIRS.items():
            name = re.sub(rf"^{ours}\.(\d+)\.", rf"{theirs}\1.", name)
        return name


_THEIRS = {
    "rgb": "encoder",
    "depth": "depth_encoder",
    "laterals": "trans",
    "transports": "depth_trans",
    "pyramids": "selfdc_",
    "decoders": "upconv",
}


def hdfnet(backbone: Backbone = "vgg16", *, pretrained: bool = True, recompute: bool = False) -> HDFNet:
    """The published network: 44,148,129 parameters with VGG16, 54,772,641 with VGG19, 153,192,001 with ResNet50.

    Args:
        backbone: torchvision's network that both encoders are; the VGGs are those with batch normalisation. The depth
            encoder's first convolution has one input channel and random weights.
        pretrained: Start both encoders from ImageNet's weights, or from random ones with a ``RandomWeightsWarning``
            where they cannot be downloaded.
        recompute: As in ``HDFNet``.

    Raises:
        ConfigError: an unknown backbone.
    """
    if backbone not in _BACKBONES:
        known = ", ".join(_BACKBONES)
        raise ConfigError(f"backbone must be one of {known}; got {backbone!r}{nearest(backbone, _BACKBONES)}")
    build, weights, stages, channels = _BACKBONES[backbone]
    rgb, depth = (stages(with_weights(build, weights) if pretrained else build()) for _ in range(2))
    first = depth[min(channels)]
    first[0] = _one_channel(first[0])
    return HDFNet(rgb, depth, channels, recompute=recompute)


def _one_channel(conv: Any) -> nn.Conv2d:
    """The same for depth, with random weights."""
    size, stride, padding = conv.kernel_size, conv.stride, conv.padding
    return nn.Conv2d(1, conv.out_channels, size, stride, padding, bias=conv.bias is not None)


def _vgg(network: Any) -> dict[int, nn.Sequential]:
    """The layers between the poolings, each pooling at the head of the stage it shrinks for; the last is dropped."""
    stages: dict[int, nn.Sequential] = {}
    layers: list[nn.Module] = []
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            stages[2 ** len(stages)] = nn.Sequential(*layers)
            layers = []
        layers.append(layer)
    return stages


def _resnet(network: Any) -> dict[int, nn.Sequential]:
    stem = nn.Sequential(network.conv1, network.bn1, network.relu)
    first = nn.Sequential(network.maxpool, network.layer1)
    return {2: stem, 4: first, 8: network.layer2, 16: network.layer3, 32: network.layer4}


_VGG_CHANNELS = {1: 64, 2: 128, 4: 256, 8: 512, 16: 512}
_RESNET_CHANNELS = {2: 64, 4: 256, 8: 512, 16: 1024, 32: 2048}
_BACKBONES: dict[str, tuple[Callable[..., nn.Module], WeightsEnum, Callable, dict[int, int]]] = {
    "vgg16": (vgg16_bn, VGG16_BN_Weights.IMAGENET1K_V1, _vgg, _VGG_CHANNELS),
    "vgg19": (vgg19_bn, VGG19_BN_Weights.IMAGENET1K_V1, _vgg, _VGG_CHANNELS),
    "resnet50": (resnet50, ResNet50_Weights.IMAGENET1K_V1, _resnet, _RESNET_CHANNELS),
}


def _by_stride(modules: Mapping[int, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({str(stride): modules[stride] for stride in sorted(modules)})
