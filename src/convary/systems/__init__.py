# SPDX-License-Identifier: Apache-2.0
"""Whole systems as they were published: network, data, loss, scores. ``convary train NAME`` trains them."""

from __future__ import annotations

from convary.systems.condinst import CondInstConfig, CondInstPublishedConfig
from convary.systems.dfn_moving_mnist import DFNMovingMNISTConfig
from convary.systems.dfn_steerable import DFNSteerableConfig
from convary.systems.dfn_video import DFNVideoConfig
from convary.systems.dmnet import DMNetConfig, DMNetPublishedConfig
from convary.systems.hdfnet import HDFNetConfig, HDFNetPublishedConfig
from convary.train.system import SystemConfig

SYSTEMS: tuple[type[SystemConfig], ...] = (
    DFNMovingMNISTConfig,
    DFNVideoConfig,
    DFNSteerableConfig,
    DMNetConfig,
    DMNetPublishedConfig,
    HDFNetConfig,
    HDFNetPublishedConfig,
    CondInstConfig,
    CondInstPublishedConfig,
)
