# SPDX-License-Identifier: Apache-2.0
"""Sets that Hugging Face ``datasets`` reads: the same images as from a folder, and clear errors. Nothing is fetched."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from convary.data import load, pictures
from convary.data.hub import HubSplit
from convary.data.reading import Reading
from convary.errors import DataError
from tests.data.photos import write_photos
from tests.data.tables import datasets, save, table


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), 3, 6, 2)


def saved(photos, path, *splits):
    """A folder that ``save_to_disk`` wrote."""
    return save(photos, path, **{split: "train" if split == "train" else "val" for split in splits})


def as_parquet(photos, path):
    path.mkdir()
    for split, part in (("train", "train"), ("test", "val")):
        table(photos / part).to_parquet(path / f"{split}-00000.parquet")
    return path


WAYS = {
    "saved": lambda photos, path: saved(photos, path, "train", "test"),
    "files": lambda photos, path: photos,
    "parquet": as_parquet,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_has_the_images_of_the_folder(way, photos, tmp_path):
    found, wanted = (
        load(f"hf:{WAYS[way](photos, tmp_path / way)}", image_size=8),
        load(f"folder:{photos}", image_size=8),
    )
    assert found.classes == wanted.classes and found.shape == wanted.shape
    for own, other in ((found.train, wanted.train), (found.test, wanted.test)):
        assert torch.equal(own.labels, other.labels) and torch.equal(own.images, other.images)


def test_what_is_not_decoded_at_once_is_decoded_when_asked_by_workers_too(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    name = f"hf:{saved(photos, tmp_path / 'set', 'train', 'val')}"
    lazy = load(name, image_size=8, limit_train=12)
    assert isinstance(lazy.train, HubSplit)
    monkeypatch.undo()
    eager = load(name, image_size=8, limit_train=12, reading=Reading(workers=2))
    index = torch.tensor([11, 0, 5])
    assert torch.equal(lazy.train.batch(index), eager.train.batch(index))
    assert torch.equal(lazy.train.take(index).labels, eager.train.labels[index])
    assert lazy.train.picture(3).size == (40, 32)


def test_validation_comes_before_a_test_that_may_have_no_labels(photos, tmp_path):
    parts = {
        "train": table(photos / "train"),
        "validation": table(photos / "val"),
        "test": table(photos / "val", label=-1),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert load(f"hf:{tmp_path / 'set'}", image_size=8).test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    del parts["validation"]
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="6 of 6 rows of test of hf:.* have no class, as row 0"):
        load(f"hf:{tmp_path / 'other'}")


def test_of_one_split_a_tenth_of_each_class_is_tested(photos, tmp_path):
    table(photos / "train").save_to_disk(tmp_path / "set")
    found = load(f"hf:{tmp_path / 'set'}", image_size=8)
    assert found.train.labels.bincount().tolist() == [5, 5, 5] and found.test.labels.tolist() == [0, 1, 2]
    table(photos / "train").select([0, 1, 6, 12, 13]).save_to_disk(tmp_path / "few")
    with pytest.raises(DataError, match="at least 2 of the images in each; got 3 classes, n0001 has 1"):
        load(f"hf:{tmp_path / 'few'}")


def test_a_name_is_asked_for_with_its_configuration(photos, monkeypatch):
    asked = []

    def load_dataset(*args):
        asked.append(args)
        return datasets.DatasetDict(train=table(photos / "train"), test=table(photos / "val"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load("hf:somebody/photos:small", image_size=8)
    load("hf:somebody/photos", image_size=8)
    assert asked == [("somebody/photos", "small"), ("somebody/photos", None)]
    assert found.name == "hf:somebody/photos:small" and found.title == "photos:small"


@pytest.mark.parametrize("content", [b"no image", None])
def test_a_broken_image_is_named_by_its_row_or_left_out(content, photos, tmp_path):
    parts = {
        "train": table(photos / "train", broken=7, content=content),
        "val": table(photos / "val", broken=1, content=content),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    name = f"hf:{tmp_path / 'set'}"
    with pytest.raises(DataError, match=rf"row 7 of train of {name} (is not a readable|has no) image.*--skip-broken"):
        load(name, image_size=8)
    found = load(name, image_size=8, reading=Reading(skipped=tmp_path / "skipped.txt", workers=1))
    assert len(found.train.labels) == 17 and len(found.test.labels) == 5
    assert [told.split(" of hf:")[0] for told in found.left_out] == ["row 7 of train", "row 1 of val"]
    assert not any("0x" in told for told in found.left_out), "one image has one reason, in each process"


def features(**columns):
    return datasets.Features(columns)


IMAGE = datasets.Image()
LABEL = datasets.ClassLabel(names=["a", "b"])
PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (
            {"image": IMAGE, "label": datasets.Value("int64")},
            (PIXELS, 0),
            "a column of the feature ClassLabel; it has none",
        ),
        (
            {"image": IMAGE, "x": LABEL, "y": LABEL},
            (PIXELS, 0, 0),
            r"has 2 columns of the feature ClassLabel; choose x or y: end --data with #label=x",
        ),
        (
            {"image": IMAGE, "other": IMAGE, "x": LABEL},
            (PIXELS, PIXELS, 0),
            r"2 columns of the feature Image; choose image or other: end --data with #image=image",
        ),
        ({"text": datasets.Value("string"), "x": LABEL}, ("a", 0), "feature Image; it has none among text, x"),
        ({"image": IMAGE, "x": LABEL}, (PIXELS, None), "2 of 2 rows of train of .* have no class, as row 0"),
        ({"image": IMAGE, "x": LABEL}, (PIXELS, 0), "at least 2 of the images in each; got 2 classes, b has 0"),
        ({"image": IMAGE, "x": datasets.ClassLabel(names=["a"])}, (PIXELS, 0), "two classes or more .* got 1 classes$"),
    ],
)
def test_columns_that_do_not_do(columns, values, message, tmp_path):
    rows = {name: [value] * 2 for name, value in zip(columns, values, strict=True)}
    datasets.Dataset.from_dict(rows, features=features(**columns)).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        load(f"hf:{tmp_path / 'set'}")


def test_of_several_columns_one_is_chosen(tmp_path):
    pictures = [Image.new("RGB", (4, 4), (shade,) * 3) for shade in range(6)]
    coarse, fine = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["p", "q", "r"])
    rows = {"image": pictures, "other": pictures[::-1], "x": [0, 0, 0, 1, 1, 1], "y": [0, 1, 2, 0, 1, 2]}
    columns = features(image=IMAGE, other=IMAGE, x=coarse, y=fine)
    datasets.Dataset.from_dict(rows, features=columns).save_to_disk(tmp_path / "set")
    found = load(f"hf:{tmp_path / 'set'}#label=y,image=other", image_size=4)
    assert found.classes == ("p", "q", "r") and found.name.endswith("#label=y,image=other") and found.title == "set"
    shades = torch.cat([found.train.images, found.test.images])[:, 0, 0, 0].tolist()
    labels = torch.cat([found.train.labels, found.test.labels]).tolist()
    assert all(label == (5 - shade) % 3 for shade, label in zip(shades, labels, strict=True))
    assert load(f"hf:{tmp_path / 'set'}#image=image,label=x", image_size=4).classes == ("a", "b")
    with pytest.raises(DataError, match=r"no column 'z' of the feature ClassLabel; choose x or y"):
        load(f"hf:{tmp_path / 'set'}#label=z,image=other")
    with pytest.raises(DataError, match=r"after the # of .* is no column; write #label=COLUMN"):
        load(f"hf:{tmp_path / 'set'}#labels=x")


def test_splits_that_do_not_do(photos, tmp_path):
    other = write_photos(tmp_path / "other", 2, 2, 2)
    datasets.DatasetDict(train=table(photos / "train"), test=table(other / "val")).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"train and test of hf:.* have different classes \(n0002\)"):
        load(f"hf:{tmp_path / 'set'}")
    saved(photos, tmp_path / "untrained", "validation", "extra")
    with pytest.raises(DataError, match="has the splits validation, extra; wanted are train and one of"):
        load(f"hf:{tmp_path / 'untrained'}")


def test_what_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="datasets can't read hf:.*empty: .* doesn't contain any data files"):
        load(f"hf:{tmp_path / 'empty'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs datasets, which is not installed; run pip install datasets"):
        load(f"hf:{tmp_path / 'empty'}")


def test_grey_images_become_rgb(tmp_path):
    pictures = [Image.new("L", (9, 9), shade) for shade in (3, 99, 7, 8)]
    grey = {"image": pictures, "x": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(grey, features=features(image=IMAGE, x=LABEL)).save_to_disk(tmp_path / "set")
    assert load(f"hf:{tmp_path / 'set'}", image_size=8).train.images[:, :, 4, 4].tolist() == [[7] * 3, [8] * 3]
