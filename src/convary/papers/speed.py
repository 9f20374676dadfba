# SPDX-License-Identifier: Apache-2.0
"""Tables of what dynamic networks cost in time and memory, which ``convary reproduce`` measures again here."""

from __future__ import annotations

from convary.methods import DCD, CondConv, DyConv, KernelWarehouse, MethodConfig, ODConv
from convary.papers.odconv import ALL_BUT_STEM, ARXIV
from convary.papers.odconv import PAPER as ODCONV
from convary.papers.row import Published, Row, Source, Table

NOT_TRAINED = "a table of speed"


def _row(name: str, title: str, network: str, method: MethodConfig | None = None, **more) -> Row:
    return Row(name=name, title=title, network=network, method=method, obstacle=NOT_TRAINED, **more)


def _compared(name: str, title: str, network: str, released: str, dyconv: str, squeeze: int) -> tuple[Row, ...]:
    by_block = CondConv(experts=8, router="block")
    return (
        _row(name, title, network),
        _row(f"{name}-condconv-8x", "+ CondConv (8x)", network, by_block),
        _row(f"{name}-dyconv-4x", "+ DyConv (4x)", network, DyConv(), where=dyconv),
        _row(f"{name}-dcd", "+ DCD", network, DCD(squeeze=squeeze)),
        _row(f"{name}-odconv-1x", "+ ODConv (1x)", network, ODConv(experts=1), released=f"{released}:kernel_num=1"),
        _row(f"{name}-odconv-4x", "+ ODConv (4x)", network, ODConv(experts=4), released=f"{released}:kernel_num=4"),
    )


ODCONV_SPEED = Table(
    name="odconv-speed",
    title="ODConv's speed: inference and training",
    source=Source(paper=ODCONV, place="its networks in the tables of inference speed and training cost", url=ARXIV),
    rows=(
        *_compared("resnet50", "ResNet-50", "torchvision:resnet50", "od_resnet50", "paper", 16),
        *_compared(
            "mobilenetv2", "MobileNetV2 (1.0x)", "torchvision:mobilenet_v2", "od_mobilenetv2_100", ALL_BUT_STEM, 16
        ),
    ),
    note=(
        "The paper's numbers have not been read again, so none is printed. convary reproduce odconv-speed measures the "
        "rows on your machine, beside the authors' code where --released says where that lies."
    ),
    measured=True,
)

MCL_SPEED = Table(
    name="mcl-speed",
    title="Speed of ODConv and KernelWarehouse, as MCL measured it",
    source=Source(
        paper="MCL (2026), its table X: batches of 128 on a GPU",
        place="KernelWarehouse's released code",
        url="https://github.com/OSVAI/KernelWarehouse",
    ),
    rows=(
        _row("resnet18", "ResNet-18", "torchvision:resnet18",
             published=Published(latency="5.23", rate="24472", memory="911")),
        _row("resnet18-odconv-4x", "+ ODConv (4x)", "torchvision:resnet18", ODConv(experts=4),
             released="od_resnet18:kernel_num=4", published=Published(latency="35.0", rate="3653", memory="6377")),
        _row("resnet18-kw-4x", "+ KW (4x)", "torchvision:resnet18", KernelWarehouse(cell_ratio=4),
             published=Published(latency="91.7", rate="1396", memory="2736")),
        _row("resnet50", "ResNet-50", "torchvision:resnet50",
             published=Published(latency="10.24", rate="12503", memory="1623")),
        _row("resnet50-odconv-4x", "+ ODConv (4x)", "torchvision:resnet50", ODConv(experts=4),
             released="od_resnet50:kernel_num=4", published=Published(latency="125.3", rate="1021", memory="7547")),
        _row("resnet50-kw-4x", "+ KW (4x)", "torchvision:resnet50", KernelWarehouse(cell_ratio=4),
             published=Published(latency="280.4", rate="456", memory="3708")),
    ),
    measured=True,
)  # fmt: skip

TIMM_SPEED = Table(
    name="condconv-speed",
    title="Speed of CondConv's EfficientNet, as timm measured it",
    source=Source(
        paper="Wightman: PyTorch Image Models",
        place="benchmark tables: inference on an RTX 4090, training on an RTX 3090, mixed precision",
        url="https://github.com/huggingface/pytorch-image-models/tree/main/results",
    ),
    rows=(
        _row("b0", "EfficientNet-B0", "timm:efficientnet_b0", published=Published(rate="8926", train_rate="1459")),
        _row("b0-8x", "+ CondConv (8x)", "timm:efficientnet_b0", CondConv(experts=8, router="block"),
             where="paper & ~classifier", published=Published(rate="6014", train_rate="813")),
    ),
    measured=True,
)  # fmt: skip

TABLES = (ODCONV_SPEED, MCL_SPEED, TIMM_SPEED)
