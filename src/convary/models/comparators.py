# SPDX-License-Identifier: Apache-2.0
"""What dynamic convolutions are compared with in the papers' tables: SE, CBAM, ECA and weight excitation.

The first three reweigh features. The fourth reweighs static kernels while training and costs nothing afterwards.
``attend`` puts one into a network; ``convary compare --methods static se odconv`` trains them.

>>> from convary.models import build
>>> model = attend(build("resnet20", 10), SE())
>>> type(model.layer1[0].bn2[1]).__name__
'SEModule'
"""

from __future__ import annotations

import copy
import json

from torch import nn

from convary.models.attention import Comparator
from convary.models.excitation import WE
from convary.models.gates import CBAM, ECA, SE

COMPARATORS: tuple[type[Comparator], ...] = (SE, CBAM, ECA, WE)


def attend(model: nn.Module, config: Comparator, *, upcycle: bool = False, inplace: bool = False) -> nn.Module:
    """A network with an attention at its published places.

    In residual blocks (torchvision's and timm's ``BasicBlock`` and ``Bottleneck``) after the last norm, before the
    addition; in inverted ones on the expanded features after the depthwise convolution, as MobileNetV3 has it; in
    networks of plain convolutions (``convnet_nano``) after every norm but the first. Weight excitation is in every
    convolution that is not depthwise.

    Args:
        model: A static network.
        config: ``SE()``, ``CBAM()``, ``ECA()`` or ``WE()``.
        upcycle: Start with gates of 1/2 for every input, and weights next to them that make up for it: the network
            computes what it computed. Otherwise gates start as timm starts them.
        inplace: Change ``model`` itself.

    Raises:
        ConfigError: there is no such place in the network; or weight excitation was to start exactly.
        MissingExtraError: timm is not installed.

    >>> from convary.models import build
    >>> import torch
    >>> static = build("mobilenet_v2_tiny", 10).eval()
    >>> x = torch.randn(2, 3, 28, 28)
    >>> torch.equal(attend(static, SE(), upcycle=True)(x), static(x))
    True
    """
    model = model if inplace else copy.deepcopy(model)
    config.put_into(model, upcycle)
    return model


def comparator_from_json(text: str) -> Comparator | None:
    """The config that ``to_json`` wrote; None where it is that of a method."""
    options = json.loads(text)
    name, _ = options.pop("method"), options.pop("version")
    known = {config.name: config for config in COMPARATORS}
    return known[name].from_options(options) if name in known else None
