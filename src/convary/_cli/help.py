# SPDX-License-Identifier: Apache-2.0
"""What ``convary COMMAND --help`` shows beside the flags: types as people read them, and examples."""

from __future__ import annotations

import types
import typing
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from convary._cli.usage import KINDS

REGISTRY = ConstructorRegistry()

EXAMPLES = {
    "compare": (
        ("--epochs 1 --limit-train 500", "a first look, in a minute"),
        ("--data cifar10 --model resnet20 --methods static odconv --epochs 30 --seeds 5 --out runs/mine", ""),
        (
            "--data folder:PHOTOS --model torchvision:mobilenet_v2 --weights pretrained --methods static odconv",
            "photos of your own, from ImageNet's weights",
        ),
    ),
    "plan": (
        ("--model torchvision:resnet18 --method odconv", ""),
        ("--model timm:efficientnet_b0 --method dyconv --experts 2 --where 'all & ~first'", ""),
        ("--method odconv --help", "the options of ODConv"),
    ),
    "predict": (
        ("hdfnet photo.jpg", "the run in runs/hdfnet; the depth is photo_depth.png"),
        ("runs/mine street.jpg square.jpg", "another run"),
        ("runs/mine/odconv/seed-0/checkpoint.pt cat.jpg", "its class, by a network of convary compare"),
        ("model.onnx cat.jpg", "by what convary export made of that network"),
    ),
    "convert": (
        ("--model torchvision:resnet18 --method odconv --out model.pt", "with torchvision's weights"),
        ("--model timm:resnet18 --method dyconv --weights trained.pt --out model.pt", "with your own"),
    ),
    "export": (
        ("model.pt --out model.onnx", "what convary convert wrote"),
        ("runs/mine/odconv/seed-0/checkpoint.pt --out model.pt2", "what convary compare trained"),
        ("model.pt --out model.onnx --dynamic 0", "for one size of image, every batch"),
    ),
    "explain": (
        ("", "a layer of 64 channels, four kernels, 16 images"),
        ("--in-channels 128 --out-channels 128 --size 14 14 --batch 1", ""),
        ("--op pixel_conv --kernel-size 5 --groups 4 --training", ""),
    ),
    "reproduce": (
        ("", "which tables there are"),
        ("odconv-resnet", "published numbers beside ours"),
        ("odconv-resnet --rows resnet18 resnet18-4x --data folder:IMAGENET --workers 8", "train two rows"),
    ),
    "bench layers": (("--threads 1 --modes inference", ""), ("--against grouped --out results", "")),
    "bench models": (("--models torchvision:resnet18 --methods odconv --batches 1 8", ""),),
    "bench page": (("--results results --out benchmarks.md", ""),),
    "eval": (("runs/mine/odconv/seed-0/checkpoint.pt", ""),),
    "data": (("", "what there is"), ("cifar10", "fetch it"), ("folder:PHOTOS", "check a folder of your own")),
}


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``int | None`` is read as an int and shown as INT, not as ``{None}|INT``; likewise tuples of numbers."""
    if info.type_origin not in (types.UnionType, typing.Union):
        return None
    kinds = [kind for kind in typing.get_args(info.type) if kind is not type(None)]
    if len(kinds) != 1 or len(typing.get_args(info.type)) != 2:
        return None
    parts = typing.get_args(kinds[0]) or (kinds[0],)
    open_ended = parts[-1] is Ellipsis
    item = parts[0]
    if item not in KINDS or any(part not in (item, Ellipsis) for part in parts):
        return None
    one = kinds[0] is item
    names = f"[{KINDS[item]} ...]" if open_ended else " ".join([KINDS[item]] * len(parts))
    return PrimitiveConstructorSpec(
        nargs="*" if open_ended else len(parts),
        metavar=names,
        instance_from_str=lambda words: item(words[0]) if one else tuple(map(item, words)),
        is_instance=lambda value: value is None or isinstance(value, item if one else tuple),
        str_from_instance=lambda value: [str(part) for part in (value if isinstance(value, tuple) else (value,))],
    )


def examples(prog: str) -> str:
    """Commands to copy, a line each under a title, for the help of ``prog``; empty where there are none."""
    lines = [(f"{prog} {words}".rstrip(), what) for words, what in EXAMPLES.get(prog.removeprefix("convary "), ())]
    shown = [text for command, what in lines for text in (*([f"  # {what}"] if what else []), f"  {command}")]
    return "\n".join(["examples:", *shown]) if lines else ""
