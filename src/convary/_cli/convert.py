# SPDX-License-Identifier: Apache-2.0
"""``convary convert``: a network of timm or torchvision with its weights, made dynamic, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convary._cli.console import stages
from convary._cli.options import parse_with_method

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a trained network dynamic; it computes what it computed before. Writes one file, whole or not at all.

    The method's own options are flags too: convary convert --method odconv --help lists them. Read the file with
    convary.models.restore(OUT), or the weights alone with torch.load(OUT, weights_only=True)["state_dict"].
    """

    model: str
    """torchvision:NAME or timm:NAME."""
    method: str
    """Name of the method: condconv, dyconv, ..."""
    out: Path
    """The file to write; it is replaced."""
    weights: str = "pretrained"
    """pretrained: the library's own, downloaded. random: untrained. Or a FILE: a state dict (.pt, .safetensors)."""
    where: str = "paper"
    """Which layers: selectors of convary.where with & | ~, as in 'all & ~first'; paper is the method's own choice."""
    noise: float = 0.1
    """How far the experts start apart, relative to the spread of each layer's weights."""
    seed: int = 0
    """Of that noise, and of random weights."""


def run(argv: Sequence[str]) -> int:
    """Parse, load, convert, write, print."""
    flags, config = parse_with_method(Convert, argv, "convary convert")

    with stages() as tell:
        tell("loading torch")
        import torch

        import convary
        from convary.files import check_target
        from convary.models import save
        from convary.selector import selector

        check_target(flags.out)
        chosen = selector(flags.where, config)
        torch.manual_seed(flags.seed)
        tell(f"building {flags.model}, weights {flags.weights}")
        static = network(flags.model, flags.weights).eval()
        tell(f"planning {config.title}")
        plan = convary.plan(static, config, chosen, noise=flags.noise)
        tell(f"converting {len(plan.converted)} layers")
        dynamic = plan.apply()
        tell(f"writing {flags.out}")
        save(flags.out, flags.model, dynamic)
    print(plan.summary)
    print(f"wrote {flags.out}; read it with convary.models.restore({str(flags.out)!r})")
    return 0


def network(name: str, weights: str) -> nn.Module:
    """The network ``name`` with the weights that ``--weights`` means.

    Raises:
        ConvaryError: there is no such network, or the weights do not fit it.
    """
    from convary.models import create
    from convary.weights import load_exactly, read_weights

    if weights in ("pretrained", "random"):
        return create(name, pretrained=weights == "pretrained")
    model = create(name)
    load_exactly(model, read_weights(weights), weights)
    return model
