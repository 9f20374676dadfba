# SPDX-License-Identifier: Apache-2.0
"""Whole networks: small ones of our own, and any of torchvision's and timm's by name."""

from __future__ import annotations

from convary.extras import require

require("convary.models", "vision", "torchvision")

from convary.models.attention import Comparator  # noqa: E402  (after the check above)
from convary.models.comparators import COMPARATORS, attend, comparator_from_json  # noqa: E402
from convary.models.excitation import WE, fold_excitation  # noqa: E402
from convary.models.gates import CBAM, ECA, SE  # noqa: E402
from convary.models.registry import NAMES, build, create  # noqa: E402
from convary.models.saved import restore, save  # noqa: E402
from convary.models.small import ConvNetNano, MobileNetV2Tiny, OneConv, ResNet20  # noqa: E402

__all__ = [
    "CBAM", "COMPARATORS", "ECA", "NAMES", "SE", "WE", "Comparator", "ConvNetNano", "MobileNetV2Tiny", "OneConv",
    "ResNet20", "attend", "build", "comparator_from_json", "create", "fold_excitation", "restore", "save",
]  # fmt: skip
