# SPDX-License-Identifier: Apache-2.0
"""Whole systems as they were published: network, data, loss, scores. ``convary train NAME`` trains them.

``SYSTEMS`` lists them without importing any.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convary.train.system import SystemConfig

# Name, title, and where the config is.
SYSTEMS = {
    "dfn-moving-mnist": ("Dynamic Filter Network, Moving MNIST", "dfn_moving_mnist", "DFNMovingMNISTConfig"),
    "dfn-video": ("Dynamic Filter Network, next frame of a video", "dfn_video", "DFNVideoConfig"),
    "dfn-steerable": ("Dynamic Filter Network, steerable filters", "dfn_steerable", "DFNSteerableConfig"),
    "dmnet": ("DMNet, semantic segmentation", "dmnet", "DMNetConfig"),
    "dmnet-published": ("DMNet, published setting", "dmnet", "DMNetPublishedConfig"),
    "hdfnet": ("HDFNet, salient objects in RGB-D", "hdfnet", "HDFNetConfig"),
    "hdfnet-published": ("HDFNet, published setting", "hdfnet", "HDFNetPublishedConfig"),
    "condinst": ("CondInst, instance segmentation", "condinst", "CondInstConfig"),
    "condinst-published": ("CondInst, published setting", "condinst", "CondInstPublishedConfig"),
    "detection": ("Faster and Mask R-CNN, dynamic backbone", "detection", "DetectionConfig"),
    "detection-published": ("Faster and Mask R-CNN, published setting", "detection", "DetectionPublishedConfig"),
    "detection-adamw-published": (
        "Faster and Mask R-CNN, KernelWarehouse's setting",
        "detection",
        "DetectionAdamWConfig",
    ),
}


def config_of(name: str) -> type[SystemConfig]:
    """The config class of a system of ``SYSTEMS``; imports that system alone."""
    _, module, kind = SYSTEMS[name]
    return getattr(importlib.import_module(f"convary.systems.{module}"), kind)
