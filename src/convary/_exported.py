# SPDX-License-Identifier: Apache-2.0
"""A file that ``convary.export`` wrote, opened: what it says of itself, and what runs it."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convary.errors import CheckpointError, ConfigError
from convary.extras import require
from convary.ops import native
from convary.ops.native import library

SUFFIXES = (".onnx", ".pt2")
FORMS = "convary.forms"  # the key of the metadata of a program and of a file
EACH_IMAGE = "convary.each_image"  # of a program: whether its file runs it for each image of a batch


class ExportForm(NamedTuple):
    """How one dynamic layer was written.

    Attributes:
        layer: Its name in the model.
        op: What it calls: "mixed_conv", "sample_conv" or "pixel_conv".
        strategy: Of that op.
        reason: What the strategy does, and why no other was taken.
    """

    layer: str
    op: str
    strategy: str
    reason: str


@dataclass(frozen=True)
class Exported:
    """An exported network of one input.

    Attributes:
        by: What runs it.
        batch: How many samples it takes at a time; None is any number.
        run: From (B, C, *S) to its first output.
    """

    by: str
    batch: int | None
    run: Callable[[Tensor], Tensor]


def open_exported(path: Path, threads: int = 0) -> Exported:
    """What runs a file on the CPU.

    Args:
        path: Of one of ``SUFFIXES``.
        threads: Of onnxruntime; 0 is its own choice.

    Raises:
        CheckpointError: a truncated file, or one of something else.
        MissingExtraError: ONNX without onnxruntime.
    """
    if path.suffix == ".pt2":
        program = _program(path, {})
        name = next(iter(program.graph_signature.user_inputs))
        size = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape[0]
        return Exported("torch", size if isinstance(size, int) else None, program.module())
    require(f"running {path}", "export", "onnxruntime")
    session = _session(path, threads)
    (first, *_) = session.get_inputs()

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {first.name: x.numpy()})[0])

    size = first.shape[0]
    return Exported("onnxruntime", size if isinstance(size, int) else None, run)


def export_forms(source: torch.export.ExportedProgram | str | Path) -> list[ExportForm]:
    """How each dynamic layer was written into a program or a file, in the order in which they run.

    Args:
        source: What ``export`` returned, or a file that it wrote.

    Raises:
        ConfigError: a file that ``export`` did not write.
        CheckpointError: a truncated file, or one of something else.

    >>> from convary import CondConv2d, export
    >>> layer = torch.nn.Sequential(CondConv2d(3, 4, 3, experts=2))
    >>> for form in export_forms(export(layer, torch.randn(1, 3, 8, 8), dynamic=())):
    ...     print(form.layer, form.strategy)
    0 grouped
    """
    if isinstance(source, torch.export.ExportedProgram):
        return source.graph_module.meta[FORMS]
    held = note(Path(source), FORMS)
    if not held:
        raise ConfigError(f"{str(source)!r} says nothing of its dynamic layers; convary.export writes that into a file")
    return [ExportForm(*row) for row in json.loads(held)]


def onnx_nodes(path: Path) -> list[Any]:
    """The nodes of an ONNX file, those inside a loop included, in the order in which they run."""
    onnx: Any = importlib.import_module("onnx")

    def inside(graph: Any) -> Iterator[Any]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from inside(attribute.g)

    return list(inside(onnx.load(path, load_external_data=False).graph))


def note(path: Path, key: str) -> str:
    """What ``convary.export`` wrote under a key into the metadata of a file; empty where it wrote nothing.

    Raises:
        CheckpointError: a truncated file, or one of something else.
        MissingExtraError: ONNX without onnx.
    """
    if path.suffix == ".pt2":
        extra = {key: ""}
        _program(path, extra)
        return extra[key]
    require("reading the metadata of ONNX", "export", "onnx")
    onnx: Any = importlib.import_module("onnx")
    broken = importlib.import_module("google.protobuf.message").DecodeError
    try:
        held = onnx.load(path, load_external_data=False).metadata_props
    except (broken, OSError) as error:
        raise _no_export(path, error) from error
    return next((entry.value for entry in held if entry.key == key), "")


def _program(path: Path, extra: dict[str, str]) -> torch.export.ExportedProgram:
    if not zipfile.is_zipfile(path):
        raise _no_export(path, "it is no archive")
    try:
        return torch.export.load(path, extra_files=extra)
    except RuntimeError as error:
        raise _no_export(path, error) from error


def session_options(threads: int) -> Any:
    """What onnxruntime is told of a file that may keep convary's operators."""
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = threads
    if native.available() is None:
        options.register_custom_ops_library(library.loaded().path)
    return options


def _session(path: Path, threads: int) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    states = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("InvalidProtobuf", "InvalidArgument", "InvalidGraph", "NoSuchFile", "NotImplemented", "Fail")
    try:
        return runtime.InferenceSession(str(path), session_options(threads), providers=["CPUExecutionProvider"])
    except tuple(getattr(states, name) for name in names) as error:
        raise _no_export(path, error) from error


def _no_export(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} can't be read as {path.suffix}: {str(reason).splitlines()[0]}; export it again")
