# SPDX-License-Identifier: Apache-2.0
"""Augmentation against its obvious definition, and its dependence on nothing but the seeds."""

import torch
import torch.nn.functional as F

from convary.data import augment, balanced, derive_seed, epoch_order, generator


def obvious(images, top, left, flip, padding):
    H, W = images.shape[2:]
    out = []
    for image, t, o, mirrored in zip(F.pad(images, [padding] * 4), top, left, flip, strict=True):
        crop = image[:, t : t + H, o : o + W]
        out.append(crop.flip(2) if mirrored else crop)
    return torch.stack(out)


def test_shift_and_flip_of_every_image():
    images = torch.randint(0, 256, (32, 2, 7, 9), dtype=torch.uint8, generator=generator(5))
    rng = generator(1, 2, 3)
    top, left = torch.randint(0, 5, (2, 32, 1), generator=rng)
    flip = torch.rand(32, 1, generator=rng) < 0.5
    expected = obvious(images, top.flatten().tolist(), left.flatten().tolist(), flip.flatten().tolist(), 2)
    assert torch.equal(augment(images, generator(1, 2, 3), padding=2, flip=True), expected)
    assert 0 < int(flip.sum()) < 32


def test_no_padding_and_no_flip_change_nothing():
    images = torch.randn(4, 1, 5, 5)
    assert torch.equal(augment(images, generator(0), padding=0, flip=False), images)


def test_seeds_are_apart():
    seeds = {derive_seed(*numbers) for numbers in [(0,), (0, 0), (0, 1), (1, 0), (1, 0, 0)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_order_is_a_permutation_that_the_epoch_decides():
    assert torch.equal(epoch_order(50, 3, 1), epoch_order(50, 3, 1))
    assert not torch.equal(epoch_order(50, 3, 1), epoch_order(50, 3, 2))
    assert epoch_order(50, 3, 1).sort().values.tolist() == list(range(50))


def test_balanced_takes_what_there_is():
    labels = torch.tensor([2, 0, 0, 0, 0, 1, 2, 0])
    assert balanced(labels, 5).tolist() == [0, 1, 2, 5, 6]
    assert balanced(labels, 8).tolist() == list(range(8))
