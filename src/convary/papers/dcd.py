# SPDX-License-Identifier: Apache-2.0
"""The table of DCD."""

from __future__ import annotations

from convary.methods import DCD
from convary.papers.odconv import MOBILE
from convary.papers.row import Published, Row, Source, Table

IMAGENET = Table(
    name="dcd-imagenet",
    title="DCD on ImageNet",
    source=Source(
        paper="Li et al.: Revisiting Dynamic Convolution via Matrix Decomposition, ICLR 2021",
        place="comparison on ImageNet",
        url="https://arxiv.org/abs/2103.08756",
    ),
    rows=(
        Row(
            name="mobilenetv2-1.0",
            title="MobileNetV2 (1.0x) + DCD",
            network=MOBILE["1.0"],
            method=DCD(),
            recipe="dcd-mobilenetv2",
            recalled=Published(params="5.5M", madds="326M", top1="75.2"),
            count="mobilenetv2_dcd_100_squeeze16",
        ),
        Row(
            name="mobilenetv2-0.5",
            title="MobileNetV2 (0.5x) + DCD",
            network=MOBILE["0.5"],
            method=DCD(squeeze=8),
            recipe="dcd-mobilenetv2",
            published=Published(params="3.1M", top1="70.2"),
            count="mobilenetv2_dcd_050_squeeze8",
        ),
        Row(
            name="resnet18",
            title="ResNet-18 + DCD",
            network="torchvision:resnet18",
            method=DCD(),
            published=Published(top1="73.1"),
            recalled=Published(params="14.0M", madds="1.83G"),
            count="resnet18_dcd",
            recipe="dcd-resnet",
        ),
        Row(
            name="resnet50",
            title="ResNet-50 + DCD",
            network="torchvision:resnet50",
            method=DCD(),
            recalled=Published(params="29.3M", top1="77.9"),
            count="resnet50_dcd",
            recipe="dcd-resnet",
        ),
    ),
    note=(
        "Counted with the dynamic classifier of the released code. Multiply-adds are those of the branches as they "
        "are trained; the paper counts the kernel that they merge to."
    ),
)

TABLES = (IMAGENET,)
