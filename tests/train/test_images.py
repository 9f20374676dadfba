# SPDX-License-Identifier: Apache-2.0
"""The batches of a training: each image is augmented anew in every epoch, and the same way in every run."""

import dataclasses

import pytest
import torch

from convary.data import TensorSplit, load
from convary.train.images import TrainingImages


@pytest.fixture
def drawn(make):
    """16 equal images, two steps an epoch: whatever differs was drawn."""
    config = make(augment=True)
    mini = load("fashion-mnist-mini")
    equal = TensorSplit(mini.train.images[:1].repeat(16, 1, 1, 1), mini.train.labels[:16])
    dataset = dataclasses.replace(mini, train=equal)
    return TrainingImages(config=config, dataset=dataset, batch_size=8, seed=0, device=torch.device("cpu"))


def test_every_step_and_epoch_draws_anew_and_every_run_the_same(drawn):
    every = drawn.every
    steps = [x for x, _ in drawn.batches(range(2 * every), 0, 1)]
    for other in (1, every):
        assert not torch.equal(steps[0], steps[other])
    (again,) = [x for x, _ in drawn.batches(range(every, every + 1), 0, 1)]
    assert torch.equal(again, steps[every])


def test_processes_draw_apart(drawn):
    first, second = (next(iter(drawn.batches(range(1), rank, 2)))[0] for rank in range(2))
    assert first.shape == second.shape and not torch.equal(first, second)
