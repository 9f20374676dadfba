# SPDX-License-Identifier: Apache-2.0
"""Files for OpenVINO: the same values, by a chain in the place of each product with a bank of kernels."""

import importlib.util
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import convary as cv
from convary import METHODS
from convary._chained import _joined
from convary._runtimes import of_file
from tests.nets import excite
from tests.variants import CONVS, RANKS, SIZE, VARIANTS

CHAINED = {"condconv", "dyconv", "odconv"}  # those that mix one bank by one number per kernel


def read(path: Path) -> tuple[onnx.GraphProto, dict[str, onnx.TensorProto]]:
    graph = onnx.load(path).graph
    return graph, {tensor.name: tensor for tensor in graph.initializer}


def products(path: Path) -> int:
    """How many products of (1, K) with a constant bank lead to the kernel of a convolution."""
    graph, constants = read(path)
    readers = {name: node for node in graph.node for name in node.input}
    found = 0
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and len(constants[node.input[1]].dims) == 2:
            value = node.output[0]
            while (reader := readers.get(value)) is not None and reader.op_type in ("Reshape", "Mul"):
                value = reader.output[0]
            found += reader is not None and reader.op_type == "Conv" and reader.input[1] == value
    return found


def chains(path: Path) -> int:
    return sum(node.op_type == "Split" and ".chain" in node.name for node in read(path)[0].node)


@torch.no_grad()
def check(model: nn.Module, x: torch.Tensor, folder: Path) -> int:
    """Compare the file in the runtimes that are here; how many chains it has: as many as the usual one products."""
    paths = {runtime: folder / f"{runtime}.onnx" for runtime in ("any", "openvino")}
    for runtime, path in paths.items():
        cv.export(model, x, path, dynamic=(), runtime=runtime)
    assert products(paths["openvino"]) == 0 == chains(paths["any"])
    found = chains(paths["openvino"])
    assert found == products(paths["any"])
    for name in ("onnxruntime", "OpenVINO") if found else ("onnxruntime",):  # a usual file is tested elsewhere
        runtime = of_file(paths["any"])[name]
        if importlib.util.find_spec(runtime.module) is not None:
            got, want = runtime.open(paths["openvino"], 1)(x), model(x)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    return found


@pytest.mark.parametrize("rank", RANKS[:2])
@pytest.mark.parametrize("config", [c() for c in METHODS if c.name in CHAINED], ids=lambda c: c.name)
def test_methods_that_mix_one_bank(config, rank, tmp_path):
    torch.manual_seed(0)
    kinds = ((1, True), (2, False), (4, True))  # dense, grouped, depthwise: in one network, for to write takes seconds
    convs = [CONVS[rank](4, 4, 3, padding=1, groups=groups, bias=bias) for groups, bias in kinds]
    net = nn.Sequential(*(excite(config.build(conv)) for conv in convs)).eval()
    assert check(net, torch.randn(1, 4, *SIZE[rank]), tmp_path) == 3


@pytest.mark.slow
@pytest.mark.parametrize("rank", RANKS[:2])
@pytest.mark.parametrize("config", [c() for c in METHODS if c.name not in CHAINED], ids=lambda c: c.name)
def test_other_methods_are_as_they_were(config, rank, tmp_path):
    torch.manual_seed(0)
    conv = CONVS[rank](4, 6, 3, padding=1, groups=2)
    assert check(excite(config.build(conv)).eval(), torch.randn(1, 4, *SIZE[rank]), tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("config", [c for c in VARIANTS[len(METHODS) :] if c.name in CHAINED], ids=str)
def test_variants(config, rank, tmp_path):
    torch.manual_seed(0)
    convs = [CONVS[rank](4, 6, 3, padding=1), CONVS[rank](6, 6, 3, padding=1, groups=2)]
    net = nn.Sequential(*(excite(config.build(conv)) for conv in convs)).eval()
    check(net, torch.randn(1, 4, *SIZE[rank]), tmp_path)


def test_a_layer_that_runs_twice_has_its_bank_once(tmp_path):
    layer = excite(cv.ODConv2d(32, 32, 3, padding=1, experts=4))
    assert check(nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.randn(1, 32, 8, 8), tmp_path) == 2
    one, two = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("any", "openvino"))
    assert two < 1.2 * one


def test_pointwise_layers_with_one_kernel_or_one_channel(tmp_path):
    layers = [cv.ODConv2d(4, 6, 1), cv.DyConv2d(6, 1, 1, experts=2), cv.CondConv2d(1, 1, 1, experts=1)]
    assert check(excite(nn.Sequential(*layers)).eval(), torch.randn(1, 4, 6, 6), tmp_path) == 3


@pytest.mark.parametrize(
    ("shape", "factors", "want"),
    [
        ((1, 6, 4, 3, 3), [], [[1, 2, 3, 4]]),
        ((1, 6, 4, 3, 3), [(1, 6, 1, 1, 1), (1, 1, 4, 3, 3)], [[1], [2, 3, 4]]),
        ((1, 6, 4, 3, 3), [(1, 6, 1, 1, 1), (1, 1, 1, 3, 3)], [[1], [2], [3, 4]]),
        ((1, 6, 1, 3, 3), [(1, 6, 1, 3, 3)], [[1, 3, 4]]),
        ((1, 1, 1), [(1, 1, 1)], [[0]]),
    ],
)
def test_axes_lie_together_that_every_factor_has_or_none(shape, factors, want):
    assert _joined(shape, factors) == want


def test_kernels_of_products_are_left_alone(tmp_path):
    """A router's linear layer, a kernel that two convolutions take, one that is no product alone."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.randn(3, 4 * 4 * 9))
            self.head = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            kernel = (self.head(x.mean((2, 3))) @ self.bank).reshape(4, 4, 3, 3)
            return nn.functional.conv2d(nn.functional.conv2d(x, kernel), kernel + 1)

    model, x = Twice().eval(), torch.randn(1, 4, 9, 9)
    cv.export(model, x, tmp_path / "m.onnx", dynamic=(), runtime="openvino")
    assert chains(tmp_path / "m.onnx") == 0
    torch.testing.assert_close(of_file(tmp_path / "m.onnx")["onnxruntime"].open(tmp_path / "m.onnx", 1)(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is for images of one size: give dynamic="),
        ({"dynamic": (0, 2)}, "is for images of one size: give dynamic="),
        ({"dynamic": (), "example": (2, 4, 8, 8)}, "is for one image or any number; got 2: give a batch of one"),
        ({"dynamic": (), "path": "m.pt2"}, "is for .onnx files; got 'm.pt2'"),
        ({"dynamic": (), "path": None}, "is for .onnx files; got 'None'"),
        ({"dynamic": (), "strategy": "bmm"}, "strategy must be 'auto'; got 'bmm'"),
    ],
)
def test_what_it_is_not_for(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"example": (1, 4, 8, 8), "path": "m.onnx", **options}
    with pytest.raises(cv.ConfigError, match=r"runtime='openvino' .*" + message.replace(".", r"\.")):
        cv.export(cv.CondConv2d(4, 4, 3), **options, runtime="openvino")
    assert not any(tmp_path.iterdir())
