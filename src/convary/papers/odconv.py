# SPDX-License-Identifier: Apache-2.0
"""Tables of ODConv: the released networks, the paper's, what it compares with, and COCO."""

from __future__ import annotations

import dataclasses
from typing import Literal

from convary.methods import CGC, DCD, CondConv, DyConv, ODConv, WeightNet
from convary.models import CBAM, ECA, SE
from convary.papers.row import Published, Row, Source, Table

PAPER = "Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution, ICLR 2022"
ARXIV = "https://arxiv.org/abs/2209.07947"
CODE = "https://github.com/OSVAI/ODConv"
MOBILE = {
    "1.0": "torchvision:mobilenet_v2",
    "0.75": "torchvision:mobilenet_v2@0.75",
    "0.5": "torchvision:mobilenet_v2@0.5",
}
ALL_BUT_STEM = "all & ~first"


def _recipe(width: str) -> str:
    return "odconv-mobilenetv2" if width == "1.0" else f"odconv-mobilenetv2-{width}"


def _mobile(width: str, experts: int, params: str, madds: str, top1: str, top5: str) -> Row:
    suffix, code = f"-{experts}x" if experts else "", f"{int(100 * float(width)):03}"
    return Row(
        name=f"mobilenetv2-{width}{suffix}",
        title=f"+ ODConv ({experts}x)" if experts else f"MobileNetV2 ({width}x)",
        network=MOBILE[width],
        method=ODConv(experts=experts) if experts else None,
        recipe=_recipe(width),
        published=Published(params=params, madds=madds, top1=top1, top5=top5),
        count=f"od_mobilenetv2_{code}_K{experts}" if experts else f"static_mobilenetv2_{code}",
    )


def _resnet(depth: int, experts: int, params: str, madds: str, top1: str, top5: str) -> Row:
    suffix = f"-{experts}x" if experts else ""
    return Row(
        name=f"resnet{depth}{suffix}",
        title=f"+ ODConv ({experts}x)" if experts else f"ResNet-{depth}",
        network=f"torchvision:resnet{depth}",
        method=ODConv(experts=experts) if experts else None,
        recipe="odconv-resnet",
        published=Published(params=params, madds=madds, top1=top1, top5=top5),
        count=f"od_resnet{depth}_K{experts}" if experts else f"static_resnet{depth}",
        strides_first=depth > 18,
    )


MOBILENETV2 = Table(
    name="odconv-mobilenetv2",
    title="ODConv on ImageNet: MobileNetV2",
    source=Source(paper=PAPER, place="README of the released code: MobileNetV2, 150 epochs", url=CODE),
    rows=(
        _mobile("1.0", 0, "3.50M", "300.8M", "71.65", "90.22"),
        _mobile("1.0", 1, "4.94M", "311.8M", "74.74", "91.95"),
        _mobile("1.0", 4, "11.51M", "327.1M", "75.29", "92.18"),
        _mobile("0.75", 0, "2.64M", "209.1M", "69.18", "88.82"),
        _mobile("0.75", 1, "3.51M", "217.1M", "72.71", "90.85"),
        _mobile("0.75", 4, "7.50M", "226.3M", "74.01", "91.37"),
        _mobile("0.5", 0, "1.97M", "97.1M", "64.30", "85.21"),
        _mobile("0.5", 1, "2.43M", "101.8M", "68.06", "87.67"),
        _mobile("0.5", 4, "4.44M", "106.4M", "70.23", "88.86"),
    ),
)

RESNET = Table(
    name="odconv-resnet",
    title="ODConv on ImageNet: ResNet",
    source=Source(paper=PAPER, place="README of the released code: ResNet-18, -50 and -101, 100 epochs", url=CODE),
    rows=(
        _resnet(18, 0, "11.69M", "1.814G", "70.25", "89.38"),
        _resnet(18, 1, "11.94M", "1.838G", "73.05", "91.05"),
        _resnet(18, 4, "44.90M", "1.916G", "74.19", "91.47"),
        _resnet(50, 0, "25.56M", "3.858G", "76.23", "92.97"),
        _resnet(50, 1, "28.64M", "3.916G", "77.87", "93.77"),
        _resnet(50, 4, "90.67M", "4.080G", "78.50", "93.99"),
        _resnet(101, 0, "44.55M", "7.570G", "77.44", "93.68"),
        _resnet(101, 1, "50.82M", "7.675G", "78.84", "94.27"),
        _resnet(101, 2, "90.44M", "7.802G", "79.15", "94.34"),
    ),
)


def _other(row: Row, **numbers: Published) -> Row:
    """A row of the released code with the paper's own numbers."""
    return dataclasses.replace(row, **{"published": Published(), **numbers})


