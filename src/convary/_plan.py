# SPDX-License-Identifier: Apache-2.0
"""Converting a model: look at the plan, then apply it."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convary.errors import ConfigError, GrowthWarning
from convary.methods import MethodConfig
from convary.nn import DynamicLayer, Router, Site, evaluating, freeze_routing, replace, share_router, sites
from convary.nn.conv import pads_like_tensorflow
from convary.nn.site import unsited
from convary.where import Selector, paper

NOISE = 0.1
_BEYOND, _MANY = 2, 1 << 20  # a plan says so where parameters are that many times the promised, and so many more
_SHARDING = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"})
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
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        """How many layers change, the parameters before and after, and why layers stay: the plan without its rows."""
        after = self._model_params + sum(row.params_after - row.params_before for row in self.rows)
        kept = Counter(row.reason for row in self.rows if row.after is None)
        total = (
            f"{len(self.converted)} of {len(self.rows)} layers become {self.config.title} ({self.config}); "
            f"where {self.where}; parameters {self._model_params:,} -> {after:,}"
        )
        why = "; ".join(f"{count} stay: {reason}" for reason, count in kept.items())
        return "\n".join(line for line in (total, why, self.growth) if line)

    @property
    def growth(self) -> str:
        """That the layers get far more parameters than the method promises, and what to do; empty where they don't."""
        changed = [row for row in self.rows if row.after is not None]
        before, after = (sum(getattr(row, f"params_{when}") for row in changed) for when in ("before", "after"))
        budget = max(self.config.promise, 1.0)
        if after <= _BEYOND * budget * before or after - budget * before <= _MANY:
            return ""
        most = max(changed, key=lambda row: row.params_after - budget * row.params_before)
        return (
            f"{self.config.title} multiplies the parameters of these layers by {after / before:.1f}, where its budget "
            f"is {budget:g}: most in {most.name or 'the layer'}, {most.params_before:,} -> {most.params_after:,}; "
            "leave such layers out with where, or see the method's options"
        )

    def apply(self, *, inplace: bool = False) -> nn.Module:
        """Convert.

        Args:
            inplace: Change the planned model instead of a copy of it. A root that is itself the layer cannot be
                changed in place: use the returned module.

        Returns:
            The converted model.

        Warns:
            GrowthWarning: the method's parameters go far beyond its budget in this network; see ``growth``.
        """
        self._warn_of_growth()
        return self._made(inplace)

    def _warn_of_growth(self) -> None:
        """Warns the caller of ``apply`` or ``convert``."""
        if self.growth:
            warnings.warn(self.growth, GrowthWarning, stacklevel=3)

    def _made(self, inplace: bool) -> nn.Module:
        model = self.model if inplace else copy.deepcopy(self.model)
        modules = dict(model.named_modules())
        routers = self._block_routers(model)
        places = list(sites(model, self.blocks))
        layers = {s.name: make_dynamic(s.module, self.config.at(s)) for s in places if s.name in self.converted}
        self.config.join(places, layers)
        made: dict[nn.Module, nn.Module] = {}
        for site in places:
            if site.name in layers:
                made[site.module] = layer = layers[site.name]
                self._initialise(layer, site.module, routers.get(site.block))
        model = replace(model, made)
        frozen = _frozen_blocks([site for site in places if site.name in layers])
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
        inputs = _block_inputs(model, self.blocks)
        for site in sites(model, self.blocks):
            if site.name in self.converted and site.is_conv and site.block not in found:
                weight = site.module.weight
                factory = {"device": weight.device, "dtype": weight.dtype}
                router = self.config.block_router(inputs[site.block], **factory)
                if router is not None:
                    found[site.block] = router.train(site.module.training)
        return found


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
            own, as the method publishes for training from scratch; the only way for methods without a bank
            (``convary.Involution``).
        noise: Perturbation of the experts when upcycling, relative to the spread of each layer's weights. The
            perturbations sum to zero.
        example: An input for counting multiply-adds, (B, C, *S).
        blocks: What counts as a block; by default the known residual and inverted-residual classes.

    Returns:
        The plan, printable.

    Raises:
        ConfigError: ``where`` selects nothing that can be converted, the method can't upcycle, or the model is wrapped
            for several processes already.
    """
    _check_arguments(model, config, where, noise)
    if upcycle and not config.upcycles:
        raise ConfigError(
            f"{config.title} can't compute what a trained convolution computes; pass upcycle=False to start the "
            "selected layers anew (convary plan: --init paper), and train"
        )
    selector = paper(config) if where is None else where
    positions = _positions(model, example) if example is not None else {}
    context = _Context(config, _shared_parameters(model), _aliases(model), dict(model.named_modules()))
    rows = []
    routed: set[str | None] = set()
    inputs = _block_inputs(model, blocks)
    places = list(sites(model, blocks))
    picked = {site.name for site in places if selector(site)}
    reasons = {
        site.name: context.refusal(site) if site.name in picked else selector.why(site) or "not selected"
        for site in places
    }
    layers = _layers_on_meta(places, config, reasons)
    counted: dict[nn.Parameter, str] = {}
    frozen = _frozen_blocks([site for site in places if reasons[site.name] is None])
    for site in places:
        reason, layer = reasons[site.name], layers.get(site.name)
        router = None
        if (
            reason is None and site.is_conv and site.block not in routed
        ):  # its block's first layer carries the router here
            router = config.block_router(inputs.get(site.block, 1), device="meta")
            routed.add(site.block)
        row = _row(site, layer, reason, positions.get(site.name), router, counted)
        if row.after is not None and _starts_frozen(site, layer, frozen):
            row = dataclasses.replace(row, note="; ".join(filter(None, (row.note, "frozen, its router too"))))
        rows.append(row)
    if not any(row.after for row in rows):
        left = any(site.is_conv and site.name not in picked and not context.refusal(site) for site in places)
        raise ConfigError(_nothing(model, selector, rows, left))
    rows = _with_unsited(model, rows)
    total = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
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

    Parameters keep their dtype, device and ``requires_grad``, modules their mode. Routers are new and trainable. The
    router of a frozen layer starts frozen too (a block's, where all layers that share it are frozen);
    ``convary.freeze_routing(part, False)`` lets it learn.

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
        ConfigError: nothing that is selected can be converted, or the method can't upcycle.
    """
    planned = plan(model, config, where, upcycle=upcycle, noise=noise, blocks=blocks)
    planned._warn_of_growth()
    return planned._made(inplace)


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


