# SPDX-License-Identifier: Apache-2.0
"""torchvision's backbones with their ImageNet weights where these can be had, and a clear word where not."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable

from torch import nn
from torchvision.models import WeightsEnum


class RandomWeightsWarning(UserWarning):
    """Pretrained weights were asked for and could not be downloaded; the weights are random."""


def pretrained(build: Callable[..., nn.Module], weights: WeightsEnum, *, seconds: float = 20.0) -> nn.Module:
    """``build(weights=weights)``, or with random weights and a warning where they cannot be downloaded.

    Args:
        build: One of torchvision's model functions.
        weights: Its weights; read from torch.hub's cache where they were downloaded before.
        seconds: Of silence after which the download is given up.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        return build(weights=weights)
    except OSError as error:  # URLError, a timeout, a full disk
        warnings.warn(
            f"{weights} could not be downloaded ({error}); {build.__name__} starts from random weights, which trains "
            f"far worse. Download {weights.url} into torch.hub's cache, or ask for random weights if you mean them",
            RandomWeightsWarning,
            stacklevel=2,
        )
        return build(weights=None)
    finally:
        socket.setdefaulttimeout(before)