def _in_paper() -> tuple[Row, ...]:
    printed = {"resnet18-4x": "73.97", "resnet50-4x": "78.52", "resnet101": "77.41", "resnet101-2x": "79.27"}
    recalled = {
        "mobilenetv2-1.0-1x": "74.84", "mobilenetv2-1.0-4x": "75.42", "mobilenetv2-0.75-1x": "72.43",
        "mobilenetv2-0.75-4x": "73.81", "mobilenetv2-0.5-1x": "68.26", "mobilenetv2-0.5-4x": "70.01",
        "resnet18-1x": "73.41",
    }  # fmt: skip
    rows = {row.name: row for row in (*MOBILENETV2.rows, *RESNET.rows)}
    return (
        *(_other(rows[name], recalled=Published(top1=top1)) for name, top1 in recalled.items()),
        *(_other(rows[name], published=Published(top1=top1)) for name, top1 in printed.items()),
    )


IN_PAPER = Table(
    name="odconv-paper",
    title="ODConv on ImageNet, in the paper",
    source=Source(paper=PAPER, place="as tables II and III of MCL (2026) quote it", url=ARXIV),
    rows=_in_paper(),
    note="The authors trained the released networks anew; the README says that most are better than the paper's.",
)


def _beside(name: str, title: str, network: str, method, published: Published, **more) -> Row:
    recipe = "odconv-resnet" if "resnet" in network else _recipe(name.split("-")[1])
    return Row(name=name, title=title, network=network, method=method, published=published, recipe=recipe, **more)


def _beside_resnet18() -> tuple[Row, ...]:
    net = "torchvision:resnet18"
    by_block = CondConv(experts=8, router="block")
    own = "Every layer reduces its own input here; in the released code a block's layers share one reduction."
    return (
        _beside("resnet18-se", "ResNet-18 + SE", net, SE(), Published(params="11.78M", top1="70.98")),
        _beside("resnet18-cbam", "ResNet-18 + CBAM", net, CBAM(), Published(params="11.78M", top1="71.01")),
        _beside("resnet18-eca", "ResNet-18 + ECA", net, ECA(), Published(params="11.69M", top1="70.60")),
        _beside("resnet18-cgc", "ResNet-18 + CGC", net, CGC(), Published(params="11.69M", top1="71.60"),
                note="With the 7x7 stem, as the authors' ResNet-50 has it."),
        _beside("resnet18-weightnet", "ResNet-18 + WeightNet", net, WeightNet(),
                Published(params="11.93M", top1="71.56"), note=own),
        _beside("resnet18-dcd", "ResNet-18 + DCD", net, DCD(), Published(params="14.70M", top1="72.33"),
                count="resnet18_dcd"),
        _beside("resnet18-condconv-8x", "ResNet-18 + CondConv (8x)", net, by_block,
                Published(params="81.35M", top1="71.99"), count="condconv_resnet18_8e", classifier_bias=False),
        _beside("resnet18-dyconv-4x", "ResNet-18 + DyConv (4x)", net, DyConv(),
                Published(params="45.47M", top1="72.76"), count="dyconv_resnet18_4x"),
    )  # fmt: skip


def _beside_resnet50() -> tuple[Row, ...]:
    net, recalled = "torchvision:resnet50", [Published(top1=top1) for top1 in ("76.70", "76.82", "76.92", "76.79")]
    return (
        _beside("resnet50-condconv-8x", "ResNet-50 + CondConv (8x)", net, CondConv(experts=8, router="block"),
                Published(params="129.86M"), recalled=recalled[0], count="condconv_resnet50_8e",
                classifier_bias=False),
        _beside("resnet50-dyconv-4x", "ResNet-50 + DyConv (4x)", net, DyConv(), Published(params="100.88M"),
                recalled=recalled[1], count="dyconv_resnet50_4x"),
        _beside("resnet50-dcd", "ResNet-50 + DCD", net, DCD(), Published(params="29.84M"), recalled=recalled[2],
                count="resnet50_dcd"),
        _beside("resnet50-cgc", "ResNet-50 + CGC", net, CGC(), Published(params="25.59M"), recalled=recalled[3],
                count="cgc_resnet50"),
    )  # fmt: skip


def _beside_mobile() -> tuple[Row, ...]:
    by_block, rows = CondConv(experts=8, router="block"), []
    for width, code, condconv, dyconv, dcd, squeeze, tops in (
        ("1.0", "100", "22.88M", "12.40M", "5.72M", 16, ("74.13", "74.94", "74.18")),
        ("0.75", "075", "17.51M", "7.95M", "4.08M", 16, ("71.79", "72.75", "71.92")),
        ("0.5", "050", "13.61M", "4.57M", "3.06M", 8, ("67.24", "69.05", "69.32")),
    ):
        net, name, title = MOBILE[width], f"mobilenetv2-{width}", f"MobileNetV2 ({width}x)"
        first, second, third = (Published(top1=top1) for top1 in tops)
        rows += [
            _beside(f"{name}-condconv-8x", f"{title} + CondConv (8x)", net, by_block, Published(params=condconv),
                    recalled=first, count=f"cond_mobilenetv2_{code}_8e", classifier_bias=False),
            _beside(f"{name}-dyconv-4x", f"{title} + DyConv (4x)", net, DyConv(), Published(params=dyconv),
                    recalled=second, where=ALL_BUT_STEM, count=f"dyconv_mobilenetv2_{code}_4x"),
            _beside(f"{name}-dcd", f"{title} + DCD", net, DCD(squeeze=squeeze), Published(params=dcd),
                    recalled=third, count=f"mobilenetv2_dcd_{code}_squeeze{squeeze}"),
        ]  # fmt: skip
    return tuple(rows)


