# SPDX-License-Identifier: Apache-2.0
"""What deployment costs: accuracy, size and latency of one trained network as float32, int8, ONNX and OpenVINO.

Trains a small network on the embedded images, folds its normalisations, exports it with both strategies, quantises the
one with constant weights to int8 with onnxruntime, and runs all of them on the test images. Latencies are of a batch of
one and interleaved, so that other work on the machine meets every runtime alike; it only adds, so look at the fastest.

    python benchmarks/deploy.py --method odconv --epochs 3
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

import convary as cv
from convary.data import DataSet, augment, epoch_order, generator, load
from convary.models.registry import build
from convary.nn import Router

Run = Callable[[Tensor], Tensor]


class Images(CalibrationDataReader):
    """Batches for onnxruntime's calibration."""

    def __init__(self, name: str, x: Tensor) -> None:
        self.batches = iter([{name: part.numpy()} for part in x.split(64)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self.batches, None)


def train(model: nn.Module, data: DataSet, epochs: int, size: int = 64) -> None:
    """AdamW with one cycle, the temperature going down over the first half."""
    steps = epochs * (len(data.train.labels) // size)
    optimizer = torch.optim.AdamW(cv.param_groups(model, weight_decay=0.05))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    first = [m.first_temperature for m in model.modules() if isinstance(m, Router) and m.temperature is not None]
    annealing = cv.anneal(model, start=min(10.0, *first), steps=steps // 2) if first else None
    model.train()
    for epoch in range(epochs):
        for index in epoch_order(len(data.train.labels), 0, epoch)[: steps // epochs * size].split(size):
            images = augment(data.train.batch(index), generator(int(index[0])), padding=data.padding, flip=data.flip)
            loss = F.cross_entropy(model(data.normalise(images)), data.train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if annealing is not None:
                annealing.step()
        print(f"  epoch {epoch + 1}: loss {float(loss):.3f}", flush=True)


def in_onnxruntime(path: Path) -> Run:
    """A runner, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def in_openvino(path: Path) -> Run:
    """A runner, one thread, float32 arithmetic (by default OpenVINO may take bf16)."""
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino_core().compile_model(str(path), "CPU", options)
    return lambda x: torch.from_numpy(np.array(compiled(x.numpy())[0]))


@functools.cache
def _openvino_core() -> Any:
    """One for the process: two break its signal handlers when they go."""
    import openvino

    return openvino.Core()


def quantise(path: Path, calibration: Tensor) -> Path:
    """Static int8 of the convolutions, per channel; routers stay in float32."""
    target = path.with_name(f"{path.stem}-int8.onnx")
    quantize_static(
        path,
        target,
        Images("x", calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target


def top1(run: Run, data: DataSet) -> float:
    """Percent of the test images."""
    labels = data.test.labels
    right = sum(
        int((run(data.normalise(data.test.batch(index))).argmax(1) == labels[index]).sum())
        for index in torch.arange(len(labels)).split(100)
    )
    return 100 * right / len(labels)


def latencies(runs: dict[str, Run], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 5):
        for name, run in runs.items():
            start = time.perf_counter()
            run(x)
            if turn >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Train, export, quantise, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="odconv", help="a method's name, or static")
    parser.add_argument("--model", default="mobilenet_v2_tiny")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load("fashion-mnist-mini")
    model = build(arguments.model, len(data.classes), data.shape[0], data.shape[1:])
    if arguments.method != "static":
        model = cv.convert(model, cv.method(arguments.method), upcycle=False)
    train(model, data, arguments.epochs)
    model.eval()
    x = data.normalise(data.test.batch(torch.arange(1)))
    exact = cv.fold_norms(model, x) if arguments.method != "static" else model
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        mixed, constant = Path(folder) / "bmm.onnx", Path(folder) / "outputs.onnx"
        with torch.inference_mode(False):
            cv.export(exact, x, mixed)
            cv.export(exact, x, constant, strategy="outputs")
        index = torch.arange(0, len(data.train.labels), len(data.train.labels) // 512)
        int8 = quantise(constant, data.normalise(data.train.batch(index)))
        runs = {
            "torch": model,
            "onnxruntime bmm": in_onnxruntime(mixed),
            "onnxruntime outputs": in_onnxruntime(constant),
        }
        runs |= {"onnxruntime int8": in_onnxruntime(int8)}
        runs |= {"openvino bmm": in_openvino(mixed), "openvino outputs": in_openvino(constant)}
        runs |= {"openvino int8": in_openvino(int8)}
        sizes = {"bmm": mixed, "outputs": constant, "int8": int8}
        batch = data.normalise(data.test.batch(torch.arange(64)))
        want = model(batch)
        times = latencies(runs, x, arguments.rounds)
        print(f"| {arguments.method} | top-1 % | file, KiB | largest change of a score | ms: fastest, median |")
        print("|---|---|---|---|---|")
        for name, run in runs.items():
            file = sizes.get(name.split()[-1])
            size = f"{file.stat().st_size / 1024:.0f}" if file else "-"
            fastest, middle = min(times[name]), statistics.median(times[name])
            change = float((run(batch) - want).abs().max())
            print(f"| {name} | {top1(run, data):.2f} | {size} | {change:.2g} | {fastest:.2f}, {middle:.2f} |")


if __name__ == "__main__":
    main()
