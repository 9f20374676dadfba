# SPDX-License-Identifier: Apache-2.0
"""How wide a static network may be to take the time of another arm.

That is measured once, before anything is trained, and kept in the folder of the run: a comparison that is resumed, on
whatever machine, trains the network that it was begun with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convary.bench.timing import Timing, fitting_clock, interleave
from convary.errors import ConfigError
from convary.files import read_json, write_json
from convary.models import fold_excitation
from convary.models.architecture import Architecture
from convary.train.arms import AXES, STATIC, TIMED, Arm

WIDTHS = "widths.json"
WIDEST = 16.0
_SECONDS, _PATIENCE = 0.5, 5.0  # for each timing; a network whose calls take seconds gets three pairs
_NEAR = 1.02  # two widths that are no further apart than that are not told apart


def known_width(arm: Arm, out: Path) -> float:
    """The width that was measured for an arm of this run.

    Args:
        arm: One with an axis of ``TIMED``.
        out: The run's folder.

    Raises:
        ConfigError: it was not measured yet.
    """
    known = read_json(out / WIDTHS) if (out / WIDTHS).exists() else {}
    if arm.name not in known:
        raise ConfigError(f"the width of {arm.name} is measured when its comparison starts, and {out} has none yet")
    return known[arm.name]["width"]


def measure_widths(
    arms: dict[str, Arm], out: Path, network: Callable[[Arm], Architecture], device: torch.device
) -> dict[str, dict[str, Any]]:
    """Measure the widths that ``out`` does not have yet, and write them to ``widths.json`` there.

    Args:
        arms: Those of the comparison.
        out: Its folder.
        network: Gives what an arm trains.
        device: Where to measure, with as many threads as torch has now.

    Returns:
        By arm, of those that were measured now: ``width``, and the time of a network so wide over that of the other arm
        as ``ratio``, ``low`` and ``high``.

    Raises:
        ConfigError: a static network is not faster than the other arm, or no width up to ``WIDEST`` is as slow.
    """
    known = read_json(out / WIDTHS) if (out / WIDTHS).exists() else {}
    missing = [arm for arm in arms.values() if arm.axis in TIMED and arm.name not in known]
    found = {arm.name: _measured(arm, arms[arm.like], network, device) for arm in missing}
    if found:
        write_json(out / WIDTHS, {**known, **found})
    return found


def bracket(arm: Arm, ratio: Callable[[int], float], near: float = 1.0) -> tuple[int, int]:
    """Two widths, in hundredths, between which a static network becomes as expensive as the arm that it is like.

    Args:
        arm: A static one with an axis.
        ratio: Gives the cost of a static network so wide over that of the other arm, which must be below 1 at 100.
        near: How far apart they may be; 1.0 means neighbours.

    Raises:
        ConfigError: no width up to ``WIDEST`` is as expensive.
    """
    low, high = 100, 200
    while ratio(high) < 1:
        low, high = high, 2 * high
        if high > 100 * WIDEST:
            what = f"{AXES[arm.axis]} of {arm.like}"
            raise ConfigError(f"no static network up to {WIDEST:g} times as wide has the {what}; leave {arm.name} out")
    while high - low > 1 and high > near * low:
        middle = (low + high) // 2
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    return low, high


def _measured(arm: Arm, like: Arm, network: Callable[[Arm], Architecture], device: torch.device) -> dict[str, Any]:
    """Of all the widths that were tried, the one whose time is nearest."""
    other, seen = _shipped(network(like), device), {}
    x = torch.randn(TIMED[arm.axis], *network(like).shape, device=device)

    def ratio(hundredths: int) -> float:
        static = _shipped(network(Arm(name=STATIC, width=hundredths / 100)), device)
        seen[hundredths] = _timing(static, other, x)
        return seen[hundredths].ratio

    if (slow := ratio(100)) >= 1:
        what = f"{slow:.2f} of its {AXES[arm.axis]}"
        raise ConfigError(f"a static network is no faster than {arm.like} here ({what}); leave {arm.name} out")
    bracket(arm, ratio, _NEAR)
    width = min(seen, key=lambda hundredths: abs(math.log(seen[hundredths].ratio)))
    timing = dataclasses.asdict(seen[width])
    return {"width": width / 100, **{name: round(timing[name], 3) for name in ("ratio", "low", "high")}}


def _shipped(network: Architecture, device: torch.device) -> nn.Module:
    return fold_excitation(network.build().eval().to(device))


def _timing(static: nn.Module, other: nn.Module, x: torch.Tensor) -> Timing:
    with torch.inference_mode():
        return interleave(lambda: static(x), lambda: other(x), _SECONDS, fitting_clock(x.device), _PATIENCE)
