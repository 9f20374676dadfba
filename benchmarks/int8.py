# SPDX-License-Identifier: Apache-2.0
"""int8 of a network of real size in onnxruntime: time, and whether it still says what float32 says.

Each of static float32, static int8, dynamic float32 (one image, mixed kernels), dynamic int8 of the layers with
constant kernels in that file, and dynamic int8 with all K kernels constant ("outputs"). Calls take turns. The
photographs are scikit-image's, cut into squares; weights are random unless --weights names a state dict of the static
network, so agreement of the highest score is of the arithmetic, not an accuracy.

    python benchmarks/int8.py --model resnet18 --method condconv
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torchvision
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from skimage import data as photographs
from torch import Tensor, nn

import convary as cv
from convary.nn import Router

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "cat", "motorcycle_left", "retina", "immunohistochemistry")


def images(side: int = 224) -> Tensor:
    """Squares (N, 3, side, side) of photographs, normalised as for ImageNet."""
    found = []
    for name in NAMES:
        try:
            photo = getattr(photographs, name)()
        except (AttributeError, OSError, ModuleNotFoundError):  # not every installation has all of them
            continue
        photo = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1).float() / 255
        found += [photo[:, y : y + side, x : x + side] for y in range(0, photo.shape[1] - side + 1, side // 2)
                  for x in range(0, photo.shape[2] - side + 1, side // 2)]  # fmt: skip
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.stack(found) - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)


class Images(CalibrationDataReader):
    """One image at a time, as the files take them."""

    def __init__(self, name: str, x: Tensor) -> None:
        self.batches = iter([{name: one.numpy()} for one in x.split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image."""
        return next(self.batches, None)


@torch.no_grad()
def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Statistics of normalisations from the photographs, and routers that tell them apart: weights are random."""
    for module in model.modules():
        if isinstance(module, Router):
            if module.temperature is not None:
                module.temperature.fill_(module.final_temperature)
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
    model.train()
    for _ in range(10):
        model(x[torch.randperm(len(x))[:16]])
    return model.eval()


def quantised(path: Path, calibration: Tensor) -> Path:
    """Convolutions and products with constant weights in int8; what mixes and routes stays as it is."""
    ready, target = path.with_suffix(".ready.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    graph = onnx.load(ready).graph
    constant = {tensor.name for tensor in graph.initializer}
    convs = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in constant]
    quantize_static(
        ready, target, Images(graph.input[0].name, calibration), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["Conv"], nodes_to_quantize=[node.name for node in convs],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return target


def session(path: Path, profile: bool = False) -> ort.InferenceSession:
    """One thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, profile
    options.profile_file_prefix = str(path.with_suffix(""))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def scores(run: ort.InferenceSession, x: Tensor) -> np.ndarray:
    """Of each image."""
    name = run.get_inputs()[0].name
    return np.concatenate([run.run(None, {name: one.numpy()})[0] for one in x.split(1)])


def times(runs: dict[str, ort.InferenceSession], x: Tensor, rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of processor time, in turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    feed = {name: {run.get_inputs()[0].name: x[:1].numpy()} for name, run in runs.items()}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            start = time.process_time()
            run.run(None, feed[name])
            if turn >= 3:
                found[name].append(1e3 * (time.process_time() - start))
    return {name: np.array(values) for name, values in found.items()}


def profile(path: Path, x: Tensor, rounds: int = 20) -> str:
    """The share of the kinds of node in the time of a file."""
    import json

    run = session(path, profile=True)
    for _ in range(rounds):
        run.run(None, {run.get_inputs()[0].name: x[:1].numpy()})
    events = json.loads(Path(run.end_profiling()).read_text())
    spent: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] = spent.get(kind, 0) + event["dur"] / 1e3 / rounds
    kinds = sorted(spent, key=lambda kind: -spent[kind])[:7]
    return ", ".join(f"{kind} {spent[kind]:.1f}" for kind in kinds)


def main() -> None:
    """Build, export, quantise, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="of torchvision")
    parser.add_argument("--method", default="condconv")
    parser.add_argument("--weights", type=Path, help="a state dict of the static network")
    parser.add_argument("--rounds", type=int, default=40)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = images()
    static = getattr(torchvision.models, flags.model)(weights=None)
    if flags.weights is not None:
        static.load_state_dict(torch.load(flags.weights))
    dynamic = settled(cv.convert(static, cv.method(flags.method), noise=1.0), x)
    static = settled(static, x) if flags.weights is None else static.eval()
    calibration, test = x[::2], x[1::2]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("static", "grouped", "outputs")}
        cv.export(static, x[:1], files["static"], dynamic=())
        cv.export(dynamic, x[:1], files["grouped"], dynamic=())
        cv.export(dynamic, x[:1], files["outputs"], dynamic=(), strategy="outputs")
        files |= {f"{name} int8": quantised(path, calibration) for name, path in list(files.items())}
        runs = {name: session(path) for name, path in files.items()}
        found = {name: scores(run, test) for name, run in runs.items()}
        print(
            f"{flags.model}, {flags.method}; {platform.machine()}, onnxruntime {ort.__version__}, one thread, "
            f"one image, {flags.rounds} rounds, {len(calibration)} squares to calibrate, {len(test)} to compare"
        )
        print("| file | ms (processor) | time / static float32 | highest score as float32's, % | error of the scores |")
        print("|---|---|---|---|---|")
        taken = times(runs, x, flags.rounds)
        for name, ms in taken.items():
            ratio = ms / taken["static"]
            low, high = np.percentile(ratio, [10, 90])
            want = found["static" if name.startswith("static") else "grouped"]
            same = 100 * (found[name].argmax(1) == want.argmax(1)).mean()
            error = np.linalg.norm(found[name] - want) / np.linalg.norm(want - want.mean(0))
            taking = f"{np.median(ms):.1f} | {np.median(ratio):.2f} ({low:.2f} to {high:.2f})"
            print(f"| {name} | {taking} | {same:.1f} | {error:.3f} |")
        for name, path in files.items():
            print(f"{name}: ms by kind of node: {profile(path, x)}")


if __name__ == "__main__":
    main()
