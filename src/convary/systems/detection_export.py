# SPDX-License-Identifier: Apache-2.0
"""A detector as one ONNX file, for a photograph of any size.

What a detector finds decides how much it computes, which ``torch.export`` cannot record. torch's older recorder can,
by operators that torchvision brings for it, so this is the one place that uses it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convary._lean import lean
from convary.errors import ConfigError, ShapeError
from convary.extras import require
from convary.files import check_target, staged

OUTPUTS = ("boxes", "labels", "scores", "masks")
_OPSET = 17


def export_detector(model: nn.Module, photo: Tensor, path: str | Path) -> Path:
    """Write a Faster or Mask R-CNN of torchvision, static or dynamic, as ONNX.

    The file takes ``image`` (3, H, W) in 0..1, of any H and W, scales it as the network does, and gives ``boxes``
    (N, 4) in pixels of that photograph, ``labels`` (N,), ``scores`` (N,) and, of a Mask R-CNN, ``masks`` (N, 1, H, W).

    Args:
        model: The detector; it is not changed.
        photo: (3, H, W) in 0..1, on which it is recorded; one on which it finds something.
        path: A ``.onnx`` file.

    Raises:
        ConfigError: the network is no such detector, or the path is of another kind.
        ShapeError: the photograph is not (3, H, W).
        MissingExtraError: ONNX is not installed.
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN

    path = Path(path)
    if not isinstance(model, FasterRCNN):
        raise ConfigError(f"wanted is an R-CNN of torchvision; got {type(model).__name__}; use convary.export")
    if path.suffix != ".onnx":
        raise ConfigError(f"a detector is written as .onnx; got {str(path)!r}")
    if photo.ndim != 3 or photo.shape[0] != 3:
        raise ShapeError(f"photo must be (3, H, W); got {tuple(photo.shape)}")
    require("exporting a detector to ONNX", "export", "onnx", "onnxscript")
    check_target(path)
    inputs: Any = ([photo],)
    names = list(OUTPUTS) if isinstance(model, MaskRCNN) else list(OUTPUTS[:3])
    model = lean(model, inputs)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, _Grouped(child))
    with staged(path) as target, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the older recorder, of sizes that torchvision means to be constants
        torch.onnx.export(
            model, inputs, str(target), dynamo=False, opset_version=_OPSET, input_names=["image"],
            output_names=names, dynamic_axes={"image": {1: "height", 2: "width"}},
        )  # fmt: skip
    return path


class _Grouped(nn.Module):
    """A group norm in operations that also take a batch of none, as of a photograph on which nothing is found."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        groups = x.reshape(B, self.norm.num_groups, C // self.norm.num_groups, H, W)
        middle = groups.mean((2, 3, 4), keepdim=True)
        spread = (groups - middle).square().mean((2, 3, 4), keepdim=True)
        y = ((groups - middle) / (spread + self.norm.eps).sqrt()).reshape(B, C, H, W)
        return y * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]
