# SPDX-License-Identifier: Apache-2.0
"""Tables of KernelWarehouse: the released networks, and COCO."""

from __future__ import annotations

import dataclasses

from convary.methods import KernelWarehouse
from convary.papers.odconv import MOBILE
from convary.papers.row import Published, Row, Source, Table

PAPER = "Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution, ICML 2024"
CODE = "https://github.com/OSVAI/KernelWarehouse"

HALF = KernelWarehouse(cell_ratio=1 / 2, in_ratio=1 / 2, out_ratio=1 / 2)
BY_ROLE = KernelWarehouse(cell_ratio=4, sharing="role")


def _half_mobile() -> tuple[tuple[KernelWarehouse, str], ...]:
    """Only the last stage has fewer cells, and the classifier is dynamic: three conversions."""
    config = KernelWarehouse(reduction=32, sharing="role")
    few = dataclasses.replace(HALF, reduction=32, sharing="role")
    head = dataclasses.replace(config, cell_ratio=1 / 2, in_ratio=1 / 40)
    late = "name('features.1[5-7].conv.0.0', 'features.1[5-7].conv.2', 'features.18.0')"
    return (few, late), (head, "classifier"), (config, "depthwise | first")


def _resnet(
    name: str,
    title: str,
    method: KernelWarehouse | None,
    count: str,
    *numbers: str,
    note: str = "",
    recipe: str = "kernelwarehouse-resnet",
) -> Row:
    depth, _, _ = name.removeprefix("resnet").partition("-")
    params, top1, top5 = numbers
    return Row(
        name=name,
        title=title,
        network=f"torchvision:resnet{depth}",
        method=method,
        recipe=recipe,
        published=Published(params=params, top1=top1, top5=top5),
        count=count,
        note=note,
    )


def _kw(ratio: float) -> KernelWarehouse:
    return KernelWarehouse(cell_ratio=ratio)


FULL_DEPTH = "kernelwarehouse-resnet-full-depth"
RESNET = Table(
    name="kernelwarehouse-resnet",
    title="KernelWarehouse on ImageNet: ResNet and ConvNeXt",
    source=Source(paper=PAPER, place="README of the released code, 300 epochs", url=CODE),
    rows=(
        _resnet("resnet18", "ResNet-18", None, "static_resnet18", "11.69M", "70.44", "89.72", recipe=FULL_DEPTH),
        _resnet(
            "resnet18-1/4x", "+ KW (1/4x)", dataclasses.replace(HALF, cell_ratio=1 / 4), "kw1d4x_resnet18", "4.08M",
            "72.73", "90.83", note="The released configuration builds 4,031,768, as here.",
            recipe="kernelwarehouse-resnet-quarter",
        ),
        _resnet(
            "resnet18-1/2x", "+ KW (1/2x)", HALF, "kw1d2x_resnet18", "7.43M", "73.33", "91.42", recipe=FULL_DEPTH
        ),
        _resnet("resnet18-1x", "+ KW (1x)", _kw(1), "kw1x_resnet18", "11.93M", "74.77", "92.13"),
        _resnet("resnet18-2x", "+ KW (2x)", _kw(2), "kw2x_resnet18", "23.24M", "75.19", "92.18"),
        _resnet("resnet18-4x", "+ KW (4x)", _kw(4), "kw4x_resnet18", "45.86M", "76.05", "92.68"),
        _resnet("resnet50", "ResNet-50", None, "static_resnet50", "25.56M", "78.44", "94.24"),
        _resnet(
            "resnet50-1/2x", "+ KW (1/2x)", dataclasses.replace(HALF, nonlocal_ratio=1 / 16), "kw1d2x_resnet50",
            "17.64M", "79.30", "94.71",
        ),
        _resnet("resnet50-1x", "+ KW (1x)", _kw(1), "kw1x_resnet50", "28.05M", "80.38", "95.19"),
        _resnet("resnet50-4x", "+ KW (4x)", _kw(4), "kw4x_resnet50", "102.02M", "81.05", "95.21"),
        Row(
            name="convnext-tiny", title="ConvNeXt-Tiny", network="torchvision:convnext_tiny",
            recipe="kernelwarehouse-convnext-static", published=Published(params="28.59M", top1="82.07", top5="95.86"),
        ),
        Row(
            name="convnext-tiny-1x", title="+ KW (1x)", network="torchvision:convnext_tiny",
            method=KernelWarehouse(norm="layer"), recipe="kernelwarehouse-convnext",
            published=Published(params="39.37M", top1="82.51", top5="96.07"), count="kw1x_convnext_tiny",
        ),
    ),
)  # fmt: skip


