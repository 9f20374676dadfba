# SPDX-License-Identifier: Apache-2.0
"""What ``convary.export`` may be asked for, and what goes together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from convary._exported import FORMS, SUFFIXES
from convary.errors import ConfigError
from convary.extras import require
from convary.files import check_target

Strategy = Literal["auto", "grouped", "outputs", "bmm"]
Runtime = Literal["any", "onnxruntime", "openvino", "convary", "executorch"]


def check_form(path: Path | None, strategy: str, runtime: str, bank_dtype: torch.dtype) -> None:
    """Raise unless there is such a form of such a file."""
    if path is not None and path.suffix not in SUFFIXES:
        raise ConfigError(f"path must end in {' (ONNX) or '.join(SUFFIXES)} (torch.export); got {str(path)!r}")
    for name, value, known in (("strategy", strategy, Strategy), ("runtime", runtime, Runtime)):
        if value not in get_args(known):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(known))}; got {value!r}")
    if runtime in ("onnxruntime", "openvino") and (path is None or path.suffix != ".onnx"):
        raise ConfigError(f"runtime={runtime!r} is for .onnx files; got {str(path)!r}")
    if runtime == "openvino" and strategy != "auto":
        raise ConfigError(f"runtime={runtime!r} is a form of its own, so strategy must be 'auto'; got {strategy!r}")
    if runtime == "executorch" and (strategy != "auto" or (path is not None and path.suffix != ".pt2")):
        raise ConfigError(f"runtime={runtime!r} is for programs, .pt2, with strategy 'auto'; got {path=}, {strategy=}")
    if bank_dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"bank_dtype must be torch.float32 or torch.bfloat16; got {bank_dtype}")
    if bank_dtype is torch.bfloat16 and (runtime != "convary" or path is None or path.suffix != ".onnx"):
        raise ConfigError(f"bank_dtype={bank_dtype} is for .onnx files with runtime='convary'; got {runtime=}, {path=}")
    if path is not None:
        check_target(path)
    if path is not None and path.suffix == ".onnx":
        require("convary.export to ONNX", "export", "onnx", "onnxscript")


def check_axes(dynamic: Sequence[int] | None, ndim: int) -> None:
    """Raise unless ``dynamic`` are axes of inputs that have at most ``ndim`` of them."""
    axes: Any = () if dynamic is None else dynamic
    if not isinstance(axes, Collection) or any(axis not in range(ndim) for axis in axes):
        raise ConfigError(
            f"dynamic must be None or axes of the inputs, 0 to {ndim - 1}: (0,) for the batch, () for none; "
            f"got {dynamic!r}"
        )


def check_notes(notes: Mapping[str, str]) -> None:
    for name, text in notes.items():
        if not isinstance(name, str) or not isinstance(text, str) or name == FORMS:
            raise ConfigError(f"notes must be text by name, other than {FORMS!r}; got {name!r}: {type(text).__name__}")


def check_free(runtime: Runtime, batches: Sequence[int], axes: list[tuple[int, ...]]) -> None:
    """Raise where a file for this runtime must have one size."""
    if runtime == "executorch" and any(axes):
        raise ConfigError(f"runtime={runtime!r} is for one size of everything: give dynamic=(), or --image")
    if runtime == "openvino" and any(set(free) - {0} for free in axes):
        raise ConfigError(
            f"runtime={runtime!r} is for images of one size: give dynamic=() for one of them, dynamic=(0,) for any "
            "number; or --image, or --dynamic 0"
        )
    if runtime == "openvino" and not any(axes) and batches[0] != 1:
        raise ConfigError(
            f"runtime={runtime!r} is for one image or any number; got {batches[0]}: give a batch of one, or --image"
        )