def _check_arguments(model: nn.Module, config: MethodConfig, where: Selector | None, noise: float) -> None:
    if not isinstance(config, MethodConfig):
        raise ConfigError(f"config must be a method's options, such as convary.ODConv(experts=4); got {config!r}")
    if where is not None and not isinstance(where, Selector):
        raise ConfigError(f"where must be a selector, such as convary.where.all(); got {where!r}")
    if not 0 <= noise < float("inf"):
        raise ConfigError(f"noise must be a finite number of at least 0; got {noise}")
    classes = (cls.__name__ for module in model.modules() for cls in type(module).__mro__)
    wrapper = next((name for name in classes if name in _SHARDING), None)
    if wrapper is not None:
        raise ConfigError(
            f"{wrapper} took the model's parameters when it wrapped them, and would leave out those of dynamic layers; "
            "convert the model first and wrap it then"
        )


@dataclass(frozen=True)
class _Context:
    """What the decision about one layer needs to know of the whole model."""

    config: MethodConfig
    shared: set[int]
    aliases: dict[nn.Module, list[str]]
    modules: dict[str, nn.Module]

    def refusal(self, site: Site) -> str | None:
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


def _replaced(module: nn.Module) -> str | None:
    """Name of a method that somebody put on this layer alone, such as another padding in ``_conv_forward``."""
    return next((name for name in vars(module) if callable(getattr(type(module), name, None))), None)


def _aliases(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All names of every module."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(name)
    return found


def _trains(site: Site) -> bool:
    return site.module.weight.requires_grad


def _starts_frozen(site: Site, layer: Any, frozen_blocks: set[str | None]) -> bool:
    """Whether a converted layer and the router that it takes its coefficients from are frozen."""
    if not isinstance(layer, DynamicLayer):  # all of its parameters are new
        return False
    return site.block in frozen_blocks if layer.router is None else not _trains(site)


def _frozen_blocks(converted: list[Site]) -> set[str | None]:
    """Blocks all of whose converted convolutions are frozen, so that a router that they share is too."""
    convolutions = [site for site in converted if site.is_conv]
    return {site.block for site in convolutions} - {site.block for site in convolutions if _trains(site)}


def _block_inputs(model: nn.Module, blocks: tuple[type[nn.Module], ...]) -> dict[str | None, int]:
    """Input channels of every block: those of its first convolution, converted or not."""
    found: dict[str | None, int] = {}
    for site in sites(model, blocks):
        if site.is_conv and not site.gate:
            found.setdefault(site.block, site.module.in_channels)
    return found


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds."""
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {key for key, count in holders.items() if count > 1}


def _layers_on_meta(places: list[Site], config: MethodConfig, reasons: dict[str, str | None]) -> dict[str, nn.Module]:
    """What the layers without a reason to stay become; where one can't be built, the reason is noted."""
    layers: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for site in places:
            lazy = any(nn.parameter.is_lazy(p) for p in site.module.parameters())
            if reasons[site.name] is None and not lazy:
                try:
                    layers[site.name] = config.at(site).build(_on_meta(site.module))
                except ConfigError as error:
                    reasons[site.name] = str(error)
        config.join(places, layers)
    return layers


def _row(
    site: Site,
    layer: Any,
    reason: str | None,
    positions: int | None,
    router: Router | None,
    counted: dict[nn.Parameter, str],
) -> PlanRow:
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


def _with_unsited(model: nn.Module, rows: list[PlanRow]) -> list[PlanRow]:
    """The rows, and one for every layer like a convolution that no selector sees, in registration order."""
    for name, module, reason in unsited(model):
        lazy = any(nn.parameter.is_lazy(p) for p in module.parameters())
        size = 0 if lazy else sum(p.numel() for p in module.parameters())
        named = type(module).__name__ if lazy else _describe(module)
        rows.append(PlanRow(name, named, None, reason, size, size))
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(rows, key=lambda row: order[row.name])


def _nothing(model: nn.Module, selector: Selector, rows: list[PlanRow], left: bool) -> str:
    """Why nothing is converted.

    Args:
        model: The model.
        selector: What was asked for.
        rows: Of its convolutions and linear layers.
        left: Whether a convolution that could be converted was not selected.
    """
    reasons = sorted({row.reason for row in rows if row.reason and row.reason != "not selected"})
    found = f"{type(model).__name__} has {len(rows)} convolutions and linear layers"
    why = f"; those asked for stay: {'; '.join(reasons)}" if reasons else ", none of them selected"
    others = sorted({f"{type(module).__name__}: {reason}" for _, module, reason in unsited(model)})
    hint = "; try where=convary.where.all()" if left else f"; besides: {'; '.join(others)}" if others else ""
    if any(isinstance(module, Router) for module in model.modules()):
        hint += "; what routers are made of is left out"
    return f"nothing to convert: {found}{why} by where={selector}{hint}"
