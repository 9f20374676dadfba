# SPDX-License-Identifier: Apache-2.0
"""Tables of DyNet. The paper lists the layers of none of its dynamic networks."""

from __future__ import annotations

from convary.papers.row import Published, Row, Source, Table

PAPER = "Zhang, Zhang, Wang, Zhong: DyNet: Dynamic Convolution for Accelerating CNNs, 2020"
URL = "https://arxiv.org/abs/2004.10694"
UNLISTED = "the paper draws a block and lists no layers of this network"
NO_RECIPE = "the paper's training is not among the recipes"


def _row(name: str, title: str, published: Published, network: str | None = None, **more) -> Row:
    obstacle = NO_RECIPE if network else UNLISTED
    return Row(name=name, title=title, network=network, published=published, obstacle=obstacle, **more)


NETWORKS = Table(
    name="dynet-imagenet",
    title="DyNet on ImageNet",
    source=Source(paper=PAPER, place="tables 1 and 2 of the version on OpenReview", url=URL),
    rows=(
        _row(
            "mobilenetv2",
            "MobileNetV2 (1.0x)",
            Published(madds="298M", error="28.00", cpu="109.1"),
            "torchvision:mobilenet_v2",
        ),
        _row("dy-mobile", "Dy-mobile", Published(madds="129M", error="28.27", cpu="58.3")),
        _row("resnet18", "ResNet-18", Published(madds="1730M", error="30.41", cpu="90.7"), "torchvision:resnet18"),
        _row("dy-resnet18", "Dy-ResNet-18", Published(madds="550M", error="31.01", cpu="68.7")),
        _row(
            "resnet50",
            "ResNet-50",
            Published(madds="3890M", error="23.67", cpu="199.6"),
            "torchvision:resnet50",
            strides_first=True,
        ),
        _row("dy-resnet50", "Dy-ResNet-50", Published(madds="1075M", error="23.75", cpu="135.1")),
        _row("dy-shuffle", "Dy-shuffle", Published(madds="88M", error="29.6")),
    ),
    note="The arXiv version reports other reductions of the multiply-adds than this one.",
)

MOBILENETV3 = Table(
    name="dynet-mobilenetv3",
    title="DyNet on ImageNet: MobileNetV3",
    source=Source(paper=PAPER, place="arXiv version", url=URL),
    rows=(
        _row("small", "Dy-MobileNetV3-Small", Published(top1="70.3")),
        _row("large", "Dy-MobileNetV3-Large", Published(top1="77.1")),
    ),
)

KERNELS = Table(
    name="dynet-kernels",
    title="DyNet's number of kernels, on Dy-mobile",
    source=Source(paper=PAPER, place="ablation of g_t", url=URL),
    rows=tuple(
        _row(f"kernels-{count}", f"g_t = {count}", Published(error=error))
        for count, error in ((1, "30.85"), (2, "29.43"), (4, "28.69"), (6, "28.27"))
    ),
)

FCN = "a segmenter; convary reproduce trains classifiers"
CITYSCAPES = Table(
    name="dynet-cityscapes",
    title="DyNet on Cityscapes: FCN",
    source=Source(paper=PAPER, place="segmentation in the version on OpenReview", url=URL),
    rows=(
        Row(name="fcn", title="FCN", network=None, published=Published(madds="310.8G", miou="70.03"), obstacle=FCN),
        Row(
            name="dy-fcn", title="Dy-FCN", network=None, published=Published(madds="95.6G", miou="70.48"), obstacle=FCN
        ),
    ),
)

TABLES = (NETWORKS, MOBILENETV3, KERNELS, CITYSCAPES)
