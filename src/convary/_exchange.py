# SPDX-License-Identifier: Apache-2.0
"""Carrying a conversion out: static layers exchanged for dynamic ones, with their routers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from convary.methods import MethodConfig
from convary.nn import DynamicLayer, Router, Site, freeze_routing, replace, share_router, sites


@dataclass(frozen=True)
class Exchange:
    """What is to be exchanged, and how.

    Attributes:
        config: The method.
        names: Of the layers.
        upcycle: Whether a layer starts as what the static one computes.
        noise: See ``plan``.
        blocks: What counts as a block.
    """

    config: MethodConfig
    names: Collection[str]
    upcycle: bool
    noise: float
    blocks: tuple[type[nn.Module], ...]

    def carry_out(self, model: nn.Module) -> nn.Module:
        """Exchange the layers, in place; returns the root, which may itself be one of them."""
        modules = dict(model.named_modules())
        routers = self._block_routers(model)
        places = list(sites(model, self.blocks))
        layers = {s.name: make_dynamic(s.module, self.config.at(s)) for s in places if s.name in self.names}
        self.config.join(places, layers)
        made: dict[nn.Module, nn.Module] = {}
        for site in places:
            if site.name in layers:
                made[site.module] = layer = layers[site.name]
                self._initialise(layer, site.module, routers.get(site.block))
        model = replace(model, made)
        frozen = frozen_blocks([site for site in places if site.name in layers])
        for block, router in routers.items():
            share_router(modules[block or ""], router)
            if block in frozen:
                freeze_routing(router)
        return model

    def _initialise(self, layer: Any, static: Any, router: Router | None) -> None:
        if self.upcycle and isinstance(layer, DynamicLayer):
            weight, bias = static.weight, static.bias
            layer.load_static(weight.detach(), None if bias is None else bias.detach(), self.noise, router)
        freeze_alike(layer, static)

    def _block_routers(self, model: nn.Module) -> dict[str | None, Router]:
        """One router for every block that holds converted convolutions, by the block's name; none unless asked for."""
        found: dict[str | None, Router] = {}
        inputs = block_inputs(model, self.blocks)
        for site in sites(model, self.blocks):
            if site.name in self.names and site.is_conv and site.block not in found:
                weight = site.module.weight
                factory = {"device": weight.device, "dtype": weight.dtype}
                router = self.config.block_router(inputs[site.block], **factory)
                if router is not None:
                    found[site.block] = router.train(site.module.training)
        return found


def make_dynamic(static: nn.Module, config: MethodConfig) -> nn.Module:
    """What ``config`` builds of a static layer, marked as converted, so that ``recipe`` finds it.

    Raises:
        ConfigError: the method has no dynamic form of the layer.
    """
    layer: Any = config.build(static)
    layer.converted = config
    return layer


def freeze_alike(layer: Any, static: Any) -> None:
    """A dynamic layer learns where the static one does: where its kernel is frozen, kernels and router are."""
    if not static.weight.requires_grad:  # a weight that layers share is frozen with any of them
        layer.requires_grad_(False)
        if getattr(layer, "router", None) is not None:
            freeze_routing(layer)
    if isinstance(layer, DynamicLayer) and layer.bias is not None:
        layer.bias.requires_grad_(static.bias.requires_grad)


def trains(site: Site) -> bool:
    """Whether the weight of a layer learns."""
    return site.module.weight.requires_grad


def frozen_blocks(converted: list[Site]) -> set[str | None]:
    """Blocks all of whose converted convolutions are frozen, so that a router that they share is too."""
    convolutions = [site for site in converted if site.is_conv]
    return {site.block for site in convolutions} - {site.block for site in convolutions if trains(site)}


def block_inputs(model: nn.Module, blocks: tuple[type[nn.Module], ...]) -> dict[str | None, int]:
    """Input channels of every block: those of its first convolution, converted or not."""
    found: dict[str | None, int] = {}
    for site in sites(model, blocks):
        if site.is_conv and not site.gate:
            found.setdefault(site.block, site.module.in_channels)
    return found
