# SPDX-License-Identifier: Apache-2.0
"""The real converters, on every method and every layer with generated kernels, in both graphs where there are two.

What a converter cannot take is listed with the words that it says, and is an error that the test expects.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convary as cv
from convary import METHODS, ops
from convary._runtimes import _openvino_core
from convary.models import build
from tests.nets import excite, onnx_session
from tests.variants import LAYERS

pytestmark = pytest.mark.slow


class Unconverted(Exception):
    """Operations that pnnx left as it found them."""


def core_ml(layer: nn.Module, strategy: str, folder: Path) -> None:
    """By export and by trace; a converted model runs on Apple's machines only."""
    ct = pytest.importorskip("coremltools")
    x = torch.randn(1, 4, 12, 10)
    program = cv.export(layer, x, strategy=strategy, dynamic=()).run_decompositions({})
    ct.convert(program, convert_to="mlprogram")
    ct.convert(traced(layer, strategy, x), inputs=[ct.TensorType(shape=tuple(x.shape))], convert_to="mlprogram")


def ncnn(layer: nn.Module, strategy: str, folder: Path) -> float:
    """One sample of one size, by pnnx."""
    pytest.importorskip("pnnx")
    runtime = pytest.importorskip("ncnn")
    x = torch.randn(1, 4, 12, 10)
    traced(layer, strategy, x).save(folder / "m.pt")
    command = [Path(sys.executable).parent / "pnnx", folder / "m.pt", "inputshape=[1,4,12,10]", "fp16=0"]
    if not command[0].exists():  # the environment stands on another one's packages
        command[0] = Path(pytest.importorskip("pnnx").__file__).parents[4] / "bin" / "pnnx"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (folder / "m.ncnn.param").exists(), done.stderr
    kinds = {line.split()[0] for line in (folder / "m.ncnn.param").read_text().splitlines()[2:]}
    if left := sorted(kind for kind in kinds if "." in kind or "::" in kind):
        raise Unconverted(", ".join(left))
    with runtime.Net() as net:
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.load_param(str(folder / "m.ncnn.param"))
        net.load_model(str(folder / "m.ncnn.bin"))
        with net.create_extractor() as run:
            run.input("in0", runtime.Mat(x[0].numpy()).clone())
            y = torch.tensor(run.extract("out0")[1].numpy())
    return error(y.reshape(1, *y.shape), layer, x)


def openvino(layer: nn.Module, strategy: str, folder: Path) -> float:
    """From the torch module, run at another batch and size."""
    ov = pytest.importorskip("openvino")
    x = torch.randn(3, 4, 15, 11)
    with ops.strategy(forced(strategy)):
        model = ov.convert_model(layer, example_input=torch.randn(1, 4, 12, 10))
    one = {"INFERENCE_NUM_THREADS": 1}  # more would wait by spinning, beside another worker
    compiled = _openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **one})
    return error(torch.from_numpy(compiled(x.numpy())[0]), layer, x)


def opencv(layer: nn.Module, strategy: str, folder: Path) -> float:
    """The ONNX file of one size."""
    cv2 = pytest.importorskip("cv2")
    x = torch.randn(1, 4, 12, 10)
    cv.export(layer, x, folder / "m.onnx", strategy=strategy, dynamic=())
    net = cv2.dnn.readNetFromONNX(str(folder / "m.onnx"))
    net.setInput(x.numpy())
    return error(torch.from_numpy(net.forward()), layer, x)


def torchscript_onnx(layer: nn.Module, strategy: str, folder: Path) -> float:
    """As Ultralytics and mmdeploy call torch's older exporter; run at another batch and size."""
    x = torch.randn(5, 4, 15, 18)
    with ops.strategy(forced(strategy)):
        torch.onnx.export(
            layer, (torch.randn(2, 4, 12, 10),), folder / "m.onnx", dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}},
        )  # fmt: skip
    return error(onnx_session(folder / "m.onnx")(x)[0], layer, x)


def forced(strategy: str) -> str | None:
    return None if strategy in ("auto", "bmm") else strategy


def traced(layer: nn.Module, strategy: str, x: Tensor):
    with torch.no_grad(), ops.strategy(forced(strategy)):
        return torch.jit.trace(layer, x)


@torch.no_grad()
def error(y: Tensor, layer: nn.Module, x: Tensor) -> float:
    want = layer(x)
    assert y.shape == want.shape
    return float((y - want).abs().max() / want.abs().max())


