# SPDX-License-Identifier: Apache-2.0
"""What an exported file costs against the static network's: latency, nodes and time to export, by runtime.

Every file is compared with torch before it is timed. Latency is of one image on one thread, in turns with the static
network's file in the same process: the median of the pairwise ratios, with its 10th and 90th percentiles. All times are
the process's own, so that waiting for other work on the machine does not count.

    python benchmarks/exported.py --models torchvision:mobilenet_v2 --methods condconv odconv
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import convary as cv
from convary.bench.machine import load
from convary.bench.models import networks, step
from convary.bench.timing import interleave

TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of the largest score
FORMS = {"image": (), "batch": (0,)}  # a file for one image, or for any batch: which axes are free


def in_onnxruntime(path: Path, x: Tensor) -> Callable[[], np.ndarray]:
    """Runs x through a file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(cv.custom_ops_library())
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def in_openvino(path: Path, x: Tensor) -> Callable[[], np.ndarray]:
    """Runs x through a file on one thread, in float32 (by default OpenVINO may take bf16)."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    feed = x.numpy()
    return lambda: compiled(feed)[0]


BF16 = {"runtime": "convary", "bank_dtype": torch.bfloat16}  # rounded weights: another tolerance
RUNTIMES: dict[str, tuple[Callable, dict[str, Any]]] = {  # what runs a file, and how it is exported
    "onnxruntime": (in_onnxruntime, {}),
    "onnxruntime alone": (in_onnxruntime, {"runtime": "onnxruntime"}),
    "onnxruntime convary": (in_onnxruntime, {"runtime": "convary"}),
    "onnxruntime convary bf16": (in_onnxruntime, BF16),
    "openvino": (in_openvino, {}),
}


def export(model: nn.Module, x: Tensor, path: Path, arguments: argparse.Namespace, **how: Any) -> float:
    """Seconds of this process that it took."""
    how = {"strategy": arguments.strategy} | how if how.get("runtime") != "convary" else how
    start = time.process_time()
    cv.export(model, x, path, dynamic=FORMS[arguments.form], **how)
    return time.process_time() - start


def nodes(path: Path) -> int:
    """Of the file."""
    return len(onnx.load(path, load_external_data=False).graph.node)


def lines(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Print the lines of one network."""
    x = torch.randn(1, 3, arguments.size, arguments.size, generator=torch.Generator().manual_seed(0))
    static_file, first = folder / "static.onnx", True
    for method in arguments.methods:
        static, dynamic = networks(name, method, arguments.size)
        if first:
            export(static.eval(), x, folder / "warm.onnx", arguments)  # the first export of a process
            base_seconds, first = export(static, x, static_file, arguments), False
            eager, base = step(static, x, "inference"), in_onnxruntime(static_file, x)
            t = interleave(eager, base, arguments.seconds, time.process_time)
            cost = f"**{t.ratio:.2f}** ({t.low:.2f} to {t.high:.2f}) | {t.ms:.1f} / {t.base_ms:.1f}"
            print(f"| {name} | static | eager torch | - | {cost} | - | - | - |", flush=True)
        with torch.no_grad():
            want = dynamic.eval()(x).numpy()
        for runtime in arguments.runtimes:
            run, how = RUNTIMES[runtime]
            file = folder / f"{method}-{runtime}.onnx"
            seconds = export(dynamic, x, file, arguments, **how)
            ours, base = run(file, x), run(static_file, x)
            error = float(np.abs(ours() - want).max() / np.abs(want).max())
            what = f"| {name} | {method} | {runtime} | {arguments.form} |"
            if not error < (HALF_TOLERANCE if how is BF16 else TOLERANCE):
                print(what, f"WRONG: off by {error:.1e} from torch; not timed |")
                continue
            t = interleave(ours, base, arguments.seconds, time.process_time)
            cost = f"**{t.ratio:.2f}** ({t.low:.2f} to {t.high:.2f}) | {t.ms:.1f} / {t.base_ms:.1f}"
            size = f"{nodes(file)} / {nodes(static_file)} | {seconds:.1f} / {base_seconds:.1f}"
            print(what, f"{cost} | {size} | {error:.0e} |", flush=True)


def main() -> None:
    """Export, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["torchvision:mobilenet_v2", "torchvision:resnet18"])
    parser.add_argument("--methods", nargs="+", default=["condconv", "dyconv", "odconv"])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--form", default="image", choices=list(FORMS))
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | method | runtime | file for | time / static's | ms | nodes | seconds to export | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            lines(name, arguments, Path(folder))
    print(f"load {load()}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
