# SPDX-License-Identifier: Apache-2.0
"""Dropout before the classifier, and of whole residual branches, as trainings that were published ask for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth, stochastic_depth

from convary.errors import ConfigError
from convary.nn import DynamicLayer, Router


def drop_features(model: nn.Module, p: float) -> None:
    """Drop features before the classifier while training; a network's own dropout there gets the probability.

    The network's parameters and their names stay as they are.

    Args:
        model: Any classifier.
        p: Probability of dropping a feature.

    Raises:
        ConfigError: the network has no linear layer.
    """
    name, classifier = _classifier(model)
    parent, _, _ = name.rpartition(".")
    before = _preceding(model.get_submodule(parent), classifier)
    if isinstance(before, nn.Dropout):
        before.p = p
        return

    def drop(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(args[0], p, module.training), *args[1:])

    classifier.register_forward_pre_hook(drop)


def drop_branches(model: nn.Module, p: float) -> None:
    """Leave out residual branches for some images while training: the first never, the last with probability ``p``.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, with the probability rising linearly.

    Args:
        model: A ResNet of torchvision, any network with its ``StochasticDepth``, such as ConvNeXt, or one of timm
            whose blocks have a ``drop_path``, such as EfficientNet.
        p: Probability of leaving out the last branch.

    Raises:
        ConfigError: the network has no such branches.
    """
    kinds = (StochasticDepth, BasicBlock, Bottleneck)
    found = [module for module in model.modules() if isinstance(module, kinds)]
    paths = [module for module in model.modules() if isinstance(getattr(module, "drop_path", None), nn.Module)]
    if not found and paths:
        for place, block in enumerate(paths):
            block.drop_path = StochasticDepth(p * place / len(paths), "row")  # of EfficientNet's code: never p itself
        return
    if not found and p:
        raise ConfigError(f"{type(model).__name__} has no residual branch known here; leave stochastic_depth out")
    for module, rate in zip(found, torch.linspace(0, p, len(found)).tolist(), strict=True):
        if isinstance(module, StochasticDepth):
            module.p = rate
        else:
            _drop_output(module.bn2 if isinstance(module, BasicBlock) else module.bn3, rate)


def _drop_output(norm: nn.Module, p: float) -> None:
    def drop(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return stochastic_depth(output, p, "row", module.training)

    norm.register_forward_hook(drop)


def _preceding(parent: nn.Module, module: nn.Module) -> nn.Module | None:
    if not isinstance(parent, nn.Sequential):
        return None
    children = list(parent)
    index = children.index(module)
    return children[index - 1] if index else None


def _classifier(model: nn.Module) -> tuple[str, nn.Module]:
    """The last linear layer, static or dynamic, and its name."""
    inside = {m for outer in model.modules() if isinstance(outer, DynamicLayer | Router) for m in outer.modules()}
    inside -= {m for m in model.modules() if isinstance(m, DynamicLayer)}
    found = [
        (name, module)
        for name, module in model.named_modules()
        if module not in inside
        and (isinstance(module, nn.Linear) or (isinstance(module, DynamicLayer) and hasattr(module, "in_features")))
    ]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layer to drop features before; leave dropout out")
    return found[-1]
