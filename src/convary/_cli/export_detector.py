# SPDX-License-Identifier: Apache-2.0
"""``convary export RUN`` of a detector that ``convary train`` trained: one ONNX file, compared with the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from convary.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

FREE = ("out", "run", "file")  # flags that a detector has too


def run_folder(path: Path | None) -> Path | None:
    """The folder of a run where one is given, or its checkpoint; None of any other file."""
    if path is None:
        return None
    if path.is_dir():
        return path
    if path.name != "checkpoint.pt" or not path.is_file():
        return None
    from convary.files import read_tensors
    from convary.train.checkpoint import SYSTEM

    content = read_tensors(path, "give a checkpoint that convary wrote")
    return path.parent if isinstance(content, dict) and content.get("format") == SYSTEM else None


def lines(folder: Path, out: Path, *, check: bool) -> Iterator[str]:
    """Write the detector of a run, and say what was written; compare the file with the network where asked to.

    Raises:
        ConfigError: the run is of another system.
    """
    from convary.systems.detection import DetectionSystem
    from convary.systems.detection_export import export_detector
    from convary.systems.trained import restored

    system, model, _ = restored(folder)
    if not isinstance(system, DetectionSystem):
        raise ConfigError(f"{folder} is of the system {system.name}; of systems convary export writes detectors only")
    photo = system.scored[0].image / 255
    export_detector(model, photo, out)
    yield f"wrote {out} ({out.stat().st_size / 1024:,.0f} KiB): image (3, H, W) in 0..1, of any size, to what is found"
    yield f"labels from 1: {', '.join(system.scored.classes)}"
    if check:
        yield _checked(out, model, photo)


def _checked(path: Path, model: nn.Module, photo: Tensor) -> str:
    """Runs the file on the photograph, and on its left half."""
    from importlib.util import find_spec

    import torch

    if find_spec("onnxruntime") is None:
        return "not run: onnxruntime is not installed"
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    told = []
    for image in (photo, photo[:, :, : photo.shape[2] // 2].contiguous()):
        boxes, _, scores, *_ = (torch.from_numpy(found) for found in session.run(None, {"image": image.numpy()}))
        with torch.no_grad():
            [want] = model([image])
        size = f"{image.shape[1]}x{image.shape[2]}"
        if len(scores) != len(want["scores"]):
            told.append(f"{size}: {len(scores)} objects, and the network finds {len(want['scores'])}")
        else:
            far = float((boxes - want["boxes"]).abs().max()) if len(boxes) else 0.0
            told.append(f"{size}: {len(scores)} objects, as the network finds them, boxes within {far:.1e} pixels")
    return f"run by onnxruntime {onnxruntime.__version__}: {'; '.join(told)}"
