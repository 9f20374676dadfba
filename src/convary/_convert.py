# SPDX-License-Identifier: Apache-2.0
"""Making a model dynamic."""

from __future__ import annotations

from torch import nn

from convary._plan import NOISE, plan
from convary.methods import MethodConfig
from convary.nn.arguments import Model
from convary.where import Selector


def convert(
    model: Model,
    config: MethodConfig,
    where: Selector | None = None,
    *,
    upcycle: bool = True,
    noise: float = NOISE,
    inplace: bool = False,
    blocks: tuple[type[nn.Module], ...] = (),
) -> Model:
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
        The converted model; of another class only where ``model`` is itself a layer that becomes dynamic.

    Raises:
        ConfigError: nothing that is selected can be converted, or the method can't upcycle.

    Examples:
        >>> import torch
        >>> from convary import where
        >>> from convary.methods import ODConv
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
        >>> dynamic, x = convert(model, ODConv(experts=2), where.all()), torch.randn(2, 3, 9, 9)
        >>> torch.allclose(dynamic(x), model(x), atol=1e-5)
        True
    """
    planned = plan(model, config, where, upcycle=upcycle, noise=noise, blocks=blocks)
    return planned._carried_out(inplace)  # type: ignore[return-value]
