# SPDX-License-Identifier: Apache-2.0
"""COCO's format: polygons, run lengths, crowds; what is broken is named before anything is trained."""

import copy
import pickle

import pytest
import torch

from convary.data.coco import CocoSet, LeftOutWarning, coco_folder, sample_set
from convary.data.samples import scene
from convary.errors import DataError
from tests.data.written import CONTENT, H, W, folder_of, pixels, square, unpacked


def changed(place, **fields):
    content = copy.deepcopy(CONTENT)
    content["annotations"][place].update(fields)
    return content


def test_reads_polygons_and_both_kinds_of_run_lengths_and_leaves_crowds_out(tmp_path):
    found = coco_folder(folder_of(tmp_path), "train2017")
    assert (len(found), found.classes, found.categories) == (2, ("cat", "dog"), (2, 18))
    photo = pickle.loads(pickle.dumps(found))[0]
    assert photo.id == 7 and photo.image.shape == (3, H, W) and photo.labels.tolist() == [1, 0, 0]
    assert photo.boxes.tolist() == [[4, 5, 14, 15], [1, 2, 7, 8], [20, 3, 28, 11]]
    assert torch.equal(photo.masks, torch.stack([square(4, 5, 10), square(1, 2, 6), square(20, 3, 8)]))


def test_an_image_without_objects():
    photo = CocoSet(CONTENT, pixels, "it")[1]
    assert photo.masks.shape == (0, H, W) and photo.boxes.shape == (0, 4) and photo.labels.dtype == torch.int64


@pytest.mark.parametrize(
    "fields",
    [{"bbox": [4, 5, 0, 10]}, {"bbox": [40, 5, 9, 9]}, {"segmentation": []}, {"segmentation": [[4, 5, 9, 9]]},
     {"segmentation": unpacked(square(0, 0, 0))}],
)  # fmt: skip
def test_annotations_without_area_are_left_out_and_told(fields):
    with pytest.warns(LeftOutWarning, match="1 annotations have no area and are left out, the first is 1"):
        found = CocoSet(changed(0, **fields), pixels, "it")
    assert found[0].labels.tolist() == [0, 0]


def test_a_box_over_the_edge_ends_at_it():
    content = changed(0, bbox=[-2, 5, 16, 40], segmentation=[[-2, 5, 14, 5, 14, 45, -2, 45]])
    assert CocoSet(content, pixels, "it")[0].boxes[0].tolist() == [0, 5, 14, 21]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [20, 5, 10, 10]}, r"annotation 1 has the box \[20, 5, 30, 15\] .* mask spans \[4, 5, 14, 15\]"),
        ({"bbox": [4, 5, 10]}, "annotation 1 cannot be read .* four numbers"),
        ({"segmentation": [[4, 5, 14, 5, 14, 15, 4]]}, "annotation 1 .* odd number of coordinates"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, r"annotation 1 .* mask is \(5, 5\), the image \(21, 33\)"),
        ({"segmentation": {"size": [H, W]}}, "annotation 1 cannot be read .*counts"),
        ({"image_id": 8}, "annotation 1 is about image 8"),
        ({"category_id": 1}, "annotation 1 has category 1"),
    ],
)
def test_a_broken_annotation_is_named(fields, message):
    with pytest.raises(DataError, match=message):
        CocoSet(changed(0, **fields), pixels, "it")


def test_missing_fields_are_named():
    with pytest.raises(DataError, match="it is not COCO's format: KeyError"):
        CocoSet({"images": [], "annotations": []}, pixels, "it")
    with pytest.raises(DataError, match="0 images"):
        CocoSet(CONTENT | {"images": []}, pixels, "it")
    content = copy.deepcopy(CONTENT)
    del content["annotations"][2]["segmentation"]
    with pytest.raises(DataError, match="annotation 3 has no segmentation"):
        CocoSet(content, pixels, "it")


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no annotations.*instances_train2017.json"):
        coco_folder(tmp_path, "train2017")
    path = folder_of(tmp_path)
    (path / "train2017" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b.png is not a readable image"):
        coco_folder(path, "train2017")[1]
    (path / "train2017" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images of .* the first is b.png"):
        coco_folder(path, "train2017")
    annotations = path / "annotations" / "instances_train2017.json"
    for text, message in (("{", "is not JSON"), ("[]", "holds a list")):
        annotations.write_text(text)
        with pytest.raises(DataError, match=message):
            coco_folder(path, "train2017")


def test_a_photograph_of_another_size_is_named():
    with pytest.raises(DataError, match=r"a.png has \(3, 4\) pixels, but it says \(21, 33\)"):
        CocoSet(CONTENT, lambda name: torch.zeros(3, 3, 4, dtype=torch.uint8), "it")[0]


def test_the_sample_set_holds_the_scenes():
    found = sample_set()
    assert [len(photo.labels) for photo in found] == [8, 19] and len(found.classes) == 12
    want, photo = scene("voc"), found[1]
    assert torch.equal(photo.masks, want.masks) and torch.equal(photo.boxes, want.boxes)
    assert [found.classes[label] for label in photo.labels] == [want.classes[label] for label in want.labels]
    assert torch.equal(photo.image, want.image)


def test_the_truth_for_scoring_is_numbered_anew_without_what_is_left_out():
    content = copy.deepcopy(CONTENT)
    for annotation, number in zip(content["annotations"], (0, 5, 5, 5), strict=True):
        annotation["id"] = number
    for name in ("area", "iscrowd"):
        del content["annotations"][0][name]
    content["annotations"].append({"id": 9, "image_id": 3, "category_id": 2, "bbox": [1, 1, 4, 4], "segmentation": []})
    with pytest.warns(LeftOutWarning, match="1 annotations have no area.* 9"):
        truth = CocoSet(content, pixels, "x").truth()
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3, 4]
    assert [annotation["iscrowd"] for annotation in truth["annotations"]] == [0, 0, 0, 1]
    assert truth["annotations"][0]["area"] == 100