def _mobile(width: str, suffix: str, params: str, top1: str, top5: str) -> Row:
    code = f"mobilenetv2_{int(100 * float(width)):03}"
    methods: dict[str, KernelWarehouse] = {"1x": _kw(1), "4x": BY_ROLE}
    several = suffix == "1/2x"
    hard = not suffix or (width, suffix) == ("0.5", "1x")
    recipe = "kernelwarehouse-mobilenetv2-hard" if hard else "kernelwarehouse-mobilenetv2"
    return Row(
        name=f"mobilenetv2-{width}" + (f"-{suffix}" if suffix else ""),
        title=f"+ KW ({suffix})" if suffix else f"MobileNetV2 ({width}x)",
        network=MOBILE[width],
        method=methods.get(suffix),
        conversions=_half_mobile() if several else (),
        recipe=None if several else recipe,
        published=Published(params=params, top1=top1, top5=top5),
        count=f"kw{suffix.replace('/', 'd')}_{code}" if suffix else f"static_{code}",
        obstacle="three conversions make it; convary compare makes one" if several else "",
    )


MOBILENETV2 = Table(
    name="kernelwarehouse-mobilenetv2",
    title="KernelWarehouse on ImageNet: MobileNetV2",
    source=Source(paper=PAPER, place="README of the released code, 150 epochs", url=CODE),
    rows=(
        _mobile("1.0", "", "3.50M", "72.04", "90.42"),
        _mobile("1.0", "1/2x", "2.65M", "72.59", "90.71"),
        _mobile("1.0", "1x", "5.17M", "74.68", "91.90"),
        _mobile("1.0", "4x", "11.38M", "75.92", "92.22"),
        _mobile("0.5", "", "1.97M", "64.32", "85.22"),
        _mobile("0.5", "1/2x", "1.47M", "65.20", "85.98"),
        _mobile("0.5", "1x", "2.85M", "68.29", "87.93"),
        _mobile("0.5", "4x", "4.65M", "70.26", "89.19"),
    ),
)


def _detector(name: str, title: str, method: KernelWarehouse | None, box: str, mask: str, note: str = "") -> Row:
    kind, _, ratio = name.partition("-") if not name.startswith("convnext") else ("convnext_tiny", "", name[14:])
    code = {"mobilenetv2": "mobilenetv2_100"}.get(kind, kind)
    networks = {"resnet50": "torchvision:resnet50", "mobilenetv2": MOBILE["1.0"]}
    row = Row(
        name=name,
        title=title,
        network=networks.get(kind, "torchvision:convnext_tiny") if method else None,
        method=method,
        published=Published(box_ap=box, mask_ap=mask),
        count=f"kw{ratio}_{code}" if method else None,
        note=note,
    )
    if kind not in networks:
        return dataclasses.replace(row, obstacle=CONVNEXT)
    backbone = "resnet50" if kind == "resnet50" else "mobilenet_v2"
    return dataclasses.replace(row, detector="mask", backbone=backbone, schedule="detection-adamw-published")


CONVNEXT = (
    "its backbone is a ConvNeXt, trained with a rate for each layer; the detectors here have ResNets and MobileNets"
)
COCO = Table(
    name="kernelwarehouse-coco",
    title="KernelWarehouse on COCO: Mask R-CNN",
    source=Source(paper=PAPER, place="README of detection in the released code", url=CODE),
    rows=(
        _detector("resnet50", "ResNet-50", None, "39.6", "36.4"),
        _detector("resnet50-1x", "+ KW (1x)", _kw(1), "41.8", "38.4"),
        _detector("resnet50-4x", "+ KW (4x)", _kw(4), "42.4", "38.9"),
        _detector("mobilenetv2", "MobileNetV2 (1.0x)", None, "33.8", "31.7"),
        _detector("mobilenetv2-1x", "+ KW (1x)", _kw(1), "36.4", "33.7"),
        _detector("mobilenetv2-4x", "+ KW (4x)", BY_ROLE, "38.0", "34.9"),
        _detector("convnext-tiny", "ConvNeXt-Tiny", None, "43.4", "39.7"),
        _detector(
            "convnext-tiny-1x", "+ KW (1x)", KernelWarehouse(norm="layer"), "44.7", "40.6",
            "The README's row says 4x, the configuration it links 1x.",
        ),
    ),
    note=(
        "Parameters and multiply-adds are those of the backbone with a classifier of 1,000 classes, on 224x224. "
        "--data coco:FOLDER trains them by the settings of the released configs, convary train "
        "detection-adamw-published."
    ),
)  # fmt: skip

TABLES = (RESNET, MOBILENETV2, COCO)
