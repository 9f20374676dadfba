# SPDX-License-Identifier: Apache-2.0
"""Converting a model: look at the plan, then apply it."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.methods import CondConv, MethodConfig
from convary.nn import DynamicConv, DynamicLayer, Site, evaluating, neutral_gain, share_router, sites
from convary.where import Selector, paper

NOISE = 0.1
_EXACT = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


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


@dataclass(frozen=True)
class Plan:
    """What a conversion would do. Print it, then ``apply()`` it."""

    model: nn.Module
    config: MethodConfig
    where: Selector
    upcycle: bool
    noise: float
    rows: tuple[PlanRow, ...]
    blocks: tuple[type[nn.Module], ...] = ()
    _model_params: int = field(default=0, repr=False)

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of the layers that change."""
        return tuple(row.name for row in self.rows if row.after is not None)

    def __str__(self) -> str:
        head = ("layer", "before -> after", "params", "MACs", "")
        body = [_cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, [*widths, 0], strict=True)).rstrip()
            for line in [head, *body]
        ]
        after = self._model_params + sum(row.params_after - row.params_before for row in self.rows)
        kept = Counter(row.reason for row in self.rows if row.after is None)
        total = (
            f"{len(self.converted)} of {len(self.rows)} layers become {self.config.title} ({self.config}); "
            f"where {self.where}; parameters {self._model_params:,} -> {after:,}"
        )
        why = "; ".join(f"{count} stay: {reason}" for reason, count in kept.items())
        return "\n".join([*lines, total, *([why] if why else [])])

    def apply(self, *, inplace: bool = False) -> nn.Module:
        """Convert.

        Args:
            inplace: Change the planned model instead of a copy of it. A root that is itself the layer cannot be
                changed in place: use the returned module.

        Returns:
            The converted model.
        """
        model = self.model if inplace else copy.deepcopy(self.model)
        modules = dict(model.named_modules(remove_duplicate=False))
        homes = {site.name: site.block for site in sites(model, self.blocks)}
        made: dict[nn.Module, nn.Module] = {}
        for name in self.converted:
            made[modules[name]] = self._make(modules[name])
        if model in made:
            return made[model]
        for name, module in modules.items():
            if module in made:
                parent, _, leaf = name.rpartition(".")
                setattr(modules[parent], leaf, made[module])
        if isinstance(self.config, CondConv) and self.config.router == "block":
            self._share_routers(model, self.config, homes)
        return model

    def _make(self, static: nn.Module) -> nn.Module:
        layer = self.config.build(static)
        if self.upcycle and isinstance(layer, DynamicLayer):
            weight, bias = static.weight, static.bias
            layer.load_static(weight.detach(), None if bias is None else bias.detach(), self.noise)  # type: ignore[union-attr]
        layer.weight.requires_grad_(static.weight.requires_grad)  # type: ignore[union-attr]
        if layer.bias is not None:
            layer.bias.requires_grad_(static.bias.requires_grad)  # type: ignore[union-attr]
        return layer

    def _share_routers(self, model: nn.Module, config: CondConv, homes: dict[str, str | None]) -> None:
        """One router on the input of every block that holds converted layers."""
        modules = dict(model.named_modules())
        by_block: dict[str, list[DynamicConv]] = {}
        for name in self.converted:
            layer, block = modules[name], homes[name]
            if isinstance(layer, DynamicConv) and block is not None:
                by_block.setdefault(block, []).append(layer)
        for block, layers in by_block.items():
            like = layers[0].weight
            router = config.make_router(layers[0].in_channels, device=like.device, dtype=like.dtype)
            if self.upcycle:
                router.neutral_()
                gain, bias_gain = neutral_gain(router, config.experts)
                for layer in layers:  # load_static knew of no router yet
                    layer.weight.data.div_(gain)
                    if layer.bias is not None:
                        layer.bias.data.div_(bias_gain)
            share_router(modules[block], router.train(layers[0].training), layers)


def plan(
    model: nn.Module,
    config: MethodConfig,
    where: Selector | None = None,
    *,
    upcycle: bool = True,
    noise: float = NOISE,
    example: Tensor | None = None,
    blocks: tuple[type[nn.Module], ...] = (),
) -> Plan:
    """What ``convert`` with these arguments would do, layer by layer; nothing is changed.

    Args:
        model: Any module with convolutions.
        config: The method and its options.
        where: Which layers; by default the method's paper's own placement.
        upcycle: True: the converted model computes what the model computes. False: every expert is initialised on its
            own, as the method publishes for training from scratch.
        noise: Perturbation of the experts when upcycling, relative to the spread of each layer's weights. The
            perturbations sum to zero.
        example: An input for counting multiply-adds, (B, C, *S).
        blocks: What counts as a block; by default the known residual and inverted-residual classes.

    Returns:
        The plan, printable.

    Raises:
        ConfigError: ``where`` selects nothing that can be converted.
    """
    selector = paper(config) if where is None else where
    positions = _positions(model, example) if example is not None else {}
    shared = _shared_parameters(model)
    rows = []
    routed: set[str] = set()
    for site in sites(model, blocks):
        reason = None if selector(site) else "not selected"
        reason = reason or _refusal(site, config, shared)
        rows.append(_row(site, config, reason, positions.get(site.name), routed))
    if not any(row.after for row in rows):
        raise ConfigError(_nothing(model, selector, rows))
    total = sum(p.numel() for p in model.parameters())
    return Plan(model, config, selector, upcycle, noise, tuple(rows), blocks, total)


