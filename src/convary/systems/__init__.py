# SPDX-License-Identifier: Apache-2.0
"""Whole systems as they were published: network, data, loss, scores. ``convary train NAME`` trains them."""

from __future__ import annotations

from convary.systems.condinst import CondInstCOCOConfig, CondInstConfig
from convary.train.system import SystemConfig

SYSTEMS: tuple[type[SystemConfig], ...] = (CondInstConfig, CondInstCOCOConfig)
