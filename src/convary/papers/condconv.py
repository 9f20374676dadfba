# SPDX-License-Identifier: Apache-2.0
"""Tables of CondConv: networks, the released EfficientNets, routing and placement."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from convary.methods import CondConv
from convary.papers.row import Published, Row, Source, Table

PAPER = "Yang, Bender, Le, Ngiam: CondConv: Conditionally Parameterized Convolutions, NeurIPS 2019"
URL = "https://arxiv.org/abs/1904.04971"
CODE = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/condconv"
UNREAD = "the paper's settings for it have not been read again"


def _pair(name: str, title: str, network: str, static: str, dynamic: str, note: str = "") -> tuple[Row, Row]:
    method = CondConv(experts=8, router="block")
    return (
        Row(name=name, title=title, network=network, published=Published(top1=static), untrained=UNREAD),
        Row(
            name=f"{name}-8x",
            title="+ CondConv (8x)",
            network=network,
            method=method,
            published=Published(top1=dynamic),
            untrained=UNREAD,
            note=note,
        ),
    )


def _efficientnet_b0() -> tuple[Row, Row]:
    static, dynamic = _pair("efficientnet-b0", "EfficientNet-B0", B0, "77.2", "78.3")
    recipe = "condconv-efficientnet"
    return (
        replace(static, recipe=f"{recipe}-static", untrained="", count="efficientnet_b0"),
        replace(dynamic, recipe=recipe, untrained="", where=BLOCKS, count="efficientnet_cc_b0_8e"),
    )


B0, B1 = "timm:efficientnet_b0", "timm:efficientnet_b1"
BLOCKS = "paper & ~classifier"
OURS = "Which layers are dynamic is our reading: the second half of the blocks, and the classifier."
NETWORKS = Table(
    name="condconv-imagenet",
    title="CondConv on ImageNet",
    source=Source(paper=PAPER, place="results on ImageNet, eight experts", url=URL),
    rows=(
        *_pair("mobilenetv1", "MobileNetV1 (1.0x)", "timm:mobilenetv1_100", "71.9", "73.7", OURS),
        *_pair("mobilenetv2", "MobileNetV2 (1.0x)", "torchvision:mobilenet_v2", "71.6", "74.6"),
        *_pair("mnasnet-a1", "MnasNet-A1", "timm:semnasnet_100", "74.9", "76.2", OURS),
        *_pair("resnet50", "ResNet-50", "torchvision:resnet50", "77.7", "78.6"),
        *_efficientnet_b0(),
    ),
)


def _efficient(name: str, title: str, network: str, experts: int, count: str, *numbers: str) -> Row:
    params, madds, top1 = numbers
    suffix = "" if experts else {"b0": "-static", "b1": "-b1"}[name]
    return Row(
        name=name,
        title=title,
        network=network,
        method=CondConv(experts=experts, router="block") if experts else None,
        where=BLOCKS if experts else "paper",
        recipe=f"condconv-efficientnet{suffix}",
        published=Published(params=params, madds=madds, top1=top1),
        count=count,
    )


EFFICIENTNET = Table(
    name="condconv-efficientnet",
    title="CondConv on ImageNet: the released EfficientNets",
    source=Source(paper=PAPER, place="README of the released code", url=CODE),
    rows=(
        _efficient("b0", "EfficientNet-B0", B0, 0, "efficientnet_b0", "5.3M", "391M", "77.3"),
        _efficient("b0-4x", "+ CondConv (4x)", B0, 4, "efficientnet_cc_b0_4e", "13.3M", "402M", "77.8"),
        _efficient("b0-8x", "+ CondConv (8x)", B0, 8, "efficientnet_cc_b0_8e", "24.0M", "413M", "78.3"),
        _efficient("b1", "EfficientNet-B1", B1, 0, "efficientnet_b1", "7.8M", "700M", "79.2"),
        _efficient(
            "b0-depth-8x", "B0 of depth 1.1 + CondConv (8x)", B1, 8, "efficientnet_cc_b1_8e", "39.7M", "614M", "79.5"
        ),
    ),
    note=(
        "EfficientNet-B1 is B0 of depth 1.1 on larger images. Multiply-adds are counted here on 224x224, where "
        "B1's published ones are on 240x240."
    ),
)


DEPTHWISE = ("0.0", "1.0", "1.1", "2.0", "2.1", *(f"3.{i}" for i in range(6)), "4.0", "4.1")  # MobileNetV1's blocks


def _from(layer: int) -> str:
    names = ", ".join(f"'blocks.{block}.*'" for block in DEPTHWISE[layer - 1 :])
    return f"name({names}) | classifier"


def _quarter(
    name: str, title: str, top1: str, where: str, activation: Literal["sigmoid", "softmax"] = "sigmoid"
) -> Row:
    return Row(
        name=name,
        title=title,
        network="timm:mobilenetv1_100@0.25",
        method=CondConv(experts=8, router="block", activation=activation),
        where=where,
        published=Published(top1=top1),
        untrained=UNREAD,
    )


ABLATIONS = Table(
    name="condconv-ablations",
    title="CondConv's routing and placement, on MobileNetV1 (0.25x)",
    source=Source(paper=PAPER, place="ablations of the routing function and of the layers", url=URL),
    rows=(
        _quarter("sigmoid", "routing by a sigmoid", "62.0", _from(7)),
        _quarter("softmax", "routing by a softmax", "60.5", _from(7), "softmax"),
        *(_quarter(f"from-{i}", f"CondConv from layer {i} on", top1, _from(i))
          for i, top1 in ((1, "62.5"), (5, "62.0"), (7, "62.0"), (13, "59.5"))),
        _quarter("classifier", "the classifier alone", "54.2", "classifier"),
    ),
    note=(
        "Counted with eight experts, with the classifier, and of the routing functions from the seventh of thirteen "
        "layers on: these are ours, the paper's have not been read again."
    ),
)  # fmt: skip

SSD = "a detector, SSD300 on MobileNetV1; convary reproduce trains classifiers"
COCO = Table(
    name="condconv-coco",
    title="CondConv on COCO",
    source=Source(paper=PAPER, place="results on COCO, at 4 % more multiply-adds", url=URL),
    rows=(
        Row(name="ssd300", title="SSD300, MobileNetV1 (1.0x)", network="timm:mobilenetv1_100",
            published=Published(box_ap="20.3"), obstacle=SSD),
        Row(name="ssd300-8x", title="+ CondConv (8x)", network="timm:mobilenetv1_100",
            method=CondConv(experts=8, router="block"), where=BLOCKS, published=Published(box_ap="22.4"),
            obstacle=SSD, note=OURS.replace(", and the classifier", "")),
    ),
    note="Parameters and multiply-adds are those of MobileNetV1 with a classifier of 1,000 classes, on 224x224.",
)  # fmt: skip

TABLES = (NETWORKS, EFFICIENTNET, ABLATIONS, COCO)
