# SPDX-License-Identifier: Apache-2.0
"""The rows of a plan: a layer as it is, and what it becomes, built on the meta device where it costs nothing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convary.batches import taken
from convary.errors import ConfigError
from convary.methods import MethodConfig
from convary.nn import DynamicLayer, Router, Site, evaluating, hooked, sites
from convary.nn.modes import shapes_only
from convary.nn.site import unsited


@dataclass(frozen=True)
class PlanRow:
    """One layer of a plan.

    Attributes:
        name: Qualified name of the layer.
        before: What it is.
        after: What it becomes, or None where it stays.
        reason: Why it stays, or None.
        params_before: Parameters now.
        params_after: Parameters after the conversion.
        macs_before: Multiply-adds per sample now; None without an example input.
        macs_after: Multiply-adds per sample after, routing and assembly included.
        note: Anything else to know.
    """

    name: str
    before: str
    after: str | None
    reason: str | None
    params_before: int
    params_after: int
    macs_before: int | None = None
    macs_after: int | None = None
    note: str = ""


def layers_on_meta(places: list[Site], config: MethodConfig, reasons: dict[str, str | None]) -> dict[str, nn.Module]:
    """What the layers without a reason to stay become; where one can't be built, the reason is noted."""
    layers: dict[str, nn.Module] = {}
    with shapes_only():
        for site in places:
            lazy = any(nn.parameter.is_lazy(p) for p in site.module.parameters())
            if reasons[site.name] is None and not lazy:
                try:
                    layers[site.name] = config.at(site).build(_on_meta(site.module))
                except ConfigError as error:
                    reasons[site.name] = str(error)
        config.join(places, layers)
    return layers


def row_of(
    site: Site,
    layer: Any,
    reason: str | None,
    positions: int | None,
    router: Router | None,
    counted: dict[nn.Parameter, str],
) -> PlanRow:
    """The row of a layer.

    Args:
        site: The layer as it is.
        layer: What it becomes, on the meta device.
        reason: Why it stays, or None.
        positions: Of its output, per sample; None where no example was given.
        router: The block's router, where this is the block's first layer.
        counted: Parameters that rows before this one have, by the layer's name; gets this layer's.
    """
    if any(nn.parameter.is_lazy(p) for p in site.module.parameters()):
        return PlanRow(site.name, type(site.module).__name__, None, reason or "it has no sizes yet", 0, 0)
    before = sum(p.numel() for p in site.module.parameters())
    macs = None if positions is None else site.module.weight.numel() * positions
    if reason is not None:
        return PlanRow(site.name, _describe(site.module), None, reason, before, before, macs, macs)
    note = f"router shared in {site.block}" if site.is_conv and getattr(layer, "router", layer) is None else ""
    shared = next((counted[p] for p in layer.parameters() if p in counted), None)
    if shared is not None:
        note = f"weights shared with {shared}"
    after = sum(p.numel() for p in layer.parameters() if p not in counted)
    counted.update(dict.fromkeys((p for p in layer.parameters() if p not in counted), site.name))
    after_macs = None if positions is None else sum(layer.macs(positions).values())
    if router is not None:
        after += sum(p.numel() for p in router.parameters())
        after_macs = None if after_macs is None else after_macs + router.macs()
    return PlanRow(site.name, _describe(site.module), _describe(layer), None, before, after, macs, after_macs, note)


def _on_meta(module: nn.Module) -> nn.Module:
    """The same layer without data: building from it costs nothing."""
    twin = copy.copy(module)
    twin._parameters = {
        name: None if p is None else nn.Parameter(p.detach().to("meta"), requires_grad=False)
        for name, p in module._parameters.items()
    }
    return twin


def _describe(module: Any) -> str:
    if isinstance(module, nn.Bilinear):
        sizes = f"{module.in1_features}, {module.in2_features}->{module.out_features}"
    elif isinstance(module, nn.Linear) or not hasattr(module, "kernel_size"):
        sizes = f"{module.in_features}->{module.out_features}"
    else:
        groups = f"/{module.groups}" if getattr(module, "groups", 1) != 1 else ""
        kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,)
        sizes = f"{module.in_channels}->{module.out_channels}{groups} {'x'.join(map(str, kernel))}"
    return f"{type(module).__name__} {sizes}{f' {module.label}' if isinstance(module, DynamicLayer) else ''}".rstrip()


def positions_of(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Output positions per sample of every layer, from one forward pass in eval mode that leaves no trace."""
    names: dict[Any, str] = {site.module: site.name for site in sites(model)}
    found: dict[str, int] = {}

    def record(module: nn.Module, args: tuple, out: Tensor) -> None:
        per_sample = out[0].numel() if out.shape[0] else 0
        channels = out.shape[-1] if isinstance(module, nn.Linear) else out.shape[1]
        found[names[module]] = found.get(names[module], 0) + per_sample // channels

    hooks = hooked(module.register_forward_hook(record) for module in names)
    with evaluating(model), torch.no_grad(), hooks, taken(model, example):
        model(example)
    return found


def with_unsited(model: nn.Module, rows: list[PlanRow]) -> list[PlanRow]:
    """The rows, and one for every layer like a convolution that no selector sees, in registration order."""
    for name, module, reason in unsited(model):
        lazy = any(nn.parameter.is_lazy(p) for p in module.parameters())
        size = 0 if lazy else sum(p.numel() for p in module.parameters())
        named = type(module).__name__ if lazy else _describe(module)
        rows.append(PlanRow(name, named, None, reason, size, size))
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(rows, key=lambda row: order[row.name])


def cells(row: PlanRow) -> tuple[str, str, str, str, str]:
    """What a printed plan has for a row."""
    change = f"{row.before} -> {row.after}" if row.after else row.before
    params = f"{row.params_before:,}" + (f" -> {row.params_after:,}" if row.after else "")
    if row.macs_before is None:
        macs = "-"
    else:
        macs = f"{row.macs_before:,}" + (f" -> {row.macs_after:,}" if row.after else "")
    return row.name or "(model)", change, params, macs, row.reason or row.note


def folded_cells(rows: Iterable[PlanRow]) -> list[tuple[str, str, str, str, str]]:
    """The cells of all rows; layers that differ in their name alone share one, where the first of them stands."""
    names: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        name, *rest = cells(row)
        names.setdefault(tuple(rest), []).append(name)
    return [(_together(found), *rest) for rest, found in names.items()]  # type: ignore[misc]


def _together(names: list[str]) -> str:
    """What several layers are called: what their names begin with, and how many they are."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    shared = list(itertools.takewhile(lambda part: len(set(part)) == 1, zip(*parts, strict=False)))
    return f"{'.'.join([*(part[0] for part in shared), '*'])} ({len(names)} layers)"
