# SPDX-License-Identifier: Apache-2.0
"""Parameter groups for an optimizer: what weight decay shrinks, what it must leave alone, how fast banks learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

from torch import nn

from convary.errors import ConfigError, nearest
from convary.nn import DynamicLayer, Router
from convary.nn.site import is_gate

Optimizer = Literal["adamw", "sgd"]
KINDS = ("bank", "router", "gate", "rest")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(
    model: nn.Module,
    weight_decay: float = 1e-4,
    *,
    lr: float | None = None,
    optimizer: Optimizer = "adamw",
) -> list[dict[str, Any]]:
    """The trainable parameters of a model in groups, with and without weight decay, and with ``lr`` by what they are.

    Out of decay are routers, squeeze-and-excitation gates, norms, biases (also the (K, O) bank of biases), every
    parameter of one axis or none, and what the model's own ``no_weight_decay()`` names, as timm's models have it.
    Decay pulls a router's logits to zero, which is uniform mixing, and so works against what it is there to learn.

    With ``lr``, banks, routers, gates and the rest are groups of their own with a learning rate each, so that the
    kernels of an upcycled network learn as fast as those of the static one that it was made of. Its K kernels
    start alike, get the same gradient and are mixed by 1/K each (``scale`` sees to that), so

    - Adam and AdamW move each of them by lr, and the kernel by the sum of the coefficients times that: lr. Their banks
      get ``lr``.
    - SGD moves each of them by lr times 1/K of the kernel's gradient, and the kernel by the sum of the squared
      coefficients times lr: by 1/K of what it should. Its banks get ``K lr``, and ``weight_decay / K``, which that
      rate multiplies too.

    Kernels that were initialised one by one, for training from scratch, add up otherwise. Relative to the kernel that
    they make, which a normalisation behind it makes the measure, SGD then moves a bank as a static layer at ``lr``,
    and Adam sqrt(K) times as far: train them with groups without ``lr``, as published.

    Args:
        model: Any model, static or dynamic.
        weight_decay: Decay of what has any; 0 for the others.
        lr: Learning rate of everything but the banks under SGD. Schedulers of torch and timm scale every group's own;
            ``OneCycleLR`` wants ``[group["lr"] for group in groups]``.
        optimizer: What the groups are for, where ``lr`` is given: "adamw" (any Adam) or "sgd".

    Returns:
        For any of torch's optimizers: two groups, each a dict of "params" and "weight_decay"; with ``lr`` as many as
        there are sorts of parameters, with "name" and "lr" too. An empty one is left out. Their order follows from the
        model's structure alone, so that the optimizer's state dict fits after ``reconvert``.

    Raises:
        ConfigError: weight_decay is negative or not finite, lr is no finite number above 0, an unknown optimizer, or
            nothing in the model can be trained.

    >>> from torch import optim
    >>> layer = nn.Conv2d(3, 4, 1)
    >>> [len(group["params"]) for group in optim.SGD(param_groups(layer, 0.01), lr=0.1).param_groups]
    [1, 1]
    >>> import convary as cv
    >>> net = cv.convert(nn.Sequential(layer), cv.CondConv(experts=8), cv.where.all())
    >>> [(group["name"], group["lr"]) for group in param_groups(net, lr=0.1, optimizer="sgd")]
    [('bank x8', 0.8), ('bank x8, no decay', 0.8), ('router, no decay', 0.1)]
    """
    _check(weight_decay, lr, optimizer)
    spared = set(_spared(model))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ConfigError(f"{type(model).__name__} has no parameter that requires a gradient; unfreeze some first")
    if lr is None:
        groups = [
            {"params": [p for name, p in named.items() if name not in spared], "weight_decay": weight_decay},
            {"params": [p for name, p in named.items() if name in spared], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
    return _by_sort(_sorts(model), named, spared, weight_decay, lr, optimizer)


def _by_sort(
    sorts: dict[str, tuple[str, int]],
    named: dict[str, nn.Parameter],
    spared: set[str],
    weight_decay: float,
    lr: float,
    optimizer: Optimizer,
) -> list[dict[str, Any]]:
    """A group for each sort of parameters, number of kernels and decay."""
    found: dict[tuple[int, int, bool], list[nn.Parameter]] = {}
    for name, p in named.items():
        kind, K = sorts.get(name, ("rest", 1))
        found.setdefault((KINDS.index(kind), K, name in spared), []).append(p)
    return [
        {
            "params": found[kind, K, free],
            "name": f"{KINDS[kind]}{f' x{K}' * (K > 1)}{', no decay' * free}",
            "lr": lr * (K if optimizer == "sgd" else 1),
            "weight_decay": 0.0 if free else weight_decay / (K if optimizer == "sgd" else 1),
        }
        for kind, K, free in sorted(found)
    ]


def router_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of a model's routers: what other people's optimizers must leave out of decay."""
    routers = (f"{name}." for name, module in model.named_modules() if isinstance(module, Router))
    inside = tuple(dict.fromkeys(routers))
    return [name for name, _ in model.named_parameters() if name.startswith(inside)]


def _check(weight_decay: float, lr: float | None, optimizer: str) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"weight_decay must be a finite number of at least 0; got {weight_decay}")
    if lr is not None and not 0 < lr < math.inf:
        raise ConfigError(f"lr must be a finite number above 0, or None for the optimizer's own; got {lr}")
    if optimizer not in (known := get_args(Optimizer)):
        raise ConfigError(f"optimizer must be one of {', '.join(known)}; got {optimizer!r}{nearest(optimizer, known)}")


def _sorts(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Names of parameters that are not among the rest: their kind, and K of a bank's, 1 of others."""
    found: dict[str, tuple[str, int]] = {}
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, DynamicLayer):
            own = dict(module.named_parameters(recurse=False))
            banks = [name for name, p in own.items() if name == "weight" or (name == "bias" and p.ndim == 2)]
            found |= {f"{start}{name}": ("bank", module.num_alike) for name in banks}
        elif isinstance(module, Router) or is_gate(module):
            kind = "router" if isinstance(module, Router) else "gate"
            found |= {f"{start}{name}": (kind, 1) for name, _ in module.named_parameters()}
    return found


def _spared(model: nn.Module) -> Iterator[str]:
    """Names of the parameters without decay."""
    yield from getattr(model, "no_weight_decay", list)()
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, (Router, *_NORMS)) or is_gate(module):
            yield from (f"{start}{name}" for name, _ in module.named_parameters())
        yield from (f"{start}{n}" for n, p in module.named_parameters(recurse=False) if n == "bias" or p.ndim < 2)
