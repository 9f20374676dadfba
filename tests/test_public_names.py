# SPDX-License-Identifier: Apache-2.0
"""The public API is frozen: a change here is a decision, noted in CHANGELOG."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convary as cv
from convary import data, train
from convary.catalogue import METHOD_NAMES
from convary.data.cards import CARDS

NAMES = """
CARAFE CGC DCD DDPM METHODS Annealing CGC1d CGC2d CGC3d CheckpointError Coefficients CondConv CondConv1d CondConv2d
CondConv3d ConfigError ConvaryError ConversionWarning DCDConv1d DCDConv2d DCDConv3d DCDLinear DFNConv2d DFNLocalFilter2d
DataError DepthDC DeviceError Diagnosis DtypeError DyConv DyConv1d DyConv2d DyConv3d DyNet DyNetConv1d DyNetConv2d
DyNetConv3d DynamicConvModule ExportError ExportForm FDConv FDConv1d FDConv2d FDConv3d Folded FusionError GrowthWarning
Involution Involution2d KernelWarehouse KernelWarehouse1d KernelWarehouse2d KernelWarehouse3d KernelWarehouseLinear
LayerDiagnosis MaskHead MethodConfig MixedLinear NativeWarning ODConv ODConv1d ODConv2d ODConv3d Plan PlanRow ShapeError
StrategyError Summary TemperatureAnnealing TemperatureWarning WeightNet WeightNet1d WeightNet2d WeightNet3d __version__
anneal config_from_json convert custom_ops_library diagnose export export_forms fold fold_norms freeze_routing
integrations load load_released mask_logits method ops param_groups plan recipe reconvert released_state routing save
set_temperature share_warehouse split_params summary where
""".split()
OPS = """
Coefficients Explanation Tuned autotune explain mix_bias mix_kernels mixed_conv pixel_conv sample_conv strategies
    strategy tuned
""".split()


def test_public_names():
    assert sorted(cv.__all__) == sorted(NAMES)
    assert sorted(cv.ops.__all__) == sorted(OPS)
    assert all(hasattr(cv, name) for name in NAMES)
    assert all(getattr(cv, name).__doc__ for name in NAMES if name not in ("METHODS", "__version__"))


# What people look up first; the doctests of src run their examples.
SHOWN = """
Coefficients CondConv CondConv2d DyConv DyConv2d DyNet DyNetConv2d KernelWarehouse2d ODConv ODConv2d MixedLinear anneal
config_from_json convert diagnose export export_forms fold fold_norms freeze_routing load load_released method
param_groups plan recipe reconvert released_state routing save set_temperature share_warehouse summary
""".split()


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_used_most_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(cv, name))


def test_lists_that_need_no_torch_are_those_of_the_code():
    assert tuple(config.name for config in cv.METHODS) == METHOD_NAMES
    assert {*CARDS, "folder:PATH", "hf:NAME"} == set(data.NAMES)
    for name in ("fashion-mnist-mini", "control"):
        found, card = data.load(name), CARDS[name]
        assert (found.title, found.shape, found.license) == (card.title, card.shape, card.license)
        assert (len(found.train.labels), len(found.test.labels), len(found.classes)) == (
            card.train, card.test, card.classes,
        )  # fmt: skip


@pytest.mark.parametrize("package", [cv, data, train])
def test_public_names_come_when_they_are_asked_for(package):
    """Each is listed; none has the name of a submodule, which would stand in its place once that is imported."""
    assert set(package.__all__) <= set(dir(package))
    files = {path.stem for path in Path(package.__file__).parent.iterdir()}
    assert not [name for name in package.__all__ if name in files and not inspect.ismodule(getattr(package, name))]
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018
    names: dict = {}
    exec(f"from {package.__name__} import *", names)
    assert set(package.__all__) <= set(names)


def test_importing_convary_alone_brings_no_torch():
    code = (
        "import sys, convary as cv, convary.integrations; assert 'torch' not in sys.modules; "
        "import pickle, torch; layer = pickle.loads(pickle.dumps(cv.ODConv2d(2, 2, 1)));"
        "assert type(layer) is cv.ODConv2d; assert cv.models.create and cv.errors.ConfigError is cv.ConfigError"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_found_while_torch_compiles():
    def call(layer, x):
        return cv.ops.mix_kernels(layer.weight, cv.Coefficients(kernel=layer.router(x).kernel))

    layer, x = cv.CondConv2d(3, 4, 1, experts=2), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(torch.compile(call, backend="eager", fullgraph=True)(layer, x), call(layer, x))


def test_type_checkers_see_the_annotations():
    assert (Path(cv.__file__).parent / "py.typed").is_file()
