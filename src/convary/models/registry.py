# SPDX-License-Identifier: Apache-2.0
"""Networks by name, each ready for a data set's channels, classes and image size."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from convary.errors import CheckpointError, ConfigError, nearest
from convary.extras import require
from convary.models.small import ConvNetNano, MobileNetV2Tiny, OneConv, ResNet20
from convary.models.width import timm_at, torchvision_at

SMALL: dict[str, Callable[[int, int, float], nn.Module]] = {
    "mobilenet_v2_tiny": MobileNetV2Tiny,
    "convnet_nano": ConvNetNano,
    "resnet20": ResNet20,
    "one_conv": OneConv,
}
NAMES = (*SMALL, "torchvision:NAME", "timm:NAME")


def build(
    name: str, num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 32), seed: int = 0
) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: One of :data:`NAMES`; ``torchvision:resnet18`` and ``timm:mobilenetv3_small_050`` name any classification
            network of these libraries. ``convnet_nano@1.25`` is 1.25 times as wide; so are all small networks,
            torchvision's MobileNets and ShuffleNets, and timm's ResNets and MobileNetV1.
        num_classes: Rows of the classifier.
        in_channels: C of the images; a first convolution made for another number is replaced.
        image_size: (H, W) of the images.
        seed: Decides the initial weights; the global random state stays as it was.

    Raises:
        ConfigError: an unknown name, a width where there is none, or a network that does not take such images.
    """
    plain, width = split_width(name)
    source, _, inner = plain.partition(":")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if plain in SMALL:
            model = SMALL[plain](num_classes, in_channels, width)
        elif source == "torchvision" and inner:
            model = _torchvision(inner, num_classes, in_channels, image_size, width)
        elif source == "timm" and inner:
            check_timm(inner)
            model = timm_at(inner, width, pretrained=False, num_classes=num_classes, in_chans=in_channels)
        else:
            raise ConfigError(f"unknown model {name!r}{_where_it_is(name)}; known: {', '.join(NAMES)}")
    _check(model, name, num_classes, (in_channels, *image_size))
    return model


def split_width(name: str) -> tuple[str, float]:
    """A network's name and its width.

    >>> split_width("convnet_nano@1.25"), split_width("resnet20")
    (('convnet_nano', 1.25), ('resnet20', 1.0))

    Raises:
        ConfigError: what stands after the @ is no width.
    """
    plain, at, text = name.partition("@")
    try:
        width = float(text) if at else 1.0
    except ValueError:
        width = math.nan
    if not 0 < width < math.inf:
        raise ConfigError(f"the width of {name!r} is no number above 0; write it as in {plain}@1.25")
    return plain, width


def create(name: str, *, pretrained: bool = False) -> nn.Module:
    """A network with the number of classes that its authors gave it.

    Args:
        name: ``torchvision:NAME`` or ``timm:NAME``; some also as ``torchvision:mobilenet_v2@0.5``, half as wide.
        pretrained: Whether to download the weights that the library names as its default.

    Raises:
        ConfigError: an unknown name, or a width where there is none.
        CheckpointError: the weights can't be downloaded, or there are none.
    """
    plain, width = split_width(name)
    source, _, inner = plain.partition(":")
    try:
        if source == "torchvision" and inner:
            _check_torchvision(inner)
            options: dict[str, object] = {"weights": "DEFAULT"} if pretrained else {"weights": None}
            if inner in ("googlenet", "inception_v3") and not pretrained:
                options["init_weights"] = True
            if inner == "googlenet" and not pretrained:
                options["aux_logits"] = False  # as it is with weights
            return torchvision_at(inner, width, **options)
        if source == "timm" and inner:
            check_timm(inner)
            return timm_at(inner, width, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CheckpointError(
            f"the weights of {name} can't be downloaded: {reason}; {_by_hand(source, inner)}, or take untrained ones "
            "(--weights random)"
        ) from error
    raise ConfigError(f"want torchvision:NAME or timm:NAME; got {name!r}{_where_it_is(name)}")


def _by_hand(source: str, name: str) -> str:
    """Which file brings a library's weights, and where it belongs."""
    if source == "torchvision":
        url = str(torchvision.models.get_model_weights(name)["DEFAULT"].url)  # type: ignore[attr-defined]
        cache = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        return f"get {url} elsewhere and save it as {cache}, or give its path: --weights FILE"
    found = importlib.import_module("timm").get_pretrained_cfg(name)
    if found is None or not (found.hf_hub_id or found.url):
        return "give a file of your own: --weights FILE"
    what = f"model.safetensors of {found.hf_hub_id} on Hugging Face" if found.hf_hub_id else found.url
    return f"get {what} elsewhere and give its path: --weights FILE"


def _where_it_is(name: str) -> str:
    """A suggestion to append to an error message: the library that has a network of that name, or the nearest name."""
    if name in torchvision.models.list_models(module=torchvision.models):
        return f"; torchvision has it: torchvision:{name}"
    if importlib.util.find_spec("timm") is not None and importlib.import_module("timm").is_model(name):
        return f"; timm has it: timm:{name}"
    if split_width(name)[0] in NAMES:
        return f"; nobody trained {name}: convary plan and convary compare take it"
    return nearest(name, NAMES)


def _check_torchvision(name: str) -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"torchvision has no classification model {name!r}{nearest(name, known)}")


def check_timm(name: str) -> Any:
    """The library, which must have a network of that name."""
    require(f"the model timm:{name}", "vision", "timm")
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    return timm


def _torchvision(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], width: float) -> nn.Module:
    _check_torchvision(name)
    options: dict[str, object] = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = image_size[0]
    model = torchvision_at(name, width, **options)
    if in_channels != 3:
        _replace_first(model, in_channels)
    return model


def _replace_first(model: nn.Module, in_channels: int) -> None:
    """Exchange the first convolution for one that takes ``in_channels``, its weights Kaiming-normal."""
    name, conv = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    replacement = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
    setattr(model.get_submodule(parent), leaf, replacement)


@torch.no_grad()
def _check(model: nn.Module, name: str, num_classes: int, shape: tuple[int, int, int]) -> None:
    """Run one blank image: a network may want larger images than these, or give no plain scores."""
    try:
        scores = model.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{name} does not take images of shape {shape}: {reason}; choose another model") from error
    model.train()
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (1, num_classes):
        raise ConfigError(f"{name} does not give one row of {num_classes} scores per image; choose a classifier")
