# SPDX-License-Identifier: Apache-2.0
"""Tables of DyConv: networks, the temperature, and the number of kernels."""

from __future__ import annotations

from convary.methods import DyConv
from convary.papers.odconv import MOBILE
from convary.papers.row import Published, Row, Source, Table

PAPER = "Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic Convolution: Attention over Convolution Kernels, CVPR 2020"
URL = "https://arxiv.org/abs/1912.03458"
UNREAD = "the paper's settings for it have not been read again"
NO_NETWORK = "neither torchvision nor timm has the paper's ResNet-10"


def _static(name: str, title: str, network: str | None, published: Published, **more) -> Row:
    return Row(name=name, title=title, network=network, published=published, **more)


def _dynamic(name: str, network: str | None, published: Published, **more) -> Row:
    method = DyConv() if network else None
    return Row(name=f"{name}-4x", title="+ DyConv (4x)", network=network, method=method, published=published, **more)


def _mobile(
    width: str, static: Published, dynamic: Published, recalled: tuple[Published, Published]
) -> tuple[Row, Row]:
    name, code = f"mobilenetv2-{width}", f"mobilenetv2_{int(100 * float(width)):03}"
    recipe = "dyconv-mobilenetv2" if width == "1.0" else f"dyconv-mobilenetv2-{width}"
    title, network = f"MobileNetV2 ({width}x)", MOBILE[width]
    last = f"dyconv_{code}_4x_last_static"
    return (
        _static(name, title, network, static, recalled=recalled[0], recipe=recipe, count=f"static_{code}"),
        _dynamic(name, network, dynamic, recalled=recalled[1], recipe=recipe, count=last),
    )


NETWORKS = Table(
    name="dyconv-imagenet",
    title="DyConv on ImageNet",
    source=Source(paper=PAPER, place="comparison on ImageNet", url=URL),
    rows=(
        *_mobile(
            "1.0",
            Published(params="3.5M", madds="300M", top1="72.0"),
            Published(params="11.1M", madds="312.9M", top1="75.2"),
            (Published(), Published()),
        ),
        *_mobile(
            "0.75",
            Published(),
            Published(params="7.0M"),
            (Published(top1="69.8"), Published(madds="217.5M", top1="73.7")),
        ),
        *_mobile(
            "0.5",
            Published(params="2.0M", madds="97M", top1="65.4"),
            Published(params="4.0M", madds="101.4M", top1="69.9"),
            (Published(), Published()),
        ),
        _static(
            "mobilenetv2-0.35",
            "MobileNetV2 (0.35x)",
            "torchvision:mobilenet_v2@0.35",
            Published(),
            recalled=Published(top1="60.3"),
            untrained=UNREAD,
        ),
        _dynamic(
            "mobilenetv2-0.35",
            "torchvision:mobilenet_v2@0.35",
            Published(),
            recalled=Published(params="2.8M", madds="62.0M", top1="65.9"),
            untrained=UNREAD,
        ),
        _static(
            "resnet18",
            "ResNet-18",
            "torchvision:resnet18",
            Published(params="11.1M", madds="1.81G", top1="70.4"),
            recipe="dyconv-resnet",
            note="No ResNet-18 with a classifier of 1,000 classes has as few parameters as are published.",
        ),
        _dynamic(
            "resnet18",
            "torchvision:resnet18",
            Published(params="42.7M", madds="1.85G", top1="72.7"),
            recipe="dyconv-resnet",
            note="Counted here with the classifier and with dynamic shortcuts.",
        ),
        _static("resnet10", "ResNet-10", None, Published(top1="63.5"), obstacle=NO_NETWORK),
        _dynamic("resnet10", None, Published(top1="67.7"), obstacle=NO_NETWORK),
        _static(
            "mobilenetv3-small",
            "MobileNetV3-Small",
            "torchvision:mobilenet_v3_small",
            Published(top1="67.4"),
            recalled=Published(params="2.9M", madds="66.0M"),
            untrained=UNREAD,
        ),
        _dynamic(
            "mobilenetv3-small",
            "torchvision:mobilenet_v3_small",
            Published(top1="70.3"),
            recalled=Published(params="4.8M", madds="68.5M"),
            untrained=UNREAD,
            note="The abstract of the CVPR version says + 2.3 points, that of the arXiv version + 2.9.",
        ),
    ),
)


def _at(name: str, title: str, top1: str, temperature: float) -> Row:
    return Row(
        name=name,
        title=title,
        network=MOBILE["0.5"],
        method=DyConv(temperature=temperature),
        recipe="dyconv-mobilenetv2-0.5-constant",
        published=Published(top1=top1),
    )


TEMPERATURE = Table(
    name="dyconv-temperature",
    title="DyConv's temperature, on MobileNetV2 (0.5x)",
    source=Source(paper=PAPER, place="ablation of the temperature, static 65.4", url=URL),
    rows=(
        *(
            _at(f"temperature-{T}", f"T = {T}", top1, float(T))
            for T, top1 in ((1, "64.8"), (5, "65.7"), (10, "67.5"), (20, "69.4"), (30, "69.4"), (40, "69.2"))
        ),
        Row(
            name="annealed",
            title="from 30 to 1 over the first ten epochs",
            network=MOBILE["0.5"],
            method=DyConv(),
            recipe="dyconv-mobilenetv2-0.5",
            published=Published(top1="69.9"),
        ),
    ),
)

KERNELS = Table(
    name="dyconv-kernels",
    title="DyConv's number of kernels, on MobileNetV2 (0.5x)",
    source=Source(paper=PAPER, place="ablation of K", url=URL),
    rows=tuple(
        Row(
            name=f"kernels-{K}",
            title=f"K = {K}",
            network=MOBILE["0.5"],
            method=DyConv(experts=K),
            recipe="dyconv-mobilenetv2-0.5",
            published=Published(top1="69.9") if K == 4 else Published(),
        )
        for K in (2, 4, 6, 8)
    ),
    note=(
        "The paper says that accuracy stops rising past K = 4. Its other numbers have not been read again, so none is "
        "printed, and the values of K are ours: this is what each costs."
    ),
)

TABLES = (NETWORKS, TEMPERATURE, KERNELS)
