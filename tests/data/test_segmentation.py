"""Segmentation sets: both layouts, and every way in which a folder can be wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from convary.data.segmentation import IGNORE, VOC_CLASSES, load_pairs, load_sample, read_mask
from convary.data.views import random_view
from convary.errors import DataError


def image(path, size=(12, 8), color=(200, 30, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def mask(path, ids, palette=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(ids, dtype=np.uint8))
    if palette:
        picture = picture.convert("P")  # "L" to "P" keeps the numbers
        picture.putpalette([17] * 768)
    picture.save(path)


def ids(*values, size=(8, 12)):
    found = np.zeros(size, np.uint8)
    found.flat[: len(values)] = values
    return found


@pytest.fixture
def voc(tmp_path):
    for part, names in (("train", ["2007_a", "2007_b"]), ("val", ["2008_c"])):
        for name in names:
            image(tmp_path / "JPEGImages" / f"{name}.jpg")
            mask(tmp_path / "SegmentationClass" / f"{name}.png", ids(1, 20, 255))
        listed = tmp_path / "ImageSets" / "Segmentation" / f"{part}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")
    image(tmp_path / "JPEGImages" / "not_listed.jpg")
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    for part in ("train", "val"):
        for name in ("one", "two"):
            image(tmp_path / part / "images" / f"{name}.jpeg")
            mask(tmp_path / part / "masks" / f"{name}.png", ids(1, 2), palette=name == "one")
    (tmp_path / "classes.txt").write_text("floor\nwall\n\ndoor\n")
    return tmp_path


def test_reads_vocs_layout(voc):
    data = load_pairs(voc)
    assert data.classes == VOC_CLASSES and (len(data.train), len(data.val)) == (2, 1)
    photo, classes = data.train[0]
    assert photo.shape == (3, 8, 12) and photo.dtype == torch.uint8
    assert classes.shape == (8, 12) and classes.dtype == torch.int64
    assert classes.flatten()[:4].tolist() == [1, 20, IGNORE, 0]


def test_reads_folders(folders):
    data = load_pairs(folders)
    assert data.classes == ("floor", "wall", "door") and (len(data.train), len(data.val)) == (2, 2)
    for _, classes in (*data.train, *data.val):
        assert classes.flatten()[:3].tolist() == [1, 2, 0]


def test_names_the_missing_partner(folders):
    (folders / "train" / "masks" / "two.png").unlink()
    with pytest.raises(DataError, match=r"no file .*train.masks.two\.png, the mask of an image"):
        load_pairs(folders)
    mask(folders / "train" / "masks" / "two.png", ids())
    mask(folders / "val" / "masks" / "three.png", ids())
    mask(folders / "val" / "masks" / "four.png", ids())
    with pytest.raises(DataError, match=r"no file .*val.images.four\.jpg and 1 more, the image of a mask"):
        load_pairs(folders)


@pytest.mark.parametrize("missing", ["JPEGImages/2007_b.jpg", "SegmentationClass/2007_b.png"])
def test_names_what_voc_lists_and_lacks(voc, missing):
    (voc / missing).unlink()
    with pytest.raises(DataError, match=rf"no file .*{missing}, listed in .*train\.txt"):
        load_pairs(voc)


def test_refuses_folders_of_another_layout(voc, tmp_path):
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt is empty"):
        load_pairs(voc)
    (lists / "val.txt").unlink()
    with pytest.raises(DataError, match=r"no list .*val\.txt"):
        load_pairs(voc)
    with pytest.raises(DataError, match="no folder .*nowhere"):
        load_pairs(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither ImageSets/Segmentation .* nor train/images"):
        load_pairs(voc / "JPEGImages")


def test_refuses_incomplete_folders(folders):
    names = (folders / "classes.txt").read_text()
    (folders / "classes.txt").write_text("floor")
    with pytest.raises(DataError, match="names 1 classes"):
        load_pairs(folders)
    (folders / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"no file .*classes\.txt"):
        load_pairs(folders)
    (folders / "classes.txt").write_text(names)
    (folders / "val" / "masks").rename(folders / "val" / "labels")
    with pytest.raises(DataError, match=r"no folder .*val.masks"):
        load_pairs(folders)


def test_refuses_masks_that_do_not_fit(folders):
    path = folders / "train" / "masks" / "one.png"
    data = load_pairs(folders)
    mask(path, ids(size=(8, 11)))
    with pytest.raises(DataError, match=r"one\.png is 8x11 but its image .*one\.jpeg is 8x12"):
        data.train[0]
    mask(path, ids(1, 3))
    with pytest.raises(DataError, match=r"one\.png has the class id 3; wanted 0 to 2, or 255"):
        data.train[0]
    image(path)
    with pytest.raises(DataError, match=r"one\.png has the bands RGB"):
        data.train[0]
    path.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"one\.png is not a readable image"):
        data.train[0]


def test_reads_numbers_not_colours(tmp_path):
    for mode in ("P", "L", "I;16"):
        numbers = np.arange(6, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(2, 3)
        picture = Image.fromarray(numbers)
        if mode == "P":
            picture.putpalette([255 - n for n in range(256) for _ in range(3)])
        picture.save(tmp_path / "mask.png")
        with Image.open(tmp_path / "mask.png") as stored:
            assert stored.mode == mode
        assert read_mask(tmp_path / "mask.png").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_sample_leaves_a_band_around_objects_out():
    data = load_sample()
    ((_, classes),) = data.train
    assert classes.shape == (375, 500) and len(data.classes) == 21
    assert set(classes.unique().tolist()) == {0, 5, 9, 11, 15, IGNORE}
    objects = (classes > 0) & (classes != IGNORE)
    background = torch.nn.functional.pad(classes == 0, [5] * 4)
    for down in range(-5, 6):
        for right in range(-5, 6):
            near = background[5 + down : 380 + down, 5 + right : 505 + right]
            assert not (objects & near).any()


def pixels(view):
    """What was normalised, channel 0."""
    return (view[0] * 0.229 + 0.485) * 255


@pytest.mark.parametrize("size", [16, 34])
def test_a_view_moves_image_and_mask_together(size):
    classes = torch.arange(30 * 40).reshape(30, 40) % 241
    photo = classes.to(torch.uint8).expand(3, -1, -1)
    seen = set()
    for seed in range(24):
        rng = torch.Generator().manual_seed(seed)
        view, cut = random_view(photo, classes, rng, size=size, scales=(1.0, 1.0))
        assert view.shape == (3, size, size) and cut.shape == (size, size) and cut.dtype == torch.int64
        known = cut != IGNORE
        assert known.sum() == min(30, size) * min(40, size)
        assert torch.equal(pixels(view)[known].round().long(), cut[known]) and not view[:, ~known].any()
        seen.add((int(cut[0, 0]), int(cut[0, -1])))
    assert len(seen) > 8  # places, and mirrored ones
    assert {first < last for first, last in seen} == {True, False}


def test_a_view_is_scaled_as_asked():
    photo, classes = torch.full((3, 20, 30), 77, dtype=torch.uint8), torch.ones(20, 30, dtype=torch.int64)
    for seed in range(8):
        view, cut = random_view(photo, classes, torch.Generator().manual_seed(seed), size=64, scales=(0.5, 2.0))
        known = cut != IGNORE
        height, width = int(known.any(1).sum()), int(known.any(0).sum())
        assert 10 <= height <= 40 and abs(height / width - 2 / 3) < 0.05
        assert (pixels(view)[known] - 77).abs().max() < 0.01


def test_views_follow_their_generator():
    photo, classes = load_sample().train[0]
    one, same, other = (
        random_view(photo, classes, torch.Generator().manual_seed(n), size=32, scales=(0.5, 2.0)) for n in (1, 1, 2)
    )
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1]) and not torch.equal(one[0], other[0])
