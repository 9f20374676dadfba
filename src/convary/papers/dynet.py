# SPDX-License-Identifier: Apache-2.0
"""Tables of DyNet. The paper lists the layers of none of its dynamic networks; these are our reading of them."""

from __future__ import annotations

from convary.methods import DyNet
from convary.papers.row import Published, Row, Source, Table

PAPER = "Zhang, Zhang, Wang, Zhong: DyNet: Dynamic Convolution for Accelerating CNNs, 2020"
URL = "https://arxiv.org/abs/2004.10694"
UNREAD = "the paper's settings for it have not been read again"
MOBILE, RESIDUAL = DyNet(), DyNet(reduction=4)
DY_MOBILE = "torchvision:mobilenet_v2@0.55"


def _row(name: str, title: str, published: Published, network: str, method: DyNet | None = None, **more) -> Row:
    return Row(name=name, title=title, network=network, method=method, published=published, untrained=UNREAD, **more)


NETWORKS = Table(
    name="dynet-imagenet",
    title="DyNet on ImageNet",
    source=Source(paper=PAPER, place="tables 1 and 2 of the version on OpenReview", url=URL),
    rows=(
        _row("mobilenetv2", "MobileNetV2 (1.0x)", Published(madds="298M", error="28.00", cpu="109.1"),
             "torchvision:mobilenet_v2"),
        _row("dy-mobile", "Dy-mobile", Published(madds="129M", error="28.27", cpu="58.3"), DY_MOBILE, MOBILE,
             note="The next wider MobileNetV2, whose channels go by eights, has 163M."),
        _row("resnet18", "ResNet-18", Published(madds="1730M", error="30.41", cpu="90.7"), "torchvision:resnet18"),
        _row("dy-resnet18", "Dy-ResNet-18", Published(madds="550M", error="31.01", cpu="68.7"), "timm:resnet18@0.476",
             RESIDUAL),
        _row("resnet50", "ResNet-50", Published(madds="3890M", error="23.67", cpu="199.6"), "torchvision:resnet50",
             strides_first=True),
        _row("dy-resnet50", "Dy-ResNet-50", Published(madds="1075M", error="23.75", cpu="135.1"),
             "timm:resnet50@0.492", RESIDUAL, strides_first=True),
        _row("dy-shuffle", "Dy-shuffle", Published(madds="88M", error="29.6"), "torchvision:shufflenet_v2_x1_0@0.698",
             MOBILE),
    ),
    note=(
        "The paper draws a dynamic block and lists the layers of no network. Dynamic ones are our reading: the static "
        "network made so narrow that convolutions, routing and assembly come to the published multiply-adds, with six "
        "kernels and a router in every layer of the blocks, where the paper has a router for each block. The arXiv "
        "version reports other reductions of the multiply-adds than this one."
    ),
)  # fmt: skip

MOBILENETV3 = Table(
    name="dynet-mobilenetv3",
    title="DyNet on ImageNet: MobileNetV3",
    source=Source(paper=PAPER, place="arXiv version", url=URL),
    rows=(
        _row("small", "Dy-MobileNetV3-Small", Published(top1="70.3"), "torchvision:mobilenet_v3_small", MOBILE),
        _row("large", "Dy-MobileNetV3-Large", Published(top1="77.1"), "torchvision:mobilenet_v3_large", MOBILE),
    ),
    note="Which layers are dynamic is our reading: the convolutions of the blocks.",
)

KERNELS = Table(
    name="dynet-kernels",
    title="DyNet's number of kernels, on Dy-mobile",
    source=Source(paper=PAPER, place="ablation of g_t", url=URL),
    rows=tuple(
        _row(f"kernels-{count}", f"g_t = {count}", Published(error=error), DY_MOBILE, DyNet(experts=count))
        for count, error in ((1, "30.85"), (2, "29.43"), (4, "28.69"), (6, "28.27"))
    ),
    note="On our reading of Dy-mobile, as in dynet-imagenet.",
)

FCN = "a segmenter, whose layers the paper does not list; convary reproduce trains classifiers"
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