RUNTIMES = {
    "TorchScript ONNX": torchscript_onnx,
    "OpenVINO": openvino,
    "OpenCV": opencv,
    "Core ML": core_ml,
    "ncnn": ncnn,
}
TOLERANCE = {"ncnn": 2e-3}  # its own convolution algorithms; the others are within 1e-4
# What each says of what it can't take.
LIMITS = {
    ("OpenCV", "fdconv"): "DFT",
    ("Core ML", "fdconv"): "complex",
    ("ncnn", "fdconv"): "torch.fft",
    ("ncnn", "kernelwarehouse"): "Tensor.reshape",  # one that touches the batch axis
    ("ncnn", "involution"): "Tensor.slice",  # one with a step
}
every_runtime = pytest.mark.parametrize(
    "runtime", [pytest.param(name, marks=pytest.mark.support(name)) for name in RUNTIMES]
)


def check(runtime: str, name: str, layer: nn.Module, strategy: str, folder: Path) -> bool:
    """Whether it is converted, and right where it can run; an error that was not expected is raised."""
    limit = LIMITS.get((runtime, name))
    if limit is None:
        found = RUNTIMES[runtime](layer, strategy, folder)
        assert found is None or found < TOLERANCE.get(runtime, 1e-4)
        return True
    with pytest.raises(Exception, match=re.escape(limit)):
        RUNTIMES[runtime](layer, strategy, folder)
    return False


@every_runtime
@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
def test_methods(runtime, config, tmp_path, record_property):
    torch.manual_seed(0)
    # Without groups, outputs makes a part of the graph that it makes with two; tests/test_front_ends.py has both.
    for strategy, groups in (("bmm", 1), ("bmm", 2), ("outputs", 2))[: 3 if config.constant_weights else 2]:
        layer = excite(config.build(nn.Conv2d(4, 6, 3, padding=1, groups=groups)))
        folder = tmp_path / f"{strategy}{groups}"
        folder.mkdir()
        if not check(runtime, config.name, layer, strategy, folder):
            record_property("support", "no")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["carafe", "involution", "dmnet", "mixedlinear", "dcdlinear", "dcd-1-basic"])
def test_other_layers(runtime, name, tmp_path):
    torch.manual_seed(0)
    strategy = "auto" if name in ("carafe", "involution") else "bmm"  # kernels per position have one form
    check(runtime, name, excite(LAYERS[name]()), strategy, tmp_path)


def test_openvino_leaves_signals_as_they_were(tmp_path):
    """Two files, closed in the order in which they were opened, then the signal of a child that ends."""
    pytest.importorskip("openvino")
    for name in ("one", "two"):
        cv.export(nn.Conv2d(3, 4, 3), (1, 3, 8, 8), tmp_path / f"{name}.onnx", dynamic=())
    program = """
import gc, pathlib, signal, subprocess, sys, torch
from convary._runtimes import of_file, opened
x, signals = torch.randn(1, 3, 8, 8), []
files = [pathlib.Path(name) for name in ("one.onnx", "two.onnx")]
one, two = (opened(of_file(file)["OpenVINO"], file, 1, x) for file in files)
one(x), two(x)
del one; gc.collect()
del two; gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: signals.append(1))
subprocess.run([sys.executable, "-c", ""], check=True)
assert signals
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


@pytest.mark.parametrize("name", ["mobilenet_v2_tiny", "resnet20@0.5"])
@pytest.mark.parametrize("config", [config() for config in METHODS], ids=lambda config: config.name)
def test_a_whole_network_in_opencv(config, name, tmp_path):
    """With statistics that have moved, so that norms become biases of convolutions whose kernels are computed."""
    if limit := LIMITS.get(("OpenCV", config.name)):
        pytest.skip(f"does not take {limit}")
    torch.manual_seed(0)
    static = build(name, 4, 3)
    with torch.no_grad():
        for _ in range(5):
            static(torch.randn(8, 3, 32, 32))
    layer = excite(cv.convert(static, config)).eval()
    cv2 = pytest.importorskip("cv2")
    x = torch.randn(1, 3, 32, 32)
    cv.export(layer, x, tmp_path / "m.onnx", dynamic=())
    net = cv2.dnn.readNetFromONNX(str(tmp_path / "m.onnx"))
    net.enableFusion(config.name != "kernelwarehouse")  # of a constant factor into a kernel that is computed: fails
    net.setInput(x.numpy())
    assert error(torch.from_numpy(net.forward()), layer, x) < 2e-3  # its Winograd costs digits in each of twenty layers
    assert error(onnx_session(tmp_path / "m.onnx")(x)[0], layer, x) < 1e-4
