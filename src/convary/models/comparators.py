# SPDX-License-Identifier: Apache-2.0
"""What dynamic convolutions are compared with in the papers' tables: SE, CBAM, ECA and weight excitation.

The first three reweigh features; the layers are timm's. The fourth reweighs static kernels while training and costs
nothing afterwards. ``attend`` puts one into a network; ``convary compare --methods static se odconv`` trains them.

>>> from convary.models import build
>>> model = attend(build("resnet20", 10), SE())
>>> type(model.layer1[0].bn2[1]).__name__
'SEModule'
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import Conv2dNormActivation

from convary.errors import ConfigError
from convary.extras import require
from convary.methods import MethodConfig
from convary.models.small import PlainNet


@dataclass(frozen=True, kw_only=True)
class Comparator(MethodConfig):
    """Options of an attention that is compared with the methods; it makes no kernel depend on the input."""

    halvings: ClassVar[int] = 1  # how often a gate that starts at 1/2 halves what passes

    def refuses(self, module: nn.Module) -> str | None:
        """It takes no convolution's place."""
        return f"{self.title} takes no layer's place; put it into a network with convary.models.attend(model, config)"

    def gate(self, channels: int) -> nn.Module:
        """The module that reweighs features of so many channels."""
        raise TypeError(f"{type(self).__name__} must define gate()")

    def silence_(self, gate: Any) -> None:
        """Start a gate at 1/2 for every input, in place, once or as often as ``halvings`` says."""
        raise TypeError(f"{type(self).__name__} must define silence_()")


@dataclass(frozen=True, kw_only=True)
class SE(Comparator):
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
class CBAM(Comparator):
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
class ECA(Comparator):
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


@dataclass(frozen=True, kw_only=True)
class WE(Comparator):
    """Weight excitation (Quader et al., ECCV 2020): static kernels that are reweighed while training.

    Every convolution but depthwise ones. :func:`fold_excitation` makes them ordinary ones again, at no cost.

    Attributes:
        standardise: Take the mean and the deviation out of every filter first, as the authors' layer does.
        reduction: The hidden layer of the location excitation has C / G / reduction units, at least one.
    """

    name = "we"
    title = "WE"
    citation = "Quader et al., Weight Excitation: Built-in Attention Mechanisms in CNNs, ECCV 2020"
    upcycles = False

    standardise: bool = True
    reduction: int = 16


class WeightExcitation(nn.Module):
    """The reweighed kernel of a static one; a parametrization of torch.

    Location: a gate for every pair of channels, from the mean over its taps through a perceptron that all filters
    share. Magnitude: ``M atanh(W / M)`` with ``M = 1.1 max|W|``, which lets large weights grow further; M is taken as a
    constant by the gradient.

    Args:
        config: Options.
        channels: C / G of the kernel.
    """

    def __init__(self, config: WE, channels: int):
        super().__init__()
        hidden = max(1, channels // config.reduction)
        self.standardise = config.standardise
        self.location = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, weight: Tensor) -> Tensor:
        """(O, C/G, *k) to the same shape."""
        flat = weight.flatten(1)
        if self.standardise and flat.shape[1] > 1:
            flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        W = flat.view_as(weight).flatten(2)
        W = W * self.location(W.mean(2)).unsqueeze(2)
        largest = 1.1 * W.detach().abs().max()
        return (largest * torch.atanh(W / largest)).view_as(weight)


class _Place(NamedTuple):
    """Where a gate stands: after the child ``name`` of ``parent``; ``scaled`` makes up for a gate that halves."""

    parent: Any
    name: str
    channels: int
    scaled: nn.Module


def attend(model: nn.Module, config: Comparator, *, upcycle: bool = False, inplace: bool = False) -> nn.Module:
    """A network with an attention at its published places.

    In residual blocks (torchvision's and timm's ``BasicBlock`` and ``Bottleneck``) after the last norm, before the
    addition; in inverted ones on the expanded features after the depthwise convolution, as MobileNetV3 has it; in
    networks of plain convolutions (``convnet_nano``) after every norm but the first. Weight excitation is in every
    convolution that is not depthwise.

    Args:
        model: A static network.
        config: ``SE()``, ``CBAM()``, ``ECA()`` or ``WE()``.
        upcycle: Start with gates of 1/2 for every input, and weights next to them that make up for it: the network
            computes what it computed. Otherwise gates start as timm starts them.
        inplace: Change ``model`` itself.

    Raises:
        ConfigError: there is no such place in the network; or weight excitation was to start exactly.
        MissingExtraError: timm is not installed.

    >>> from convary.models import build
    >>> static = build("mobilenet_v2_tiny", 10).eval()
    >>> x = torch.randn(2, 3, 28, 28)
    >>> torch.equal(attend(static, SE(), upcycle=True)(x), static(x))
    True
    """
    model = model if inplace else copy.deepcopy(model)
    if isinstance(config, WE):
        if upcycle:
            raise ConfigError("WE standardises kernels, so that no trained network comes out as it was; upcycle=False")
        return _excite(model, config)
    require("convary.models.attend", "vision", "timm")
    found = list(_places(model))
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no place for {config.title}: no residual or inverted block of a "
            f"ResNet or MobileNetV2; put {config.title}'s gate(channels) in by hand"
        )
    for place in found:
        like = next(place.scaled.parameters())
        gate = config.gate(place.channels).to(like.device, like.dtype).train(model.training)
        if upcycle:
            config.silence_(gate)
            _scale(place.scaled, 2.0**config.halvings)
        inner = place.parent[int(place.name)] if place.name.isdigit() else getattr(place.parent, place.name)
        setattr(place.parent, place.name, nn.Sequential(inner, gate))
    return model


def fold_excitation(model: nn.Module) -> nn.Module:
    """The network with the kernels that weight excitation made, as ordinary parameters, in place."""
    for module in list(model.modules()):
        if any(isinstance(made, WeightExcitation) for made in _excitations(module)):
            parametrize.remove_parametrizations(module, "weight")
    return model


def _excitations(module: nn.Module) -> Iterator[nn.Module]:
    if parametrize.is_parametrized(module, "weight"):
        yield from module.parametrizations["weight"]  # type: ignore[index]


def _excite(model: nn.Module, config: WE) -> nn.Module:
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    for conv in convolutions:
        channels = conv.in_channels // conv.groups
        if channels > 1 or conv.groups == 1:
            excitation = WeightExcitation(config, channels).to(conv.weight.device, conv.weight.dtype)
            parametrize.register_parametrization(conv, "weight", excitation)
    return model


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


COMPARATORS: tuple[type[Comparator], ...] = (SE, CBAM, ECA, WE)


def comparator_from_json(text: str) -> Comparator | None:
    """The config that ``to_json`` wrote; None where it is that of a method."""
    options = json.loads(text)
    name, _ = options.pop("method"), options.pop("version")
    known = {config.name: config for config in COMPARATORS}
    return known[name].from_options(options) if name in known else None
