# SPDX-License-Identifier: Apache-2.0
"""SE, CBAM and ECA: gates on features, at their published places. The layers are timm's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from convary.errors import ConfigError
from convary.extras import require
from convary.models.attention import Comparator
from convary.models.small import PlainNet


@dataclass(frozen=True, kw_only=True)
class Gate(Comparator):
    """Options of an attention that multiplies features by numbers from 0 to 1."""

    halvings: ClassVar[int] = 1  # how often a gate that starts at 1/2 halves what passes

    def gate(self, channels: int) -> nn.Module:
        """The module that reweighs features of so many channels."""
        raise TypeError(f"{type(self).__name__} must define gate()")

    def silence_(self, gate: Any) -> None:
        """Start a gate at 1/2 for every input, in place, once or as often as ``halvings`` says."""
        raise TypeError(f"{type(self).__name__} must define silence_()")

    def put_into(self, model: nn.Module, upcycle: bool) -> None:
        """Gates at every place; upcycled ones start at 1/2, and the weights next to them make up for it.

        Raises:
            ConfigError: there is no place, or the network has attentions of its own.
            MissingExtraError: timm is not installed.
        """
        require("convary.models.attend", "vision", "timm")
        found = list(_places(model))
        if not found:
            raise ConfigError(
                f"{type(model).__name__} has no place for {self.title}: no residual or inverted block of a ResNet or "
                f"MobileNetV2; put {self.title}'s gate(channels) in by hand"
            )
        for place in found:
            like = next(place.scaled.parameters())
            gate = self.gate(place.channels).to(like.device, like.dtype).train(model.training)
            if upcycle:
                self.silence_(gate)
                _scale(place.scaled, 2.0**self.halvings)
            inner = place.parent[int(place.name)] if place.name.isdigit() else getattr(place.parent, place.name)
            setattr(place.parent, place.name, nn.Sequential(inner, gate))


@dataclass(frozen=True, kw_only=True)
class SE(Gate):
    """Squeeze-and-excitation (Hu, Shen & Sun, CVPR 2018): a gate for every channel, from a perceptron of the means.

    Attributes:
        reduction: r; the hidden layer has C / r units, at least one, and biases.
    """

    name = "se"
    title = "SE"
    citation = "Hu et al., Squeeze-and-Excitation Networks, CVPR 2018"

    reduction: int = 16

    def gate(self, channels: int) -> nn.Module:
        """Timm's module, without its rounding of the hidden layer to eights."""
        from timm.layers.squeeze_excite import SEModule

        return SEModule(channels, rd_channels=max(1, channels // self.reduction))

    def silence_(self, gate: Any) -> None:
        """Zero the perceptron's last layer."""
        nn.init.zeros_(gate.fc2.weight)
        nn.init.zeros_(gate.fc2.bias)


@dataclass(frozen=True, kw_only=True)
class CBAM(Gate):
    """CBAM (Woo et al., ECCV 2018): SE of means and maxima, then a gate for every position.

    Attributes:
        reduction: r; the hidden layer has C / r units, at least one, and no biases.
    """

    name = "cbam"
    title = "CBAM"
    citation = "Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018"
    halvings = 2

    reduction: int = 16

    def gate(self, channels: int) -> nn.Module:
        """Timm's module."""
        from timm.layers.cbam import CbamModule

        return CbamModule(channels, rd_channels=max(1, channels // self.reduction))

    def silence_(self, gate: Any) -> None:
        """Zero the perceptron's last layer and the convolution over positions."""
        nn.init.zeros_(gate.channel.fc2.weight)
        nn.init.zeros_(gate.spatial.conv.conv.weight)


@dataclass(frozen=True, kw_only=True)
class ECA(Gate):
    """ECA (Wang et al., CVPR 2020): a gate for every channel, from the means of its neighbours.

    Attributes:
        kernel_size: Neighbours that are looked at; by default what the paper derives from the number of channels.
    """

    name = "eca"
    title = "ECA"
    citation = "Wang et al., ECA-Net: Efficient Channel Attention for Deep CNNs, CVPR 2020"

    kernel_size: int | None = None

    def gate(self, channels: int) -> nn.Module:
        """Timm's module."""
        from timm.layers.eca import EcaModule

        if self.kernel_size is None:
            return EcaModule(channels)
        return EcaModule(kernel_size=self.kernel_size)

    def silence_(self, gate: Any) -> None:
        """Zero its convolution."""
        nn.init.zeros_(gate.conv.weight)


class _Place(NamedTuple):
    """Where a gate stands: after the child ``name`` of ``parent``; ``scaled`` makes up for a gate that halves."""

    parent: Any
    name: str
    channels: int
    scaled: nn.Module


def _places(model: nn.Module) -> Iterator[_Place]:
    plain = []
    blocks = 0
    for module in model.modules():
        if not isinstance(getattr(module, "se", None) or nn.Identity(), nn.Identity):
            raise ConfigError(f"{type(model).__name__} has attentions of its own, in {type(module).__name__}.se")
        place = _in_residual(module) or _in_inverted(module)
        if place is not None:
            blocks += 1
            yield place
        elif isinstance(model, PlainNet) and isinstance(module, Conv2dNormActivation):
            norm: Any = module[1]
            plain.append(_Place(module, "1", norm.num_features, norm))
    if not blocks:
        yield from plain[1:]


def _in_residual(block: Any) -> _Place | None:
    if type(block).__name__ not in ("BasicBlock", "Bottleneck") or not hasattr(block, "bn2"):
        return None
    name = "bn3" if hasattr(block, "bn3") else "bn2"
    norm = getattr(block, name)
    return _Place(block, name, norm.num_features, norm)


def _in_inverted(block: Any) -> _Place | None:
    """After the depthwise convolution's activation; the pointwise convolution that follows is scaled."""
    if type(block).__name__ not in ("InvertedResidual", "DepthwiseSeparableConv"):
        return None
    if hasattr(block, "conv_dw"):  # timm's
        last = getattr(block, "conv_pwl", None) or block.conv_pw
        return _Place(block, "bn2" if hasattr(block, "conv_pwl") else "bn1", last.in_channels, last)
    inner: list[Any] = list(getattr(block, "conv", []))
    for i, layer in enumerate(inner[:-1]):
        conv = layer[0] if isinstance(layer, Conv2dNormActivation) else None
        if isinstance(conv, nn.Conv2d) and conv.groups > 1:
            return _Place(block.conv, str(i), conv.out_channels, inner[i + 1])
    return None


@torch.no_grad()
def _scale(module: Any, factor: float) -> None:
    """Multiply what a norm or a convolution gives for the same input; powers of two are exact."""
    module.weight.mul_(factor)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        module.bias.mul_(factor)
