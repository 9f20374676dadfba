# SPDX-License-Identifier: Apache-2.0
"""int8: onnxruntime quantises the graph with constant weights, and the result stays near."""

import pytest
import torch
from torch import nn

import convary as cv
from tests.nets import all_but_one_slow, excite

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
quantization = pytest.importorskip("onnxruntime.quantization")
pytest.importorskip("onnxscript")


class Batches(quantization.CalibrationDataReader):
    def __init__(self, name: str, *batches: torch.Tensor):
        self.batches = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.support("int8")
@all_but_one_slow()
def test_static_int8(config, tmp_path):
    if not config.constant_weights:
        pytest.skip("its kernels are assembled per sample: there are no constant weights to quantise")
    torch.manual_seed(0)
    layer = excite(config.build(nn.Conv2d(16, 24, 3, padding=1)))
    x = torch.randn(16, 16, 8, 8)
    cv.export(layer, x[:2], tmp_path / "float.onnx", strategy="outputs")
    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        Batches("x", x),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    graph = onnx.load(tmp_path / "int8.onnx").graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    banks = [name for name, kind in weights.items() if kind == onnx.TensorProto.INT8 and name.endswith("_quantized")]
    assert len(banks) == 1 + hasattr(layer, "q")  # the bank (DCD: W0 and Q), and nothing of the router
    session = ort.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    for batch in (x[:3], x[5:10, :, :6]):  # another batch and size than was exported
        got, want = torch.from_numpy(session.run(None, {"x": batch.numpy()})[0]), layer(batch)
        assert 1e-6 < (got - want).norm() / want.norm() < 0.03
