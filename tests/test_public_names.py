# SPDX-License-Identifier: Apache-2.0
"""The public API is frozen: a change here is a decision, noted in CHANGELOG."""

from pathlib import Path

import convary as cv

NAMES = """
CARAFE CGC DCD DDPM METHODS Annealing CGC1d CGC2d CGC3d CheckpointError Coefficients CondConv CondConv1d CondConv2d
CondConv3d ConfigError ConvaryError ConversionWarning DCDConv1d DCDConv2d DCDConv3d DCDLinear DFNConv2d
DFNLocalFilter2d DataError DepthDC DeviceError Diagnosis DtypeError DyConv DyConv1d DyConv2d DyConv3d DyNet DyNetConv1d
DyNetConv2d DyNetConv3d DynamicConvModule ExportError ExportForm FDConv FDConv1d FDConv2d FDConv3d Folded FusionError
GrowthWarning Involution Involution2d KernelWarehouse KernelWarehouse1d KernelWarehouse2d KernelWarehouse3d
KernelWarehouseLinear LayerDiagnosis MaskHead MethodConfig MixedLinear ODConv ODConv1d ODConv2d ODConv3d Plan PlanRow
ShapeError StrategyError Summary TemperatureAnnealing TemperatureWarning WeightNet WeightNet1d WeightNet2d WeightNet3d
__version__ anneal config_from_json convert diagnose export export_forms fold fold_norms freeze_routing integrations
load load_released mask_logits method ops param_groups plan recipe reconvert released_state routing save set_temperature
share_warehouse split_params summary where
""".split()
OPS = """
Coefficients Explanation explain mix_bias mix_kernels mixed_conv pixel_conv sample_conv strategies strategy
""".split()


def test_public_names():
    assert sorted(cv.__all__) == sorted(NAMES)
    assert sorted(cv.ops.__all__) == sorted(OPS)
    assert all(hasattr(cv, name) for name in NAMES)
    assert all(getattr(cv, name).__doc__ for name in NAMES if name not in ("METHODS", "__version__"))


def test_type_checkers_see_the_annotations():
    assert (Path(cv.__file__).parent / "py.typed").is_file()
