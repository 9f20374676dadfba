# SPDX-License-Identifier: Apache-2.0
"""Programs for ExecuTorch's XNNPACK: the same function, and no convolution whose kernel is computed."""

import pytest
import torch
from torch import nn

import convary as cv
from convary import METHODS
from tests.nets import all_but_one_slow, dynamic_net, excite

aten = torch.ops.aten
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZE = {1: (13,), 2: (9, 10), 3: (5, 6, 7)}


def exported(layer: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    return cv.export(layer, x, dynamic=(), runtime="executorch")


def kernels(program: torch.export.ExportedProgram) -> list[bool]:
    """Of each convolution, whether its kernel is constant."""
    convs = [node for node in program.graph.nodes if "aten.conv" in str(node.target)]
    return [node.args[1].op == "placeholder" for node in convs]


@pytest.mark.parametrize(
    ("C", "O", "kernel", "how"),
    [
        (4, 6, 1, {}),
        (4, 6, 1, {"stride": 2}),
        (4, 6, 3, {"padding": 1}),
        (4, 6, 3, {"stride": 2, "padding": 1, "bias": False}),
        (4, 6, 3, {"stride": 3, "dilation": 2, "padding": 2}),
        (4, 6, 3, {"groups": 2, "stride": 2}),
        (4, 4, 3, {"groups": 4, "padding": 1}),
        (4, 8, 3, {"groups": 4, "stride": 2, "padding": 1}),
        (4, 8, 3, {"groups": 4, "padding": "same", "padding_mode": "reflect"}),
        (1, 3, 3, {"padding": 1}),
    ],
)
@pytest.mark.parametrize("rank", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_geometry_is_exact(C, O, kernel, how, rank):
    torch.manual_seed(0)
    x = torch.randn(1, C, *SIZE[rank], dtype=torch.float64)
    layer = excite(cv.ODConv(experts=3).build(CONVS[rank](C, O, kernel, **how, dtype=torch.float64)))
    program = exported(layer, x)
    torch.testing.assert_close(program.module()(x), layer(x).detach(), rtol=1e-9, atol=1e-9)
    assert all(kernels(program)) and not any("im2col" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
@pytest.mark.parametrize("groups", [1, 4])
def test_every_method_is_exact(config, groups):
    torch.manual_seed(0)
    layer = excite(config.build(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=groups)))
    x = torch.randn(1, 4, 9, 10)
    program = exported(layer, x)
    torch.testing.assert_close(program.module()(x), layer(x).detach(), rtol=1e-4, atol=1e-5)
    assert all(kernels(program))


@pytest.mark.parametrize(("config", "convolutions"), [(cv.CondConv(experts=4), 4), (cv.CondConv(experts=5), 0)])
def test_depthwise_layers_convolve_with_each_of_a_few_kernels(config, convolutions):
    """Of three by three taps: a product for each of them is nine, so five kernels are too many."""
    torch.manual_seed(0)
    layer = excite(config.build(nn.Conv2d(8, 8, 3, padding=1, groups=8, dtype=torch.float64)))
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64)
    program = exported(layer, x)
    torch.testing.assert_close(program.module()(x), layer(x).detach(), rtol=1e-9, atol=1e-9)
    assert kernels(program) == [True] * convolutions
    (form,) = cv.export_forms(program)
    assert form.strategy == ("outputs" if convolutions else "taps")


@all_but_one_slow()
def test_a_network_and_its_file(config, tmp_path):
    torch.manual_seed(0)
    net, x = dynamic_net(config), torch.randn(1, 3, 16, 16)
    program = cv.export(net, x, tmp_path / "net.pt2", dynamic=(), runtime="executorch")
    again = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(again(x), net(x).detach(), rtol=1e-4, atol=1e-4)
    forms = cv.export_forms(tmp_path / "net.pt2")
    assert forms == cv.export_forms(program) and {form.layer for form in forms} <= {n for n, _ in net.named_modules()}
    assert {form.strategy for form in forms} <= {"taps", "outputs"}


def test_a_free_size_another_file_and_another_strategy_are_refused(tmp_path):
    layer = cv.CondConv2d(3, 4, 3)
    for more in ({}, {"dynamic": (0,)}):
        with pytest.raises(cv.ConfigError, match=r"one size of everything: give dynamic=\(\)"):
            cv.export(layer, (1, 3, 8, 8), runtime="executorch", **more)
    with pytest.raises(cv.ConfigError, match="is for programs"):
        cv.export(layer, (1, 3, 8, 8), tmp_path / "a.onnx", dynamic=(), runtime="executorch")
    with pytest.raises(cv.ConfigError, match="is for programs"):
        cv.export(layer, (1, 3, 8, 8), strategy="outputs", dynamic=(), runtime="executorch")
