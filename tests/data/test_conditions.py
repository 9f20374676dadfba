# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 under four conditions, on random images in CIFAR's place."""

import pytest
import torch

from convary.data import DataSet, TensorSplit, conditions, load
from convary.data.conditions import CONDITIONS, load_conditions
from convary.errors import DataError


@pytest.fixture
def plain(monkeypatch, tmp_path) -> DataSet:
    torch.manual_seed(0)
    parts = [
        TensorSplit(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10) for n in (400, 40)
    ]
    found = DataSet(
        name="cifar10",
        title="CIFAR-10",
        classes=tuple("abcdefghij"),
        shape=(3, 32, 32),
        train=parts[0],
        test=parts[1],
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        license="",
        source="",
    )
    monkeypatch.setattr(conditions, "load_cifar", lambda name, root: found)
    return found


def test_every_image_is_in_one_condition(plain, tmp_path):
    dataset = load_conditions(tmp_path)
    for before, after in ((plain.train, dataset.train), (plain.test, dataset.test)):
        was, now = (split.batch(torch.arange(len(split.labels))) for split in (before, after))
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(now[::4], was[::4])
        assert torch.equal(now[1::4], 255 - was[1::4])
        assert torch.equal(now[2::4], was[2::4].rot90(1, (2, 3)))
    noise = dataset.train.images[3::4].float() - 0.25 * plain.train.images[3::4]
    assert 7 < float(noise[dataset.train.images[3::4] > 0].std()) < 9
    assert len(CONDITIONS) == 4
    assert "at night" in dataset.title


def test_it_is_the_same_every_time_and_has_its_own_scale(plain, tmp_path):
    once, twice = load_conditions(tmp_path), load_conditions(tmp_path)
    assert torch.equal(once.train.images, twice.train.images)
    assert once.digest() == twice.digest() != plain.digest()
    normal = once.normalise(once.train.images)
    assert abs(float(normal.mean())) < 1e-3
    assert abs(float(normal.std()) - 1) < 1e-3


def test_without_cifar_it_says_what_brings_it(tmp_path):
    with pytest.raises(DataError, match=f"run: convary data cifar10 --root {tmp_path}"):
        load("cifar10-conditions", tmp_path)
