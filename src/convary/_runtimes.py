# SPDX-License-Identifier: Apache-2.0
"""The runtimes that may be here to run an exported file, each in float32, and whether one takes it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convary._exported import onnx_nodes, open_exported
from convary.errors import CheckpointError, ConvaryError

Run = Callable[[Tensor], Tensor]


class Runtime(NamedTuple):
    """What runs files.

    Attributes:
        module: What must be installed.
        open: From a file and a number of threads to what runs it.
        errors: What it raises for a file that it does not take.
    """

    module: str
    open: Callable[[Path, int], Run]
    errors: Callable[[], tuple[type[Exception], ...]]


class RefusedError(ConvaryError):
    """A runtime does not take a file: its own words, and the layer if they name a node."""


def of_file(path: Path, runtime: str = "any") -> dict[str, Runtime]:
    """By name, the runtimes that are meant to read a file that was written for ``runtime`` (of ``convary.export``)."""
    if path.suffix == ".pt2":
        return {"torch": _TORCH}
    if runtime == "any":
        return _ONNX
    name = "OpenVINO" if runtime == "openvino" else "onnxruntime"
    return {name: _ONNX[name]}


def opened(runtime: Runtime, path: Path, threads: int, x: Tensor) -> Run | None:
    """What runs a file, tried on x once; None where the runtime is not installed.

    Raises:
        RefusedError: it does not take the file.
    """
    if importlib.util.find_spec(runtime.module) is None:
        return None
    try:
        run = runtime.open(path, threads)
        run(x)
    except runtime.errors() as error:
        raise RefusedError(_words(error, path)) from error
    return run


def _words(error: Exception, path: Path) -> str:
    """The line of an error that says something, and the layer of the node that it names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    inner = [line.lstrip("> ") for line in lines if line.startswith(">")]  # OpenCV's second line is the reason
    words = next((line for line in inner + lines if "error" in line.lower() or "not " in line.lower()), lines[0])
    if path.suffix != ".onnx":
        return words
    nodes = onnx_nodes(path)
    said = set(re.findall(r"[\w.:/]+", str(error)))  # whole words: conv2d is in the name of conv2d_2
    named = [node for node in nodes if said.intersection((node.name, *node.output))]
    scopes = [prop.value for node in named for prop in node.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"]
    layers = [[part for part in scope.strip("[]").replace("'", "").split(", ") if part] for scope in scopes]
    layer = next((parts[-2] for parts in layers if len(parts) > 1 and not parts[-2].startswith("_empty_nn")), None)
    return words if layer is None else f"{words} (layer {layer!r})"


def _by_torch_or_onnxruntime(path: Path, threads: int) -> Run:
    return open_exported(path, threads).run


def _openvino(path: Path, threads: int) -> Run:
    """In float32: by default OpenVINO may take bf16."""
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino_core().compile_model(str(path), "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())


@functools.cache
def _openvino_core() -> Any:
    """One for the process, and kept.

    Each brings a stack for signal handlers. Where the first of two goes first, the second, when it goes, puts the
    freed stack of the first back, and the next signal ends the process (seen in OpenVINO 2026.4).
    """
    return importlib.import_module("openvino").Core()


def _opencv(path: Path, threads: int) -> Run:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(threads)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it refuses it also says in the error
    net = cv2.dnn.readNetFromONNX(str(path))

    def run(x: Tensor) -> Tensor:
        net.setInput(x.numpy())
        return torch.from_numpy(net.forward())

    return run


def _opencv_errors() -> tuple[type[Exception], ...]:
    return (importlib.import_module("cv2").error,)


_TORCH = Runtime("torch", _by_torch_or_onnxruntime, lambda: (CheckpointError,))
_ONNX = {
    "onnxruntime": Runtime("onnxruntime", _by_torch_or_onnxruntime, lambda: (CheckpointError,)),
    "OpenVINO": Runtime("openvino", _openvino, lambda: (RuntimeError,)),
    "OpenCV": Runtime("cv2", _opencv, _opencv_errors),
}
