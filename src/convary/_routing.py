# SPDX-License-Identifier: Apache-2.0
"""What a dynamic model routes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convary.batches import input_like, taken
from convary.nn import DynamicLayer, RoutedBlock, Router, evaluating, hooked, routed_layers
from convary.ops import Coefficients


@torch.no_grad()
def routing(model: nn.Module, x: Tensor | Sequence[int]) -> dict[str, Coefficients]:
    """The coefficients that every dynamic layer uses on x, from one forward pass in eval mode.

    Args:
        model: A model with dynamic layers.
        x: The model's input, (B, ...), or its shape.

    Returns:
        Coefficients by layer name, in the order of ``named_modules``. A layer that runs several times shows its last.

    Raises:
        ShapeError, DtypeError: the model can't take x.

    Examples:
        >>> from convary.methods import CondConv2d
        >>> coefficients = routing(nn.Sequential(CondConv2d(3, 8, 3, experts=2)), torch.randn(5, 3, 8, 8))
        >>> coefficients["0"].kernel.shape
        torch.Size([5, 2])
    """
    users, x = routed_by(model), input_like(model, x)
    found: dict[str, Coefficients] = {}

    def record(router: nn.Module, args: tuple, coeffs: Coefficients) -> None:
        found.update(dict.fromkeys(users[router], coeffs))  # type: ignore[index]

    with evaluating(model), hooked(router.register_forward_hook(record) for router in users), taken(model, x):
        model(x)
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def routers(model: nn.Module) -> dict[str, Router]:
    """The router of every dynamic layer by the layer's name; layers of a block may share one."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, Router] = {}
    for module, name in names.items():
        if isinstance(module, DynamicLayer) and module.router is not None:
            found[name] = module.router
        elif isinstance(module, RoutedBlock):
            found |= {names[layer]: module.router for layer in routed_layers(module)}  # type: ignore[arg-type]
    return found


def routed_by(model: nn.Module) -> dict[Router, list[str]]:
    """Every router of a model, with the names of the layers that use its coefficients."""
    users: dict[Router, list[str]] = {}
    for name, router in routers(model).items():
        users.setdefault(router, []).append(name)
    return users