COMPARATORS = Table(
    name="odconv-comparators",
    title="What ODConv's paper compares with, on ImageNet",
    source=Source(paper=PAPER, place="comparisons on ImageNet", url=ARXIV),
    rows=(*_beside_resnet18(), *_beside_resnet50(), *_beside_mobile()),
    note="CondConv's classifiers have no bias in these networks, and DyConv's MobileNetV2 has a dynamic last 1x1.",
)


def _detector(
    backbone: str,
    detector: Literal["faster", "mask"],
    experts: int,
    params: str,
    added: str,
    box: str,
    mask: str = "",
) -> Row:
    network = "torchvision:resnet50" if backbone == "resnet50" else MOBILE["1.0"]
    name = f"{detector}-{backbone}" + (f"-{experts}x" if experts else "")
    kind = {"faster": "Faster R-CNN", "mask": "Mask R-CNN"}[detector]
    title = {"resnet50": "ResNet-50", "mobilenetv2": "MobileNetV2 (1.0x)"}[backbone]
    return Row(
        name=name,
        title=f"{kind}, + ODConv ({experts}x)" if experts else f"{kind}, {title}",
        network=network if experts else None,
        method=ODConv(experts=experts) if experts else None,
        published=Published(params=params, added=added, box_ap=box, mask_ap=mask),
        detector=detector,
        backbone="resnet50" if backbone == "resnet50" else "mobilenet_v2",
    )


COCO = Table(
    name="odconv-coco",
    title="ODConv on COCO",
    source=Source(paper=PAPER, place="README of object_detection in the released code", url=CODE),
    rows=(
        _detector("resnet50", "faster", 0, "43.80M", "", "37.4"),
        _detector("resnet50", "faster", 4, "108.91M", "65.11M", "39.4"),
        _detector("mobilenetv2", "faster", 0, "21.13M", "", "31.8"),
        _detector("mobilenetv2", "faster", 4, "29.14M", "8.01M", "35.5"),
        _detector("resnet50", "mask", 0, "46.45M", "", "38.2", "34.6"),
        _detector("resnet50", "mask", 4, "111.56M", "65.11M", "40.2", "36.1"),
        _detector("mobilenetv2", "mask", 0, "23.78M", "", "32.4", "29.8"),
        _detector("mobilenetv2", "mask", 4, "31.80M", "8.02M", "36.0", "33.0"),
    ),
    note=(
        "Only the backbone becomes dynamic: what the detector gains in parameters, the difference of two published "
        "counts, is compared with what the backbone gains here. --data coco:FOLDER trains them."
    ),
)


def _ablation(name: str, title: str, method: ODConv, where: str = "paper", recipe: str = "odconv-resnet") -> Row:
    network = "torchvision:resnet18"
    return Row(name=name, title=title, network=network, method=method, where=where, recipe=recipe)


LAST_STAGES = "name('layer3.*') | name('layer4.*')"
ABLATIONS = Table(
    name="odconv-ablations",
    title="ODConv's ablations, on ResNet-18",
    source=Source(paper=PAPER, place="the options that the paper's ablations vary", url=ARXIV),
    rows=(
        *(_ablation(f"reduction-{r}", f"hidden width C / {r}", ODConv(experts=1, reduction=r)) for r in (4, 8, 16, 32)),
        *(
            _ablation(f"only-{kind}", f"only the {kind} attention", ODConv(experts=4, attentions=(kind,)))
            for kind in ("channel", "filter", "tap", "kernel")
        ),
        _ablation("per-kernel", "attentions of each kernel's own", ODConv(experts=4, sharing="per_kernel")),
        _ablation("sigmoid", "sigmoid for the kernel attention", ODConv(experts=4, kernel_activation="sigmoid")),
        _ablation("two-kernels", "2 kernels", ODConv(experts=2)),
        _ablation("last-stages", "in the last two stages alone", ODConv(experts=4), LAST_STAGES),
        _ablation("last-stage", "in the last stage alone", ODConv(experts=4), "name('layer4.*')"),
        _ablation("with-shortcuts", "in the 1x1 shortcuts too", ODConv(experts=4), ALL_BUT_STEM),
        *(
            _ablation(
                f"temperature-{T}",
                f"temperature constant at {T}",
                ODConv(experts=4, temperature=float(T)),
                recipe="odconv-resnet-constant",
            )
            for T in (1, 30)
        ),
        _ablation("epochs-200", "trained for 200 epochs", ODConv(experts=4), recipe="odconv-resnet-double"),
    ),
    note=(
        "The paper's numbers have not been read again, so none is printed: this is what each option costs. The values "
        "of the reduction, the places, the temperatures and the epochs are ours. The last three change no network; "
        "--epochs has other numbers of epochs."
    ),
)

TABLES = (MOBILENETV2, RESNET, IN_PAPER, COMPARATORS, COCO, ABLATIONS)
