# SPDX-License-Identifier: Apache-2.0
"""Parameter groups for an optimizer: what weight decay shrinks, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from convary.errors import ConfigError
from convary.nn import Router
from convary.nn.site import is_gate

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(model: nn.Module, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
    """The trainable parameters of a model in two groups, with and without weight decay.

    Out of decay are routers, squeeze-and-excitation gates, norms, biases (also the (K, O) bank of biases), every
    parameter of one axis or none, and what the model's own ``no_weight_decay()`` names, as timm's models have it.
    Decay pulls a router's logits to zero, which is uniform mixing, and so works against what it is there to learn.

    Args:
        model: Any model, static or dynamic.
        weight_decay: Decay of the first group; the second has 0.

    Returns:
        Two groups for any of torch's optimizers, each a dict of "params" and "weight_decay". An empty one is left out.

    Raises:
        ConfigError: weight_decay is negative or not finite, or nothing in the model can be trained.

    >>> from torch import optim
    >>> layer = nn.Conv2d(3, 4, 1)
    >>> [len(group["params"]) for group in optim.SGD(param_groups(layer, 0.01), lr=0.1).param_groups]
    [1, 1]
    """
    if not 0 <= weight_decay < float("inf"):
        raise ConfigError(f"weight_decay must be a finite number of at least 0; got {weight_decay}")
    spared = set(_spared(model))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError(f"{type(model).__name__} has no parameter that requires a gradient; unfreeze some first")
    groups = [
        {"params": [p for name, p in named if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def router_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of a model's routers: what other people's optimizers must leave out of decay."""
    routers = (f"{name}." for name, module in model.named_modules() if isinstance(module, Router))
    inside = tuple(dict.fromkeys(routers))
    return [name for name, _ in model.named_parameters() if name.startswith(inside)]


def _spared(model: nn.Module) -> Iterator[str]:
    """Names of the parameters without decay."""
    yield from getattr(model, "no_weight_decay", list)()
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, (Router, *_NORMS)) or is_gate(module):
            yield from (f"{start}{name}" for name, _ in module.named_parameters())
        yield from (f"{start}{n}" for n, p in module.named_parameters(recurse=False) if n == "bias" or p.ndim < 2)
