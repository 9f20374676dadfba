# SPDX-License-Identifier: Apache-2.0
"""Files that run the graph of one image for each of a batch."""

import pytest
import torch
from torch import nn

import convary as cv
from convary import _per_image, ops
from convary._exported import onnx_nodes
from convary._layer_times import layer_times
from convary._runtimes import of_file
from convary.methods import METHODS

pytest.importorskip("onnxruntime")


def loops(path):
    return [node.op_type for node in onnx_nodes(path)].count("Loop")


def assert_right(path, model, sizes, runtimes=("onnxruntime",)):
    """At every batch, an empty one too."""
    for name in runtimes:
        run = of_file(path)[name].open(path, 1)
        for batch in (0, 1, 3):
            for size in sizes:
                x = torch.randn(batch, 4, *size)
                with torch.no_grad():
                    want = model(x)
                torch.testing.assert_close(run(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_method(config, runtime, tmp_path):
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, groups=16))
    plain = nn.Sequential(*layers, nn.Conv2d(16, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = cv.convert(plain, config(), cv.where.all(), upcycle=False).eval()
    free = (0,) if runtime == "openvino" else None
    cv.export(model, (1, 4, 20, 20), tmp_path / "m.onnx", dynamic=free, runtime=runtime)
    forms = {form.strategy for form in cv.export_forms(tmp_path / "m.onnx")}
    assert loops(tmp_path / "m.onnx") == len(forms) and forms == (set() if config is cv.DCD else {"grouped"})
    runtimes = ("onnxruntime",)
    if runtime == "openvino":
        pytest.importorskip("openvino")
        runtimes += ("OpenVINO",)
    assert_right(tmp_path / "m.onnx", model, [(20, 20)] if free else [(20, 20), (23, 30)], runtimes)


def test_it_is_faster_written_and_right(tmp_path):
    model, path = nn.Sequential(cv.ODConv2d(4, 16, 3), nn.ReLU()).eval(), tmp_path / "m.onnx"
    program = cv.export(model, (2, 4, 20, 20), path, dynamic=(0,), runtime="onnxruntime")
    assert loops(path) == 1 and program.module()(torch.ones(1, 4, 20, 20)).shape == (1, 16, 18, 18)
    assert_right(path, model, [(20, 20)])
    assert layer_times(path, torch.randn(2, 4, 20, 20)).keys() == {"0", "(network)", "(between)"}
    cv.export(model, (2, 4, 20, 20), path, dynamic=(0,), runtime="onnxruntime", strategy="bmm")
    assert loops(path) == 0
    assert_right(path, model, [(20, 20)])


def test_a_static_network_needs_no_loop(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 8, 3)).eval()
    for runtime in ("onnxruntime", "openvino"):
        cv.export(model, (1, 4, 8, 8), tmp_path / "m.onnx", dynamic=(0,), runtime=runtime)
        assert loops(tmp_path / "m.onnx") == 0
        assert_right(tmp_path / "m.onnx", model, [(8, 8)])


class Two(nn.Module):
    """Kernels as an input, and two outputs."""

    def forward(self, x, weight):
        y = ops.sample_conv(x, weight)
        return y, y.mean((2, 3))


def test_several_inputs_and_outputs(tmp_path):
    import onnxruntime

    path, inputs = tmp_path / "m.onnx", (torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 3, 3))
    cv.export(Two(), inputs, path, dynamic=(0,), runtime="onnxruntime")
    assert loops(path) == 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x, weight = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 4, 3, 3)
    feed = dict(zip((given.name for given in session.get_inputs()), (x.numpy(), weight.numpy()), strict=True))
    for got, want in zip(session.run(None, feed), Two()(x, weight), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)


class Centred(nn.Module):
    """Subtracts what the images of a batch have in common."""

    def __init__(self, *, answer: str) -> None:
        super().__init__()
        self.layer, self.answer = cv.CondConv2d(4, 4, 3, experts=2), answer

    def forward(self, x):
        y = self.layer(x)
        return {"difference": y - y.mean(0, keepdim=True), "sum": y.sum(0), "named": {"y": y}}[self.answer]


@pytest.mark.parametrize("answer", ["difference", "sum", "named"])
def test_images_that_depend_on_each_other_are_not_taken_apart(answer, tmp_path):
    model, path = Centred(answer=answer).eval(), tmp_path / "m.onnx"
    cv.export(model, (2, 4, 8, 8), path, dynamic=(0,), runtime="onnxruntime")
    assert loops(path) == 0
    if answer == "difference":
        assert_right(path, model, [(8, 8)])
    with pytest.raises(cv.ExportError, match=r"takes images one by one, but Centred makes something else of two"):
        cv.export(model, (2, 4, 8, 8), tmp_path / "no.onnx", dynamic=(0,), runtime="openvino")
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(config, rank, tmp_path):
    torch.manual_seed(0)
    conv, size = (nn.Conv1d, nn.Conv3d)[rank == 3], (9, 8, 7)[:rank]
    plain = nn.Sequential(conv(4, 8, 3, padding=1), nn.ReLU(), conv(8, 8, 3, groups=8), nn.ReLU(), conv(8, 6, 1))
    model = cv.convert(plain, config(), cv.where.all(), upcycle=False).eval()
    cv.export(model, (1, 4, *size), tmp_path / "m.onnx", dynamic=(0,), runtime="onnxruntime")
    assert loops(tmp_path / "m.onnx") == (config is not cv.DCD)
    assert_right(tmp_path / "m.onnx", model, [size])


def test_numbers_that_onnxruntime_has_no_convolution_for(tmp_path):
    model, x = nn.Sequential(cv.ODConv2d(4, 6, 3)).double().eval(), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    cv.export(model, x, tmp_path / "m.onnx", dynamic=(0,), runtime="onnxruntime")
    assert loops(tmp_path / "m.onnx") == 0
    torch.testing.assert_close(of_file(tmp_path / "m.onnx")["onnxruntime"].open(tmp_path / "m.onnx", 1)(x), model(x))


def test_weights_of_a_large_model_lie_beside_the_file(tmp_path, monkeypatch):
    program = pytest.importorskip("torch.onnx._internal.exporter._onnx_program")
    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 1000)
    monkeypatch.setattr(_per_image, "LARGE", 1000)
    model = nn.Sequential(cv.ODConv2d(4, 64, 3)).eval()
    cv.export(model, (1, 4, 9, 9), tmp_path / "m.onnx", dynamic=(0,), runtime="onnxruntime")
    assert (tmp_path / "m.onnx.data").stat().st_size > (tmp_path / "m.onnx").stat().st_size
    assert_right(tmp_path / "m.onnx", model, [(9, 9)])
