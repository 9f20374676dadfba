# SPDX-License-Identifier: Apache-2.0
"""Weight excitation: static kernels that are reweighed while training, and ordinary ones afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convary.errors import ConfigError
from convary.models.attention import Comparator


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

    def put_into(self, model: nn.Module, upcycle: bool) -> None:
        """Parametrise the kernels.

        Raises:
            ConfigError: the network was to compute what it computed.
        """
        if upcycle:
            raise ConfigError("WE standardises kernels, so that no trained network comes out as it was; upcycle=False")
        for conv in [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]:
            channels = conv.in_channels // conv.groups
            if channels > 1 or conv.groups == 1:
                excitation = WeightExcitation(self, channels).to(conv.weight.device, conv.weight.dtype)
                parametrize.register_parametrization(conv, "weight", excitation)


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
        largest = 1.1 * W.detach().abs().max().clamp(min=torch.finfo(W.dtype).tiny)  # kernels of zeros stay so
        return (largest * torch.atanh(W / largest)).view_as(weight)


@torch.no_grad()
def fold_excitation(model: nn.Module) -> nn.Module:
    """The network with the kernels that weight excitation made, as ordinary parameters, in place; copies stay.

    Raises:
        ConfigError: a layer has other parametrizations besides.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            _fold(module)
    return model


def _fold(layer: Any) -> None:
    made = layer.parametrizations
    if not any(isinstance(one, WeightExcitation) for one in made.weight):
        return
    if list(made) != ["weight"]:
        raise ConfigError(f"{type(layer).__name__} has other parametrizations too; remove these first")
    # Not torch's remove_parametrizations: it changes the layer's class, which copies of the layer share.
    folded = nn.Parameter(layer.weight.detach().clone(), made.weight.original.requires_grad)
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    layer.weight = folded
