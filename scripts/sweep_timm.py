# SPDX-License-Identifier: Apache-2.0
"""Convert the smallest member of every family of timm, compare outputs, and write docs/timm.md.

    python scripts/sweep_timm.py            # all families: about ten minutes
    python scripts/sweep_timm.py --show regnet resnet

A family is a module of ``timm.models``; its smallest member is the one with the fewest parameters, timm's own
``test_*`` networks aside. Nothing is downloaded: weights are random, and parameters that timm starts at a tiny
constant are given noise first, so that no branch of the network is hidden from the comparison.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import convary as cv
from convary import where
from convary.nn.site import is_conv

PAGE = Path(__file__).parents[1] / "docs" / "timm.md"
CONFIG = cv.ODConv(experts=2)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """One converted network: ``error`` is the largest change of an output over the largest output, None if refused."""

    family: str
    model: str
    size: int
    convolutions: int
    converted: int
    error: float | None
    stay: str


def families() -> dict[str, str]:
    """The smallest member of every family that has a convolution."""
    members = defaultdict(list)
    for name in timm.list_models(exclude_filters="test_*"):
        members[timm.model_entrypoint(name).__module__.rpartition(".")[2]].append(name)
    found = {}
    for family, names in sorted(members.items()):
        sizes = {}
        for name in names:
            with torch.device("meta"):
                model = timm.create_model(name)
            if any(is_conv(module) for module in model.modules()):
                sizes[name] = sum(p.numel() for p in model.parameters())
        if sizes:
            found[family] = min(sizes, key=lambda name: sizes[name])
    return found


def sweep(name: str) -> Row:
    """Convert every convolution of one network and compare its outputs before and after."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    _stir(model)
    shape = model.pretrained_cfg["input_size"]
    x = torch.randn(1, *shape)
    family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    convolutions = sum(is_conv(module) for module in model.modules())
    try:
        plan = cv.plan(model, CONFIG, where.all())
    except cv.ConfigError as refusal:
        return Row(family, name, shape[-1], convolutions, 0, None, str(refusal))
    reasons = Counter(row.reason for row in plan.rows if row.after is None and row.reason != "not selected")
    with torch.no_grad():
        want = _tensors(model(x))
        got = _tensors(plan.apply(inplace=True)(x))
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True))
    stay = "; ".join(f"{count} stay: {reason}" for reason, count in reasons.items())
    return Row(family, name, shape[-1], convolutions, len(plan.converted), error, stay)


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Noise for constants near zero: zero-initialised gains and layer scales would hide what their branch computes."""
    for p in model.parameters():
        if p.numel() and p.abs().max() < 0.01 and p.min() == p.max():
            p.normal_(0, 0.1)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts: Iterable[Any] = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts if part is not None for tensor in _tensors(part)]


def page(rows: list[Row]) -> str:
    """The page of the documentation."""
    exact = [row for row in rows if row.error is not None and row.error <= TOLERANCE]
    lines = [
        "# timm's networks",
        "",
        f"Every family of timm {timm.__version__} (a module of `timm.models`) that has a convolution, its smallest "
        f"member, converted to `{CONFIG}` with `where.all()`, and run at its own image size before and after. "
        f"{len(exact)} of {len(rows)} keep their outputs to {TOLERANCE:g} of their range. Layers that stay are named "
        "with the reason that `cv.plan` gives. Made by `python scripts/sweep_timm.py`; the test "
        "`tests/test_timm.py` (slow) runs it again.",
        "",
        "| family | model | size | convolutions | converted | error | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        error = "-" if row.error is None else "exact" if row.error == 0 else f"{row.error:.0e}"
        counts = f"{row.size} | {row.convolutions} | {row.converted}"
        lines.append(f"| {row.family} | {row.model} | {counts} | {error} | {row.stay.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def listed() -> list[str]:
    """The networks that the page lists."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [cells[2].strip() for cells in rows[1:]]


def main() -> None:
    """Sweep the families that are named, or all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", nargs="+", metavar="MODEL", help="print the rows of these networks instead")
    names = parser.parse_args().show
    warnings.simplefilter("ignore")
    rows = []
    for name in names or families().values():
        rows.append(sweep(name))
        print(rows[-1], flush=True)
    if not names:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
