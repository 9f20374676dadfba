# SPDX-License-Identifier: Apache-2.0
"""Modules that methods are built from: the dynamic layer, routers, norms, shared routing, sites."""

from convary.nn import prepared
from convary.nn.assembled import AssembledConv
from convary.nn.conv import DynamicConv
from convary.nn.layer import DynamicLayer
from convary.nn.linear import DynamicLinear
from convary.nn.modes import evaluating, hooked
from convary.nn.norm import BatchNorm, VectorBatchNorm, make_norm
from convary.nn.opaque import Opaque
from convary.nn.perceptron_router import LinearRouter, MLPRouter, PerceptronRouter
from convary.nn.placed import Placed
from convary.nn.recomputing import recompute
from convary.nn.router import Router, check_temperature, freeze_routing
from convary.nn.shared_router import RoutedBlock, routed_layers, share_router, unshare_router
from convary.nn.site import Placement, Site, replace, sites

DynamicConv.fast_path = prepared.infer

__all__ = [
    "AssembledConv", "BatchNorm", "DynamicConv", "DynamicLayer", "DynamicLinear", "LinearRouter", "MLPRouter", "Opaque",
    "PerceptronRouter", "Placed", "Placement", "RoutedBlock", "Router", "Site", "VectorBatchNorm", "check_temperature",
    "evaluating", "freeze_routing", "hooked", "make_norm", "recompute", "replace", "routed_layers", "share_router",
    "sites", "unshare_router",
]  # fmt: skip
