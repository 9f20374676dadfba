# SPDX-License-Identifier: Apache-2.0
"""What the study says of single methods: on their pages, and in the table that helps to choose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from convary import METHODS, MethodConfig
from convary.report.tables import signed
from studies.results import Arm

EQUAL = "static@macs:odconv"
NOT_YET = "The [study](../evidence.md) has no result of {title} yet."
RESULT = (
    "In the [study](../evidence.md): a network of {params:,} parameters, five paired seeds; gaps in points of top-1, "
    "with their 95 % interval and the seeds won."
)
SCRATCH = ("s2-papers", "s2-kin", "s2-assembled")
RESULTS = {
    **dict.fromkeys(SCRATCH, "CIFAR-10, from scratch, to the static network"),
    "s6-trained": "CIFAR-10, a trained network converted and trained on, to the static one that trains on as long",
    "s7-conditions": "CIFAR-10 under four conditions, from scratch, to the static network",
}
Blocks = dict[str, list[Arm]]


def said(gap: dict[str, Any] | None) -> str:
    """A paired gap with its interval and the seeds won; bold where the interval leaves out zero."""
    if gap is None:
        return ""
    words = (
        f"{signed(gap['mean'])} ({signed(gap['low'])} to {signed(gap['high'])}), {gap['wins']} of {len(gap['gaps'])}"
    )
    return f"**{words}**" if gap["low"] > 0 or gap["high"] < 0 else words


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _found(blocks: Blocks, name: str) -> dict[str, Arm]:
    """The network of a method, as published, in every block that has it."""
    return {block: arm for block in RESULTS for arm in blocks.get(block, []) if arm.name == name}


def result(blocks: Blocks, config: type[MethodConfig]) -> str:
    """For the page of a method: its gaps in every block that has it, and what it cost there."""
    found = _found(blocks, config.name)
    if not found:
        return NOT_YET.format(title=config.title)
    first = next(iter(found.values()))
    lines = [RESULT.format(params=first.base["params"]), ""]
    for block, arm in found.items():
        lines.append(f"- {RESULTS[block]}: {said(arm.gap())}.")
        equal = [other for other in blocks[block] if other.name == EQUAL]
        lines += [f"- The same, to a static network of ODConv's multiply-adds: {said(arm.gap(o))}." for o in equal]
    macs, params = first.ratio("macs"), first.ratio("params")
    lines += ["", f"It cost {macs:.2f} times static's multiply-adds and {params:.1f} times its parameters there."]
    return "\n".join(lines)


def decision(blocks: Blocks) -> str:
    """For the page that helps to choose: gain, cost and restrictions of each method."""
    rows = []
    for config in METHODS:
        found = _found(blocks, config.name)
        scratch = next((found[block] for block in SCRATCH if block in found), None)
        trained = found.get("s6-trained")
        gains = [said(arm.gap()) if arm else "not run" for arm in (scratch, trained)]
        any_ = scratch or trained
        costs = [f"{any_.ratio(what):.{digits}f}" if any_ else "" for what, digits in (("macs", 2), ("params", 1))]
        int8 = "yes" if config().constant_weights else "no"
        rows.append([f"[{config.title}](methods/{config.name}.md)", *gains, *costs, int8])
    head = ["method", "from scratch", "from a trained network", "multiply-adds", "parameters", "int8"]
    return table(head, rows)
