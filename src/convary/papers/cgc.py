# SPDX-License-Identifier: Apache-2.0
"""The table of CGC."""

from __future__ import annotations

from convary.methods import CGC
from convary.papers.row import Row, Source, Table

IMAGENET = Table(
    name="cgc-imagenet",
    title="CGC on ImageNet",
    source=Source(
        paper="Lin, Ma, Wang, Liu et al.: Context-Gated Convolution, ECCV 2020",
        place="the network of the released code",
        url="https://github.com/XudongLinthu/context-gated-convolution",
    ),
    rows=(
        Row(
            name="resnet50",
            title="ResNet-50 + CGC",
            network="torchvision:resnet50",
            method=CGC(),
            count="cgc_resnet50",
            untrained="the paper's settings have not been read again, and no training was released",
        ),
    ),
    note="The paper's accuracies have not been read again, so none is printed. Others report some: odconv-comparators.",
)

TABLES = (IMAGENET,)
