# SPDX-License-Identifier: Apache-2.0
"""``convary plan``: which layers of a model a method would make dynamic, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convary._cli.console import stages
from convary._cli.options import parse_with_method
from convary.errors import ConfigError

SMALL_IMAGES = {
    "mobilenet_v2_tiny": (1, 28, 28), "convnet_nano": (3, 32, 32), "resnet20": (3, 32, 32), "one_conv": (1, 16, 16),
}  # fmt: skip
SMALL_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show which layers of a model a method would make dynamic, and at what cost.

    The method's own options are flags too: convary plan --method odconv --help lists them.
    """

    model: str
    """mobilenet_v2_tiny, convnet_nano, resnet20, torchvision:NAME or timm:NAME."""
    method: str
    """Name of the method: condconv, dyconv, ..."""
    where: str = "paper"
    """Which layers: selectors of convary.where with & | ~, as in 'all & ~first'; paper is the method's own choice."""
    init: Literal["upcycle", "paper"] = "upcycle"
    """upcycle: the network computes what it did before. paper: every expert initialised on its own."""
    classes: int | None = None
    """Classes of the classifier; by default what the authors of the network gave it, or 10 for the small ones."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image; by default what the small networks are made for, or 3 224 224."""


def run(argv: Sequence[str]) -> int:
    """Parse, plan, print."""
    wanted, config = parse_with_method(Plan, argv, "convary plan")
    numbers = [("classes", wanted.classes), *(("shape", side) for side in wanted.shape or ())]
    for name, value in numbers:
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1; got {value}")

    with stages() as tell:
        tell("loading torch")
        import torch

        import convary
        from convary.models import build, create
        from convary.models.registry import split_width
        from convary.selector import selector

        plain, _ = split_width(wanted.model)
        shape = wanted.shape or SMALL_IMAGES.get(plain, (3, 224, 224))
        tell(f"building {wanted.model}")
        if wanted.classes is None and plain not in SMALL_IMAGES and shape[0] == 3 and plain == wanted.model:
            model = create(wanted.model)
        else:
            model = build(wanted.model, wanted.classes or SMALL_CLASSES, shape[0], shape[1:])
        chosen = selector(wanted.where, config)
        tell(f"planning {config.title}")
        example = torch.zeros(1, *shape)
        plan = convary.plan(model, config, chosen, upcycle=wanted.init == "upcycle", example=example)
    print(plan)
    return 0
