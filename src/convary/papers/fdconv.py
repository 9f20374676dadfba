# SPDX-License-Identifier: Apache-2.0
"""Tables of FDConv: detection, segmentation, and what they cost a ResNet-50."""

from __future__ import annotations

from typing import Any

from convary.methods import DCD, CondConv, DyConv, FDConv, KernelWarehouse, MethodConfig, ODConv
from convary.papers.row import Published, Row, Source, Table

PAPER = "Chen, Gu, Li, Yan, Fu: Frequency Dynamic Convolution for Dense Image Prediction, CVPR 2025"
CODE = "https://github.com/Linwei-Chen/FDConv"
UNRELEASED = "its schedule was not released; convary train detection-published --method trains it by ODConv's"
SEGMENTER = "a segmenter, which convary reproduce does not train"


def _row(
    name: str, title: str, method: MethodConfig | None, published: Published, obstacle: str = SEGMENTER, **more: Any
) -> Row:
    network = "torchvision:resnet50" if method else None
    return Row(name=name, title=title, network=network, method=method, published=published, obstacle=obstacle, **more)


def _faster(name: str, title: str, method: MethodConfig | None, published: Published, **more: Any) -> Row:
    return _row(name, title, method, published, UNRELEASED, **more)


def _mask(name: str, title: str, method: MethodConfig | None, published: Published, **more: Any) -> Row:
    how = {"detector": "mask", "backbone": "resnet50", "schedule": "detection-adamw-published"}
    return _row(name, title, method, published, "", **how, **more)


FASTER = Table(
    name="fdconv-faster",
    title="FDConv on COCO: Faster R-CNN, ResNet-50",
    source=Source(paper=PAPER, place="README of the released code", url=CODE),
    rows=(
        _faster("static", "ResNet-50", None, Published(box_ap="37.2")),
        _faster("condconv-8x", "+ CondConv (8x)", CondConv(experts=8, router="block"),
             Published(added="90.0M", box_ap="38.1"), where="paper & ~classifier"),
        _faster("dyconv-4x", "+ DyConv (4x)", DyConv(), Published(added="75.3M", box_ap="38.3")),
        _faster("dcd", "+ DCD", DCD(), Published(added="4.3M", box_ap="38.1"),
             note="As many as DCD adds to the classifier ResNet-50, of which half are in its own classifier."),
        _faster("odconv-4x", "+ ODConv (4x)", ODConv(experts=4), Published(added="65.1M", box_ap="39.2")),
        _faster("fdconv", "+ FDConv", FDConv(), Published(added="3.6M", box_ap="39.4"),
             count="fdconv_resnet50_classifier"),
    ),
    note="Parameters are those that the backbone gains.",
)  # fmt: skip

MASK = Table(
    name="fdconv-mask",
    title="FDConv on COCO: Mask R-CNN, ResNet-50",
    source=Source(paper=PAPER, place="README of the released code", url=CODE),
    rows=(
        _mask("static", "ResNet-50", None, Published(box_ap="39.6", mask_ap="36.4")),
        _mask("odconv-4x", "+ ODConv (4x)", ODConv(experts=4), Published(box_ap="42.1", mask_ap="38.6")),
        _mask("kernelwarehouse-1x", "+ KW (1x)", KernelWarehouse(), Published(box_ap="41.8", mask_ap="38.4"),
             count="kw1x_resnet50"),
        _mask("kernelwarehouse-4x", "+ KW (4x)", KernelWarehouse(cell_ratio=4),
             Published(box_ap="42.4", mask_ap="38.9"), count="kw4x_resnet50"),
        _mask("fdconv", "+ FDConv", FDConv(), Published(box_ap="42.4", mask_ap="38.6"),
             count="fdconv_resnet50_classifier"),
    ),
    note=(
        "Parameters and multiply-adds are those of the backbone with a classifier of 1,000 classes, on 224x224. "
        "--data coco:FOLDER trains them by KernelWarehouse's settings, which the released config repeats; it also "
        "leaves biases out of decay, and says 4 images a GPU but not how many GPUs: 16 images here."
    ),
)  # fmt: skip

UPERNET = Table(
    name="fdconv-upernet",
    title="FDConv in segmentation: UPerNet, ResNet-50",
    source=Source(paper=PAPER, place="README of the released code", url=CODE),
    rows=(
        _row("static", "ResNet-50", None, Published(miou="40.7")),
        _row("odconv-4x", "+ ODConv (4x)", ODConv(experts=4), Published(miou="43.3"), count="od_resnet50_K4"),
        _row("fdconv", "+ FDConv", FDConv(), Published(miou="43.8"), count="fdconv_resnet50_classifier"),
    ),
)

TABLES = (FASTER, MASK, UPERNET)
