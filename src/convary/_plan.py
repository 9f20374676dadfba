# SPDX-License-Identifier: Apache-2.0
"""Looking at a conversion before it is carried out: what becomes of every layer, and why others stay."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from convary._exchange import Exchange, block_inputs, frozen_blocks, trains
from convary._plan_rows import PlanRow, folded_cells, layers_on_meta, positions_of, row_of, with_unsited
from convary._refusals import refusals
from convary.batches import input_like
from convary.errors import ConfigError, GrowthWarning
from convary.methods import MethodConfig
from convary.nn import DynamicLayer, Router, Site, sites
from convary.nn.site import unsited
from convary.text import columns, html_table, without_empty
from convary.where import Selector, paper

NOISE = 0.1
_HEAD = ("layer", "before -> after", "params", "MACs", "why it stays, or a note")
_BEYOND, _MANY = 2, 1 << 20  # a plan says so where parameters are that many times the promised, and so many more
_SHARDING = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"})


@dataclass(frozen=True, repr=False)
class Plan:
    """What a conversion would do. Print it, then ``apply()`` it.

    It shows what changes in all, then the layers; those that differ in their name alone share a line. ``rows`` has all.
    """

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
        head, body = without_empty(_HEAD, folded_cells(self.rows))
        return "\n".join([self.summary, "", *columns([head, *body])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*without_empty(_HEAD, folded_cells(self.rows)), self.summary.splitlines())

    @property
    def summary(self) -> str:
        """How many layers change, the parameters before and after, and why layers stay: the plan without its rows."""
        after = self._model_params + sum(row.params_after - row.params_before for row in self.rows)
        kept = Counter(row.reason for row in self.rows if row.after is None)
        total = (
            f"{len(self.converted)} of {len(self.rows)} layers become {self.config.title} ({_changed(self.config)}); "
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
        return self._carried_out(inplace)

    def _carried_out(self, inplace: bool) -> nn.Module:
        """Warns the caller of ``apply`` or ``convert``."""
        if self.growth:
            warnings.warn(self.growth, GrowthWarning, stacklevel=3)
        exchange = Exchange(self.config, self.converted, self.upcycle, self.noise, self.blocks)
        return exchange.carry_out(self.model if inplace else copy.deepcopy(self.model))


def plan(
    model: nn.Module,
    config: MethodConfig,
    where: Selector | None = None,
    *,
    upcycle: bool = True,
    noise: float = NOISE,
    example: Tensor | Sequence[int] | None = None,
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
        example: An input for counting multiply-adds, (B, C, *S), or its shape.
        blocks: What counts as a block; by default the known residual and inverted-residual classes.

    Returns:
        The plan, printable.

    Raises:
        ConfigError: ``where`` selects nothing that can be converted, the method can't upcycle, or the model is wrapped
            for several processes already.
        ShapeError, DtypeError: the model can't take the example.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        >>> from convary.methods import ODConv
        >>> plan(model, ODConv(experts=2), example=(1, 3, 32, 32)).converted
        ('2',)
    """
    _check_arguments(model, config, where, noise)
    if upcycle and not config.upcycles:
        raise ConfigError(
            f"{config.title} can't compute what a trained convolution computes; pass upcycle=False to start the "
            "selected layers anew (convary plan: --init paper), and train"
        )
    selector = paper(config) if where is None else where
    refused, places = refusals(model, config), list(sites(model, blocks))
    picked = {site.name for site in places if selector(site)}
    reasons = {
        site.name: refused.why(site) if site.name in picked else selector.why(site) or "not selected" for site in places
    }
    positions = {} if example is None else positions_of(model, input_like(model, example))
    rows = _rows(model, config, places, reasons, blocks, positions)
    if not any(row.after for row in rows):
        left = any(site.is_conv and site.name not in picked and not refused.why(site) for site in places)
        raise ConfigError(_nothing(model, selector, rows, left))
    rows = with_unsited(model, rows)
    total = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
    return Plan(model, config, selector, upcycle, noise, tuple(rows), blocks, total)


def _changed(config: MethodConfig) -> str:
    """A config with the options alone that are not the method's own."""
    usual = type(config)().options()
    changed = [f"{name}={value!r}" for name, value in config.options().items() if value != usual[name]]
    return f"{type(config).__name__}({', '.join(changed)})" if changed else "its own options"


def _rows(
    model: nn.Module,
    config: MethodConfig,
    places: list[Site],
    reasons: dict[str, str | None],
    blocks: tuple[type[nn.Module], ...],
    positions: dict[str, int],
) -> list[PlanRow]:
    """What becomes of every layer; the router of a block is counted in the row of its first layer."""
    rows: list[PlanRow] = []
    routed: set[str | None] = set()
    inputs = block_inputs(model, blocks)
    layers = layers_on_meta(places, config, reasons)
    counted: dict[nn.Parameter, str] = {}
    frozen = frozen_blocks([site for site in places if reasons[site.name] is None])
    for site in places:
        reason, layer = reasons[site.name], layers.get(site.name)
        router = None
        if reason is None and site.is_conv and site.block not in routed:
            router = config.block_router(inputs.get(site.block, 1), device="meta")
            routed.add(site.block)
        row = row_of(site, layer, reason, positions.get(site.name), router, counted)
        if row.after is not None and _starts_frozen(site, layer, frozen):
            row = dataclasses.replace(row, note="; ".join(filter(None, (row.note, "frozen, its router too"))))
        rows.append(row)
    return rows


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


def _starts_frozen(site: Site, layer: Any, frozen_blocks: set[str | None]) -> bool:
    """Whether a converted layer and the router that it takes its coefficients from are frozen."""
    if not isinstance(layer, DynamicLayer):  # all of its parameters are new
        return False
    return site.block in frozen_blocks if layer.router is None else not trains(site)


def _nothing(model: nn.Module, selector: Selector, rows: list[PlanRow], left: bool) -> str:
    """Why nothing is converted.

    Args:
        model: The model.
        selector: What was asked for.
        rows: Of its convolutions and linear layers.
        left: Whether a convolution that could be converted was not selected.
    """
    dynamic = Counter(type(module).__name__ for module in model.modules() if isinstance(module, DynamicLayer))
    already = "".join(f"{count} layers are {name} already; " for name, count in dynamic.items())
    reasons = sorted({row.reason for row in rows if row.reason and row.reason != "not selected"})
    sites = "1 convolution or linear layer" if len(rows) == 1 else f"{len(rows)} convolutions and linear layers"
    found = f"{type(model).__name__} has {sites}"
    if len(rows) == 1:
        why = f"; it stays as it is ({reasons[0]})" if reasons else f", not selected by where={selector}"
    elif reasons:
        why = f"; those selected by where={selector} stay as they are ({'; '.join(reasons)})"
    else:
        why = f", none of them selected by where={selector}"
    others = sorted({f"{type(module).__name__}: {reason}" for _, module, reason in unsited(model)})
    hint = "; try where=convary.where.all()" if left else f"; besides: {'; '.join(others)}" if others else ""
    if any(isinstance(module, Router) for module in model.modules()):
        hint += "; what routers are made of is left out"
    return f"nothing to convert: {already}{found}{why}{hint}"
