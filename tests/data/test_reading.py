# SPDX-License-Identifier: Apache-2.0
"""Streamed images: torchvision's transforms, the same numbers whoever reads them, and files that are no images."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from convary.data import load
from convary.data.crops import Middle, RandomViews, drawing, mixed
from convary.data.folder import FolderSplit
from convary.data.image import open_image, read_image
from convary.data.reading import BrokenImageWarning, Listing, LostWorkerError, Reading, stream
from convary.errors import DataError
from tests.data.photos import truncate, write_photos

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 3, 6, 3)


def views(**options):
    return RandomViews(**{"size": 16, "mean": MEAN, "std": STD} | options)


def read(split, view, workers, reading=None):
    keys = [(i, (7, 1, i)) for i in range(len(split.labels))]
    reading = reading or Reading(workers=workers)
    return [*stream(split, [keys[i : i + 4] for i in range(0, len(keys), 4)], view, reading)]


def test_the_middle_is_what_torchvision_resizes_and_crops(photos):
    picture = open_image(photos / "train/n0000/0000.jpg")
    for mode in ("bilinear", "bicubic"):
        wanted = v2.Compose([v2.Resize(32, v2.InterpolationMode(mode)), v2.CenterCrop(28), v2.PILToTensor()])(picture)
        assert torch.equal(Middle(size=28, part=0.875, interpolation=mode)(picture), wanted)


def test_a_view_is_what_torchvision_draws(photos):
    picture = open_image(photos / "train/n0001/0000.jpg")
    wanted = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    for number in range(8):
        with drawing(number):
            own = views()(picture)
        with drawing(number):
            assert torch.equal(own, wanted(picture))


@pytest.mark.parametrize("options", [{}, {"rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.5}])
def test_workers_change_nothing(photos, options):
    split = load(f"folder:{photos}", image_size=16, reading=Reading(crops=True)).train
    assert isinstance(split, FolderSplit)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    alone, helped, again = (read(split, views(**options), workers) for workers in (0, 2, 0))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002
    for (x, y), (x2, y2), (x3, _) in zip(alone, helped, again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2) and torch.equal(x, x3)
    assert alone[0][0].dtype == (torch.float32 if options else torch.uint8)
    assert not torch.equal(alone[0][0][0], alone[0][0][1])


def test_erased_views_are_normalised_once(photos):
    dataset = load(f"folder:{photos}", image_size=16, reading=Reading(crops=True))
    [(plain, _), *_], [(erased, _), *_] = (read(dataset.train, views(**o), 0) for o in ({}, {"erasing": 1e-9}))
    torch.testing.assert_close(dataset.normalise(erased), dataset.normalise(plain), rtol=0, atol=1e-5)


def test_memory_holds_pictures_for_crops_too():
    split = load("fashion-mnist-mini", limit_train=10).train
    [(images, labels), *_] = read(split, views(size=28, mean=(0.5,), std=(0.5,)), 0)
    assert images.shape == (4, 1, 28, 28) and torch.equal(labels, split.labels[:4])


def test_test_images_come_at_any_size(photos):
    dataset = load(f"folder:{photos}", image_size=16, reading=Reading(crops=True, test_size=24))
    assert dataset.shape == (3, 16, 16) and dataset.test.batch(torch.tensor([0])).shape == (1, 3, 24, 24)


def test_a_truncated_image_is_named_or_left_out_and_listed(photos, tmp_path):
    truncate(photos / "train/n0001/0002.jpg")
    split = load(f"folder:{photos}", image_size=16, reading=Reading(crops=True)).train
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"n0001.0002.jpg is not a readable image .*--skip-broken"):
            read(split, views(), workers)
    skipping = Reading(workers=1, skipped=tmp_path / "skipped.txt")
    with pytest.warns(BrokenImageWarning, match="left out"):
        batches = read(split, views(), 1, skipping)
    assert [len(y) for _, y in batches] == [4, 4, 3, 4, 2] and sum(len(x) for x, _ in batches) == 17
    [told] = Listing.read(tmp_path / "skipped.txt")
    assert "0002.jpg" in told


@pytest.mark.parametrize("crops", [False, True])
def test_broken_test_images_are_left_out_once_and_for_all(photos, tmp_path, crops):
    truncate(photos / "val/n0002/0001.jpg")
    reading = Reading(crops=crops, skipped=tmp_path / "skipped.txt")
    dataset = load(f"folder:{photos}", image_size=16, reading=reading)
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2] and len(dataset.train.labels) == 18
    assert "0001.jpg" in dataset.left_out[0] and dataset.test.batch(torch.arange(8)).shape == (8, 3, 16, 16)


def test_a_set_of_nothing_but_broken_images_is_refused(photos, tmp_path):
    for path in (photos / "val").rglob("*.jpg"):
        truncate(path)
    with pytest.raises(DataError, match="none of the 9 images"):
        load(f"folder:{photos}", image_size=16, reading=Reading(crops=True, skipped=tmp_path / "skipped.txt"))


class Deadly:
    def __call__(self, picture):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_told_in_one_error(photos):
    split = load(f"folder:{photos}", image_size=16, reading=Reading(crops=True)).train
    with pytest.raises(LostWorkerError, match=r"was killed.*fewer --workers"):
        read(split, Deadly(), 1)


def test_sixteen_bits_and_cmyk_become_eight_and_rgb(tmp_path):
    values = np.array([[0, 255, 256], [32767, 32768, 65535]], dtype=np.uint16)
    wanted = torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, 2, 3)
    for name in ("grey.png", "grey.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert torch.equal(read_image(tmp_path / name), wanted), name
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "wide.tiff")
    assert torch.equal(read_image(tmp_path / "wide.tiff"), wanted)
    Image.new("CMYK", (20, 20), (0, 255, 0, 0)).save(tmp_path / "ink.jpg")
    assert read_image(tmp_path / "ink.jpg")[:, 10, 10].tolist() == pytest.approx([255, 0, 255], abs=3)
    Image.fromarray(np.array([[0.5]], dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float.tiff .*wanted are 8 or 16 bits"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (17, 3)])
def test_images_of_any_shape(size):
    picture = Image.new("RGB", size, (9, 8, 7))
    whole = Middle(size=16, part=0.875)(picture)
    with drawing(0):
        assert views()(picture).shape == (3, 16, 16)
    assert whole.shape == (3, 16, 16) and whole[:, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.slow
def test_a_hundred_megapixels_are_read_and_two_hundred_refused(tmp_path):
    Image.new("RGB", (10_000, 10_000), (5, 6, 7)).save(tmp_path / "large.jpg")
    with pytest.warns(Image.DecompressionBombWarning):  # Pillow's, above 89 megapixels
        assert Middle(size=16, part=0.875)(open_image(tmp_path / "large.jpg")).shape == (3, 16, 16)
    Image.new("L", (15_000, 15_000)).save(tmp_path / "larger.png")
    with pytest.raises(DataError, match="larger.png is not a readable image"):
        open_image(tmp_path / "larger.png")


def test_mixed_images_have_mixed_labels():
    x, y = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous(), torch.arange(4)
    assert mixed(x, y, 4, mixup=0, cutmix=0) == (x, y)
    for kind in ({"mixup": 0.8, "cutmix": 0}, {"mixup": 0, "cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        with drawing(3):
            images, labels = mixed(x, y, 4, **kind)
        assert labels.shape == (4, 4) and torch.allclose(labels.sum(1), torch.ones(4))
        torch.testing.assert_close(images.mean((1, 2, 3)), labels @ torch.arange(4.0))  # both by the same share
