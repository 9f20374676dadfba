# SPDX-License-Identifier: Apache-2.0
"""Recorded graphs hold only what the front ends of Core ML, ncnn, OpenVINO, OpenCV and TorchScript's ONNX know."""

import warnings

import pytest
import torch

import convary as cv
from tests.nets import excite
from tests.variants import LAYERS

# Each was met as a conversion that stopped, or a file that failed when it was run.
UNKNOWN = {
    "mT": "OpenVINO, Core ML and TorchScript's ONNX have no rule for it; use transpose",
    "mH": "as mT",
    "tensor_split": "Core ML and TorchScript's ONNX have none; use split_with_sizes",
    "unflatten": "ncnn and opset 12 have none, and opset 13 writes the example's sizes; use ops.shapes.unflatten",
    "new_ones": "Core ML has none",
    "new_zeros": "as new_ones",
    "narrow": "ncnn has none; use a slice",
    "std": "ncnn and OpenCV have none",
    "var": "as std",
    "repeat_interleave": "TorchScript's ONNX has none below opset 13",
    "bitwise_and": "Core ML's reader of exported programs does not know &",
    "__and__": "as bitwise_and",
    "__or__": "as bitwise_and",
    "chunk": "ncnn has none for free sizes; use split_with_sizes",
}
# Complex numbers, and kernels that are made as six axes: Core ML, ncnn and OpenCV can't hold FDConv.
COMPLEX = ("fdconv",)
MOST_AXES = 5  # Core ML's limit
PIXEL = ("carafe", "involution")  # have one form
GROUPED = "-2"  # of two groups: the same operations, left to the slow tests; of constant weights one layer is not


def sorted_out(name: str, *more):
    slow = GROUPED in name or ("outputs" in more and name != "odconv-1")
    return pytest.param(name, *more, marks=pytest.mark.slow if slow else ())


every_layer = pytest.mark.parametrize("name", [sorted_out(name) for name in LAYERS])
X = torch.randn(2, 4, 12, 10)
OUTPUTS = [n for n in LAYERS if getattr(LAYERS[n](), "constant_weights", n.endswith("linear"))]
OUTPUTS = [n for n in OUTPUTS if not n.endswith("per_kernel")]
every_graph = pytest.mark.parametrize(
    ("name", "strategy"), [*(sorted_out(n, None) for n in LAYERS), *(sorted_out(n, "outputs") for n in OUTPUTS)]
)


def check(kinds: set[str], most: int, name: str) -> None:
    unknown = {kind: UNKNOWN[kind] for kind in kinds if kind in UNKNOWN}
    assert not unknown
    assert most <= MOST_AXES or name.partition("-")[0] in COMPLEX


@every_graph
def test_a_trace_holds_known_operations_and_warns_of_nothing(name, strategy):
    torch.manual_seed(0)
    layer = excite(LAYERS[name]())
    with warnings.catch_warnings(), torch.no_grad(), cv.ops.strategy(strategy):
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, X)
    nodes = list(traced.inlined_graph.nodes())
    sizes = [out.type().sizes() for node in nodes for out in node.outputs() if out.type().kind() == "TensorType"]
    check({node.kind().removeprefix("aten::") for node in nodes}, max(len(s) for s in sizes if s is not None), name)
    other = torch.randn(3, 4, 15, 11)
    torch.testing.assert_close(traced(other), layer(other), rtol=1e-4, atol=1e-4)


@every_graph
def test_an_exported_program_holds_known_operations(name, strategy):
    torch.manual_seed(0)
    if strategy is None:
        strategy = "auto" if name in PIXEL else "bmm"
    program = cv.export(excite(LAYERS[name]()), X, strategy=strategy, dynamic=())
    nodes = [node for node in program.run_decompositions({}).graph.nodes if node.op == "call_function"]
    most = max(node.meta["val"].ndim for node in nodes if isinstance(node.meta.get("val"), torch.Tensor))
    kinds = {str(node.target).removeprefix("aten.").partition(".")[0] for node in nodes}
    check(kinds, most, name)
    # Torch's ONNX optimiser makes one Unsqueeze of two, which OpenCV does not take.
    inserted = [node for node in nodes if "unsqueeze" in str(node.target)]
    assert not [node for node in inserted if node.args[0] in inserted]


@pytest.mark.parametrize("opset", [pytest.param(12, marks=pytest.mark.slow), 17])
@every_graph
def test_torchscripts_onnx_exporter_frees_batch_and_size(name, strategy, opset, tmp_path):
    """As Ultralytics and mmdeploy call it; no warning either, of a size that the file would keep."""
    from tests.nets import onnx_session

    torch.manual_seed(0)
    layer, path = excite(LAYERS[name]()), tmp_path / "layer.onnx"
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    with cv.ops.strategy(strategy), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(layer, (X,), path, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
    run = onnx_session(path)
    for x in (X, torch.randn(1, 4, 9, 9), torch.randn(5, 4, 15, 18)):
        torch.testing.assert_close(run(x)[0], layer(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [12, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (13, 17))])
@every_layer
def test_torchscripts_onnx_exporter_with_fixed_sizes(name, opset, tmp_path):
    from tests.nets import onnx_session

    torch.manual_seed(0)
    layer, path = excite(LAYERS[name]()), tmp_path / "layer.onnx"
    torch.onnx.export(layer, (X,), path, dynamo=False, opset_version=opset)
    torch.testing.assert_close(onnx_session(path)(X)[0], layer(X).detach(), rtol=1e-4, atol=1e-4)
