# SPDX-License-Identifier: Apache-2.0
"""Why a layer that was asked for can't be converted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from convary.methods import MethodConfig
from convary.nn import DynamicLayer, Site
from convary.nn.same import pads_like_tensorflow

_EXACT = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Refusals:
    """Decides layer by layer, by what it knows of the whole model.

    Attributes:
        config: The method.
        shared: Ids of the parameters that more than one module holds.
        aliases: All names of every module.
        modules: By name.
    """

    config: MethodConfig
    shared: set[int]
    aliases: dict[nn.Module, list[str]]
    modules: dict[str, nn.Module]

    def why(self, site: Site) -> str | None:
        """Why a selected layer can't be converted, or None."""
        module = site.module
        if isinstance(module, DynamicLayer):
            return "already dynamic"
        if type(module) not in _EXACT and not pads_like_tensorflow(module):
            base = type(module).__mro__[1].__name__
            return f"{type(module).__name__} derives from {base}; its own forward would be lost"
        if (method := _replaced(module)) is not None:
            return f"its {method} was replaced on the instance and would be lost; convert first, then replace it anew"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "it has hooks, which would be lost; remove them or hook the converted layer"
        if any(id(p) in self.shared for p in module.parameters(recurse=False)):
            return "it shares a parameter with another layer"
        if isinstance(self.modules.get(site.name.rpartition(".")[0]), nn.TransformerEncoderLayer):
            return (
                "nn.TransformerEncoderLayer takes the weights of its linear layers in inference and calls none of them"
            )
        if site.is_conv and self.config.block_router(1, device="meta") is not None:
            return self._no_shared_router(site) or self.config.refuses(module)
        return self.config.refuses(module)

    def _no_shared_router(self, site: Site) -> str | None:
        if site.block is None:
            return "it stands in no block whose router it could share; use router='layer' or name the block classes"
        block = self.modules[site.block]
        if isinstance(block, nn.Sequential | nn.ModuleList | nn.ModuleDict) or hasattr(block, "router"):
            return f"its block, a {type(block).__name__}, has no room for an attribute router; use router='layer'"
        if any(not name.startswith(f"{site.block}.") for name in self.aliases[site.module]):
            return "it is used in more than one block, which would have different routers; use router='layer'"
        return None


def refusals(model: nn.Module, config: MethodConfig) -> Refusals:
    """What decides about the layers of a model."""
    return Refusals(config, _shared_parameters(model), _aliases(model), dict(model.named_modules()))


def _replaced(module: nn.Module) -> str | None:
    """Name of a method that somebody put on this layer alone, such as another padding in ``_conv_forward``."""
    return next((name for name in vars(module) if callable(getattr(type(module), name, None))), None)


def _aliases(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All names of every module."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(name)
    return found


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds."""
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {key for key, count in holders.items() if count > 1}
