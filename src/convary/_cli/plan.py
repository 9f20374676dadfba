# SPDX-License-Identifier: Apache-2.0
"""``convary plan``: which layers of a model a method would make dynamic, and what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import OmitArgPrefixes

from convary._cli.parse import parse

if TYPE_CHECKING:
    from convary.methods import MethodConfig

SMALL_IMAGES = {"mobilenet_v2_tiny": (1, 28, 28), "resnet20": (3, 32, 32)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show which layers of a model a method would make dynamic, and at what cost.

    The method's own options are flags too: convary plan --method odconv --help lists them.
    """

    model: str
    """mobilenet_v2_tiny, resnet20, torchvision:NAME or timm:NAME."""
    method: str
    """Name of the method: condconv, dyconv, ..."""
    where: str = "paper"
    """Which layers: selectors of convary.where with & | ~, as in 'all & ~first'; paper is the method's own choice."""
    init: Literal["upcycle", "paper"] = "upcycle"
    """upcycle: the network computes what it did before. paper: every expert initialised on its own."""
    classes: int = 10
    """Classes of the classifier."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image; None is what the small networks are made for, or 3 224 224."""


def run(argv: Sequence[str]) -> int:
    """Parse, plan, print."""
    from convary.methods import method

    name = _method_name(argv)
    if name is None:
        parse(Plan, argv, "convary plan")  # shows the help, or says that --method is missing
        return 0
    flags = parse(_with_options(type(method(name))), argv, "convary plan", description="")

    import torch

    import convary
    from convary._cli.selector import selector
    from convary.models import build

    wanted: Plan = flags.plan
    shape = wanted.shape or SMALL_IMAGES.get(wanted.model, (3, 224, 224))
    config = getattr(flags, name)
    model = build(wanted.model, wanted.classes, shape[0], shape[1:])
    chosen = selector(wanted.where, config)
    print(convary.plan(model, config, chosen, upcycle=wanted.init == "upcycle", example=torch.zeros(1, *shape)))
    return 0


def _method_name(argv: Sequence[str]) -> str | None:
    for word, following in zip(argv, [*argv, None][1:], strict=True):
        if word == "--method":
            return following
        if word.startswith("--method="):
            return word.partition("=")[2]
    return None


def _with_options(config: type[MethodConfig]) -> Any:
    """The flags of ``Plan`` and those of one method's config, side by side."""
    return dataclasses.make_dataclass(
        "PlanWithOptions",
        [
            ("plan", OmitArgPrefixes[Plan], dataclasses.field(metadata={"flat": Plan})),
            (config.name, OmitArgPrefixes[config], dataclasses.field(metadata={"flat": config})),
        ],
    )
