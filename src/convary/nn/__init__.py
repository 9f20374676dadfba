# SPDX-License-Identifier: Apache-2.0
"""Modules that methods are built from: the dynamic layer, routers, norms, shared routing, sites."""

from convary.nn.base import DynamicConv, DynamicLayer, evaluating, neutral_gain
from convary.nn.block import RoutedBlock, routed_layers, share_router, unshare_router
from convary.nn.norm import BatchNorm, VectorBatchNorm, make_norm
from convary.nn.one_kernel import OneKernel
from convary.nn.opaque import Opaque
from convary.nn.placed import Placed
from convary.nn.recompute import recompute
from convary.nn.routers import LinearRouter, MLPRouter, PerceptronRouter, Router, check_temperature
from convary.nn.site import Placement, Site, replace, sites

__all__ = [
    "BatchNorm", "DynamicConv", "DynamicLayer", "LinearRouter", "MLPRouter", "OneKernel", "Opaque", "PerceptronRouter",
    "Placed", "Placement", "RoutedBlock", "Router", "Site", "VectorBatchNorm", "check_temperature", "evaluating",
    "make_norm", "neutral_gain", "recompute", "replace", "routed_layers", "share_router", "sites", "unshare_router",
]  # fmt: skip
