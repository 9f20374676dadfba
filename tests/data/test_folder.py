# SPDX-License-Identifier: Apache-2.0
"""Folders of class folders, good and bad."""

import re

import pytest
import torch
from PIL import Image

from convary.data import folder, load, pictures
from convary.errors import DataError


def fill(root, classes, count, size=(20, 12)):
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (40 * shade, i, 7)).save(root / name / f"{i:03}.png")


@pytest.fixture
def single(tmp_path):
    fill(tmp_path, ["cat", "dog", "eel"], 30)
    return tmp_path


def test_one_level_is_split_by_name(single):
    dataset = load(f"folder:{single}", image_size=8)
    assert dataset.classes == ("cat", "dog", "eel")
    assert dataset.shape == (3, 8, 8)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 90
    per_class = dataset.test.labels.bincount().tolist()
    assert per_class == [per_class[0]] * 3, "the same names fall on the same side in every class"
    assert 1 <= per_class[0] <= 9
    pixels = dataset.train.batch(torch.tensor([0]))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 3, 8, 8)


def test_a_new_image_moves_no_other(single):
    before = load(f"folder:{single}", image_size=8)
    Image.new("RGB", (20, 12), (0, 200, 7)).save(single / "cat" / "new.png")
    after = load(f"folder:{single}", image_size=8)
    difference = len(after.test.labels) - len(before.test.labels)
    kept = after.test.images[after.test.images[:, 1, 0, 0] != 200]
    assert difference in (0, 1)
    assert torch.equal(kept, before.test.images)


@pytest.mark.parametrize("name", ["val", "test"])
def test_train_and_test_folders(tmp_path, name):
    fill(tmp_path / "train", ["a", "b"], 4)
    fill(tmp_path / name, ["a", "b"], 2)
    dataset = load(f"folder:{tmp_path}", image_size=8, limit_train=4)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]


def test_large_folders_are_decoded_when_asked(single, monkeypatch):
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    lazy = load(f"folder:{single}", image_size=8, limit_train=12)
    assert isinstance(lazy.train, folder.FolderSplit)
    monkeypatch.undo()
    eager = load(f"folder:{single}", image_size=8, limit_train=12)
    index = torch.tensor([11, 0, 5])
    assert torch.equal(lazy.train.batch(index), eager.train.batch(index))
    assert torch.equal(lazy.train.take(index).labels, eager.train.labels[index])
    assert lazy.train.batch(index[:0]).shape == (0, 3, 8, 8)


def test_grey_and_palette_images_become_rgb(single):
    Image.new("L", (9, 9), 77).save(single / "cat" / "grey.png")
    Image.new("P", (9, 9)).save(single / "cat" / "palette.gif")
    assert load(f"folder:{single}", image_size=8).shape == (3, 8, 8)


def test_broken_image_is_named(single):
    whole = (single / "dog" / "003.png").read_bytes()
    (single / "dog" / "003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable image") as caught:
        load(f"folder:{single}")
    assert str(single / "dog" / "003.png") in str(caught.value)
    for i in range(6):
        (single / "cat" / f"00{i}.png").write_bytes(b"no image")
    (single / "dog" / "003.png").write_bytes(whole)
    with pytest.raises(
        DataError, match=r"^\d images can't be read: .*; repair or remove them, or go on with"
    ) as caught:
        load(f"folder:{single}")
    told = str(caught.value)
    assert told.count("not a readable image") == 5 == int(told[0]) - ("; and 1 more" in told)


def test_class_folder_without_images_is_named(single):
    (single / "fox").mkdir()
    (single / "fox" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match="has no images") as caught:
        load(f"folder:{single}")
    assert str(single / "fox") in str(caught.value)


def test_class_with_a_single_image_cannot_be_split(single):
    fill(single, ["gnu"], 1)
    with pytest.raises(DataError, match="gnu has one image"):
        load(f"folder:{single}")


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load(f"folder:{tmp_path / 'nowhere'}")


def test_no_class_folders(tmp_path):
    with pytest.raises(DataError, match="has 0 class folders"):
        load(f"folder:{tmp_path}")


def test_train_without_test(tmp_path):
    fill(tmp_path / "train", ["a", "b"], 2)
    with pytest.raises(DataError, match="neither val/ nor test/"):
        load(f"folder:{tmp_path}")


def test_parts_with_different_classes(tmp_path):
    fill(tmp_path / "train", ["a", "b"], 2)
    fill(tmp_path / "val", ["a", "b", "c"], 2)
    with pytest.raises(DataError, match="has the class 'c'"):
        load(f"folder:{tmp_path}")
    fill(tmp_path / "train", ["c", "d"], 2)
    with pytest.raises(DataError, match="no class folder"):
        load(f"folder:{tmp_path}")


def test_a_folder_given_the_wrong_way_is_answered_with_the_right_one(tmp_path):
    for name in ("cat", "coffee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "a.jpg")
    right = re.escape(f"did you mean 'folder:{tmp_path / 'photos'}'?")
    with pytest.raises(DataError, match=f"unknown data set .*{right}"):
        load(str(tmp_path / "photos"))
    with pytest.raises(DataError, match=f"has 0 class folders; .*{right}"):
        load(f"folder:{tmp_path / 'photos' / 'cat'}")
    with pytest.raises(DataError, match=f"has 1 class folder; .*{right}"):
        load(f"folder:{tmp_path}")
    (tmp_path / "photos" / "coffee" / "a.jpg").unlink()
    with pytest.raises(DataError, match="one for each class$"):
        load(f"folder:{tmp_path / 'photos' / 'cat'}")
