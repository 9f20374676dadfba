# SPDX-License-Identifier: Apache-2.0
"""The committed results: blocks, and every arm beside the static network that it is paired with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convary.errors import DataError
from convary.files import read_json
from convary.train.paired import paired
from studies.blocks import BLOCKS, SHAPE, Block

FOLDER = Path(__file__).parent / "results"
AXES = {
    "macs": "multiply-adds",
    "params": "parameters",
    "batch 16": "latency of 16 images",
    "batch 128": "latency of 128 images",
    "step": "time of a training step",
}
_FREE = {"command", "started", "finished", "methods", "jobs", "measure_seconds", "save_every"}  # change no result
_OWN = {"lr"}  # every arm has its own


@dataclass(frozen=True)
class Arm:
    """One network over all seeds.

    Attributes:
        entry: What studies.run kept of it.
        base: The same of the static network with the same seeds and settings.
        cost: Its measured cost from ``cost.json``; None where that is not measured.
    """

    entry: dict[str, Any]
    base: dict[str, Any]
    cost: dict[str, Any] | None

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.entry["name"]

    @property
    def tops(self) -> list[float]:
        """Top-1 on the test images by seed."""
        return self.entry["test_top1"]

    @property
    def is_static(self) -> bool:
        """Whether it is what the others are compared with."""
        return self.entry is self.base

    def gap(self, other: Arm | None = None) -> dict[str, Any] | None:
        """The paired gap to static, or to another arm of the same settings; None to itself."""
        base = self.base["test_top1"] if other is None else other.tops
        return None if base is self.tops else paired(self.tops, base)

    def ratio(self, what: str) -> float | None:
        """Cost relative to static: of :data:`AXES`; None where it is not measured."""
        if what == "macs":
            return sum(self.entry["macs"].values()) / sum(self.base["macs"].values())
        if what == "params":
            return self.entry["params"] / self.base["params"]
        if self.is_static:
            return 1.0
        return None if self.cost is None else self.cost[what]["ratio"]

    def gap_at_equal(self, what: str, arms: Iterable[Arm]) -> dict[str, Any] | None:
        """The paired gap to a static network of the same cost, between the widths that were trained.

        Seed by seed the static networks' top-1 is interpolated linearly over the logarithm of the cost.

        Args:
            what: The cost, of :data:`AXES`.
            arms: Static networks of several widths are looked for among these.

        Returns:
            As :meth:`gap`; None where the cost is not measured or higher than that of every static network.
        """
        family = [arm for arm in arms if arm.base is self.base and arm.name.partition("@")[0] == "static"]
        points = sorted((ratio, arm.tops) for arm in family if (ratio := arm.ratio(what)) is not None)
        cost = self.ratio(what)
        if cost is None or cost > points[-1][0]:
            return None
        at, tops = np.log([ratio for ratio, _ in points]), np.array([tops for _, tops in points])
        static = [float(np.interp(np.log(cost), at, tops[:, seed])) for seed in range(tops.shape[1])]
        return paired(self.tops, static)


def read(folder: Path = FOLDER) -> dict[str, list[Arm]]:
    """The arms of every block that is there, by its name, in the study's order.

    Raises:
        DataError: a file is not what studies.run wrote, or was made with other code, data or settings than the
            static network that it is paired with.
    """
    files = {block.name: read_json(path) for block in BLOCKS if (path := folder / f"{block.name}.json").exists()}
    cost_file = folder / "cost.json"
    costs = read_json(cost_file)["arms"] if cost_file.exists() else {}
    return {block.name: _arms(block, files, costs) for block in BLOCKS if block.name in files}


def _arms(block: Block, files: dict[str, Any], costs: dict[str, Any]) -> list[Arm]:
    own, home = files[block.name], block.base or block.name
    if home not in files:
        raise DataError(f"{block.name} is paired with {home}, which has no results; run it, or take {block.name} away")
    _check_pairing(block, own, home, files[home])
    base = next((arm for arm in files[home]["arms"] if arm["name"] == "static"), None)
    if base is None:
        raise DataError(f"{home} has no static network to pair {block.name} with")
    measured = costs if tuple(own["data"]["shape"]) == SHAPE and not block.title else {}
    return [Arm(_titled(entry, block.title), base, measured.get(entry["name"])) for entry in own["arms"]]


def _titled(entry: dict[str, Any], title: str) -> dict[str, Any]:
    return {**entry, "title": f"{entry['title']} ({title})"} if title else entry


def _check_pairing(block: Block, own: dict[str, Any], home: str, other: dict[str, Any]) -> None:
    """Seeds pair only where everything is equal but what the block asks about."""
    name, asked = block.name, {field for field, _ in block.flags if block.base}
    pairs = [("code", own["machine"]["code"], other["machine"]["code"]), ("data", own["data"], other["data"])]
    fields = sorted((own["run"].keys() | other["run"].keys()) - _FREE - _OWN - asked)
    pairs += [(field, own["run"].get(field), other["run"].get(field)) for field in fields]
    for what, here, there in pairs:
        if here != there:
            raise DataError(
                f"{name} and {home} differ in {what} ({here} and {there}), so their seeds are no pairs; run both again "
                "with one commit and the same settings"
            )
