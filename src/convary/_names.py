# SPDX-License-Identifier: Apache-2.0
"""The public names of convary; the package imports them when the first of them is used."""

import convary.integrations as integrations
from convary import __version__, ops, where
from convary._checkpoint import load, save
from convary._convert import convert
from convary._custom_ops import custom_ops_library
from convary._decay import param_groups
from convary._diagnose import Diagnosis, LayerDiagnosis, diagnose
from convary._export import export
from convary._exported import ExportForm, export_forms
from convary._fold import Folded, fold
from convary._fold_norms import fold_norms
from convary._plan import Plan, plan
from convary._plan_rows import PlanRow
from convary._recipe import recipe, reconvert
from convary._released import load_released, released_state
from convary._routing import routing
from convary._schedule import TemperatureAnnealing, anneal, set_temperature
from convary._summary import Summary, summary
from convary.errors import (
    CheckpointError,
    ConfigError,
    ConvaryError,
    ConversionWarning,
    DataError,
    DeviceError,
    DtypeError,
    ExportError,
    FusionError,
    GrowthWarning,
    NativeWarning,
    ShapeError,
    StrategyError,
    TemperatureWarning,
)
from convary.methods import (
    CARAFE,
    CGC,
    DCD,
    DDPM,
    METHODS,
    Annealing,
    CGC1d,
    CGC2d,
    CGC3d,
    CondConv,
    CondConv1d,
    CondConv2d,
    CondConv3d,
    DCDConv1d,
    DCDConv2d,
    DCDConv3d,
    DCDLinear,
    DepthDC,
    DFNConv2d,
    DFNLocalFilter2d,
    DyConv,
    DyConv1d,
    DyConv2d,
    DyConv3d,
    DynamicConvModule,
    DyNet,
    DyNetConv1d,
    DyNetConv2d,
    DyNetConv3d,
    FDConv,
    FDConv1d,
    FDConv2d,
    FDConv3d,
    Involution,
    Involution2d,
    KernelWarehouse,
    KernelWarehouse1d,
    KernelWarehouse2d,
    KernelWarehouse3d,
    KernelWarehouseLinear,
    MethodConfig,
    MixedLinear,
    ODConv,
    ODConv1d,
    ODConv2d,
    ODConv3d,
    WeightNet,
    WeightNet1d,
    WeightNet2d,
    WeightNet3d,
    config_from_json,
    method,
    share_warehouse,
)
from convary.methods.condinst import MaskHead, mask_logits, split_params
from convary.nn import freeze_routing
from convary.ops import Coefficients

__all__ = [
    "CARAFE", "CGC", "DCD", "DDPM", "METHODS", "Annealing", "CGC1d", "CGC2d", "CGC3d", "CheckpointError",
    "Coefficients", "CondConv", "CondConv1d", "CondConv2d", "CondConv3d", "ConfigError", "ConvaryError",
    "ConversionWarning", "DCDConv1d", "DCDConv2d", "DCDConv3d", "DCDLinear", "DFNConv2d", "DFNLocalFilter2d",
    "DataError", "DepthDC", "DeviceError", "Diagnosis", "DtypeError", "DyConv", "DyConv1d", "DyConv2d", "DyConv3d",
    "DyNet", "DyNetConv1d", "DyNetConv2d", "DyNetConv3d", "DynamicConvModule", "ExportError", "ExportForm", "FDConv",
    "FDConv1d", "FDConv2d", "FDConv3d", "Folded", "FusionError", "GrowthWarning", "Involution", "Involution2d",
    "KernelWarehouse", "KernelWarehouse1d", "KernelWarehouse2d", "KernelWarehouse3d", "KernelWarehouseLinear",
    "LayerDiagnosis", "MaskHead", "MethodConfig", "MixedLinear", "NativeWarning", "ODConv", "ODConv1d", "ODConv2d",
    "ODConv3d", "Plan", "PlanRow", "ShapeError", "StrategyError", "Summary", "TemperatureAnnealing",
    "TemperatureWarning", "WeightNet", "WeightNet1d", "WeightNet2d", "WeightNet3d", "__version__", "anneal",
    "config_from_json", "convert", "custom_ops_library", "diagnose", "export", "export_forms", "fold", "fold_norms",
    "freeze_routing", "integrations", "load", "load_released", "mask_logits", "method", "ops", "param_groups", "plan",
    "recipe", "reconvert", "released_state", "routing", "save", "set_temperature", "share_warehouse", "split_params",
    "summary", "where",
]  # fmt: skip