def convert(
    model: nn.Module,
    config: MethodConfig,
    where: Selector | None = None,
    *,
    upcycle: bool = True,
    noise: float = NOISE,
    inplace: bool = False,
    blocks: tuple[type[nn.Module], ...] = (),
) -> nn.Module:
    """Make a model dynamic: ``plan(...).apply()``; see ``plan`` for the arguments.

    Parameters keep their dtype, device and ``requires_grad``, modules their mode; routers are new and trainable.

    Args:
        model: Any module with convolutions.
        config: The method and its options.
        where: Which layers; by default the method's paper's own placement.
        upcycle: Whether the result computes what ``model`` computes.
        noise: Relative perturbation of the experts when upcycling.
        inplace: Change ``model`` instead of a copy.
        blocks: What counts as a block.

    Returns:
        The converted model.

    Raises:
        ConfigError: nothing that is selected can be converted.
    """
    return plan(model, config, where, upcycle=upcycle, noise=noise, blocks=blocks).apply(inplace=inplace)


def _refusal(site: Site, config: MethodConfig, shared: set[int]) -> str | None:
    """Why a selected layer can't be converted, or None."""
    module = site.module
    if isinstance(module, DynamicLayer):
        return "already dynamic"
    if type(module) not in _EXACT:
        return f"{type(module).__name__} derives from {type(module).__mro__[1].__name__}; its own forward would be lost"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would be lost; remove them or hook the converted layer"
    if any(id(p) in shared for p in module.parameters(recurse=False)):
        return "it shares a parameter with another layer"
    if isinstance(config, CondConv) and config.router == "block" and site.is_conv and site.block is None:
        return "it stands in no block whose router it could share; use router='layer' or name the block classes"
    return config.refuses(module)


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds."""
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {key for key, count in holders.items() if count > 1}


def _row(site: Site, config: MethodConfig, reason: str | None, positions: int | None, routed: set[str]) -> PlanRow:
    before = sum(p.numel() for p in site.module.parameters())
    macs = None if positions is None else site.module.weight.numel() * positions  # type: ignore[union-attr]
    if reason is None:
        try:
            with torch.device("meta"):
                layer: Any = config.build(_on_meta(site.module))
        except ConfigError as error:
            reason = str(error)
    if reason is not None:
        return PlanRow(site.name, _describe(site.module), None, reason, before, before, macs, macs)
    note, router = "", 0
    if isinstance(config, CondConv) and config.router == "block" and site.block is not None and site.is_conv:
        note = f"router shared in {site.block}"
        if site.block not in routed:  # the block's first layer carries the router in this table
            router = (layer.in_channels + 1) * config.experts  # type: ignore[operator]
            routed.add(site.block)
    after_macs = None
    if positions is not None:
        after_macs = sum(layer.macs(positions).values())  # type: ignore[operator]
    after = router + sum(p.numel() for p in layer.parameters())
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
    if isinstance(module, nn.Linear) or not hasattr(module, "kernel_size"):
        sizes = f"{module.in_features}->{module.out_features}"
    else:
        groups = f"/{module.groups}" if module.groups != 1 else ""
        sizes = f"{module.in_channels}->{module.out_channels}{groups} {'x'.join(map(str, module.kernel_size))}"
    experts = f" x{module.num_experts}" if isinstance(module, DynamicLayer) else ""
    return f"{type(module).__name__} {sizes}{experts}"


def _positions(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Output positions per sample of every layer, from one forward pass in eval mode that leaves no trace."""
    found: dict[str, int] = {}
    hooks = []
    for site in sites(model):

        def record(module: nn.Module, args: tuple, out: Tensor, name: str = site.name) -> None:
            per_sample = out[0].numel() if out.shape[0] else 0
            channels = out.shape[-1] if isinstance(module, nn.Linear) else out.shape[1]
            found[name] = found.get(name, 0) + per_sample // channels

        hooks.append(site.module.register_forward_hook(record))
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _cells(row: PlanRow) -> tuple[str, str, str, str, str]:
    change = f"{row.before} -> {row.after}" if row.after else row.before
    params = f"{row.params_before:,}" + (f" -> {row.params_after:,}" if row.after else "")
    if row.macs_before is None:
        macs = "-"
    else:
        macs = f"{row.macs_before:,}" + (f" -> {row.macs_after:,}" if row.after else "")
    return row.name or "(model)", change, params, macs, row.reason or row.note


def _nothing(model: nn.Module, selector: Selector, rows: list[PlanRow]) -> str:
    reasons = sorted({row.reason for row in rows if row.reason and row.reason != "not selected"})
    found = f"{type(model).__name__} has {len(rows)} convolutions and linear layers"
    why = f"; the selected ones can't be converted: {'; '.join(reasons)}" if reasons else ", none of them selected"
    return f"nothing to convert: {found}{why} by where={selector}; try where=convary.where.all()"
