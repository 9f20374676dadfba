# SPDX-License-Identifier: Apache-2.0
"""Rows of published tables, timed on this machine: ours against the static network, and the authors' own code too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convary._convert import convert
from convary.bench.models import step
from convary.bench.timing import Timing, fitting_clock, interleave
from convary.errors import ConfigError
from convary.methods import MethodConfig
from convary.models import create
from convary.papers import Row
from convary.selector import selector

SIZE = 224
MODES = ("inference", "training")
_PACKAGES = ("models", "modules")  # of the released code; names that others may have too


def measure(
    row: Row, *, batch: int = 1, seconds: float = 2.0, released: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Times of a row's network, each in turns with the static one's.

    Args:
        row: Of a static network, or one that is a single conversion.
        batch: Images; in training at least two.
        seconds: For each figure; at least nine pairs are taken.
        released: A checkout of the authors' code; it is run.
        device: Where.

    Returns:
        By mode (forward in eval mode; forward and backward in training mode) ``ms`` and, of a dynamic network,
        ``ratio``, ``low`` and ``high`` against the static one; the same of the authors' under ``released``.

    Raises:
        ConfigError: the checkout has no such network, or it has other parameters than ours.
    """
    network = str(row.network)
    static = create(network).to(device)
    networks = {"ours": static if row.is_static else _converted(row).to(device)}
    if released is not None and row.released:
        networks["released"] = _released(released, row, networks["ours"]).to(device)
    generator = torch.Generator().manual_seed(0)
    images = {mode: torch.randn(_images(batch, mode), 3, SIZE, SIZE, generator=generator).to(device) for mode in MODES}
    clock, found = fitting_clock(torch.device(device)), {}
    for name, model in networks.items():
        found[name] = {}
        for mode in MODES:
            for part in (model, static):
                part.train(mode == "training")
            ours, base = (step(part, images[mode], mode) for part in (model, static))
            timing = interleave(ours, base, seconds, clock)
            found[name][mode] = _entry(timing, row.is_static)
    return {"batch": batch, "device": device, "threads": torch.get_num_threads(), **found.pop("ours"), **found}


def _images(batch: int, mode: str) -> int:
    """Of one image a router's norm has one vector in training, which released code refuses."""
    return max(2, batch) if mode == "training" else batch


def _entry(timing: Timing, is_static: bool) -> dict[str, float]:
    ratios = {} if is_static else {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
    return {"ms": timing.ms, **ratios}


def _converted(row: Row) -> nn.Module:
    assert isinstance(row.method, MethodConfig)  # of tables of speed
    return convert(create(str(row.network)), row.method, selector(row.where, row.method), upcycle=False)


def _released(checkout: Path, row: Row, ours: nn.Module) -> nn.Module:
    """The network of the authors' code, with as many parameters as ours."""
    name, _, option = row.released.partition(":")
    key, _, value = option.partition("=")
    hidden = {found: sys.modules.pop(found) for found in list(sys.modules) if found.partition(".")[0] in _PACKAGES}
    sys.path.insert(0, str(checkout))
    try:
        build = getattr(importlib.import_module("models"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{checkout} has no {name} in its package models ({error}); give --released a checkout of the authors' code"
        ) from error
    finally:
        sys.path.remove(str(checkout))
        for found in [found for found in sys.modules if found.partition(".")[0] in _PACKAGES]:
            del sys.modules[found]
        sys.modules.update(hidden)
    theirs = build(**{key: int(value)})
    counts = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
    if counts[0] != counts[1]:
        raise ConfigError(f"{name} of {checkout} has {counts[0]:,} parameters, and ours {counts[1]:,}: another network")
    return theirs
