# SPDX-License-Identifier: Apache-2.0
"""Where the time of an exported ONNX file goes, by onnxruntime's own profile."""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convary._exported import onnx_nodes, session_options
from convary._per_image import LOOP
from convary.extras import require

CONVOLUTIONS = ("Conv", "MixedConv", "SampleConv")
FUSED = ("BatchNormalization", "Relu", "Clip", "Add", "Sigmoid")  # with a convolution before
RUNS, WARM_UP = 30, 3


def layer_times(path: Path, x: Tensor) -> dict[str, float]:
    """Milliseconds of each layer, by one thread: medians of its nodes, added up, in the order in which they run.

    A layer is a convolution by its name in the model, with its router and what is fused with it, or a module that no
    convolution is in. What onnxruntime adds by itself is the time of ``(between)``.

    Args:
        path: An ONNX file that ``convary.export`` wrote.
        x: Its input.

    Raises:
        MissingExtraError: without onnx or onnxruntime.
    """
    require("times of layers", "export", "onnx", "onnxruntime")
    layers = _layers(onnx_nodes(path))
    found: dict[str, float] = {}
    for name, times in _profile(path, x).items():
        if name == LOOP:  # whose nodes are there beside it
            continue
        layer = layers.get(name.removesuffix("_nchwc"), "(between)")
        found[layer] = found.get(layer, 0.0) + statistics.median(times[WARM_UP:]) / 1e3
    return found


def _profile(path: Path, x: Tensor) -> dict[str, list[float]]:
    """Microseconds of every run of every node, by its name."""
    runtime: Any = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x.numpy()}
        for _ in range(RUNS + WARM_UP):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
    return times


def _layers(nodes: Any) -> Mapping[str, str]:
    """The layer of each node, by the node's name and, as onnxruntime calls what it has fused, by its outputs'."""
    makers = {output: node for node in nodes for output in node.output}
    own = {id(node): _path(node) for node in nodes}
    convolutions = [own[id(node)] for node in nodes if node.op_type in CONVOLUTIONS]

    def convolution(node: Any) -> str | None:
        """Of a node that is one, or follows one directly: it may be fused with it."""
        if node.op_type in CONVOLUTIONS:
            return own[id(node)]
        before = makers.get(node.input[0]) if node.op_type in FUSED else None
        return None if before is None else convolution(before)

    def inside(path: str) -> str | None:
        """The convolution that a router's node is in."""
        return next((layer for layer in convolutions if path.startswith(f"{layer}.")), None)

    found = {}
    for node in nodes:
        path = own[id(node)]
        layer = path if path in convolutions else inside(path) or convolution(node) or path
        for name in (node.name, *node.output):
            found[name] = layer
    return found


def _path(node: Any) -> str:
    """The innermost module that a node comes from; a convolution says so by its weight, if it has a constant one."""
    weight = node.input[1] if node.op_type in CONVOLUTIONS else ""
    if ".weight" in weight:  # its scope is that of the normalisation that was folded into it
        return weight.rpartition(".weight")[0]
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = json.loads(entry.value.replace("'", '"'))
            return next((scope for scope in reversed(scopes[:-1]) if scope), "(network)")
    return "(network)"
