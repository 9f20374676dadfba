# SPDX-License-Identifier: Apache-2.0
"""Diagnostics against hand-made cases."""

import pytest
import torch
from torch import nn

from convary.bench.peak import peak
from convary.bench.timing import fitting_clock
from convary.train import CompareConfig, measure
from convary.train.diagnose import ClassStatistics, filter_bands
from convary.train.measure import memory


def test_bands_of_correlation():
    ramp = torch.arange(8.0)
    noise = torch.tensor([1.0, -1, -1, 1, 1, -1, -1, 1])  # orthogonal to the ramp, mean 0
    weight = torch.stack([ramp, 3 - 2 * ramp, noise]).reshape(3, 2, 2, 2)
    assert filter_bands(weight).tolist() == [2, 0, 0, 1]
    middle = torch.stack([ramp - ramp.mean(), 0.4 * (ramp - ramp.mean()) + 6**0.5 * 0.91651514 * noise * 0.935])
    r = torch.corrcoef(middle)[0, 1]
    assert 0.3 < r < 0.5
    assert filter_bands(middle.reshape(2, 2, 2, 2)).tolist() == [0, 0, 1, 0]


def test_bands_without_a_pair():
    assert filter_bands(torch.randn(1, 3, 3, 3)) is None
    assert filter_bands(torch.randn(4, 1, 1, 1)) is None
    assert filter_bands(torch.zeros(2, 3, 1, 1)).tolist() == [1, 0, 0, 0]


def test_statistics_between_and_within_classes():
    statistics = ClassStatistics(2, 1)
    statistics.add(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
    statistics.add(torch.tensor([[5.0]]), torch.tensor([1]))
    summary = statistics.summary()
    assert summary["by_class"] == [[1.0], [5.0]]
    assert summary["between_class_std"] == 2.0
    assert summary["within_class_std"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("images", [1, 4, 5])
def test_no_share_of_classes_with_few_images(images):
    statistics = ClassStatistics(3, 2)
    labels = torch.arange(3).repeat(images)
    statistics.add(torch.randn(len(labels), 2), labels)
    assert (statistics.summary()["share"] is None) == (images < 5)


@pytest.mark.parametrize(("between", "share"), [(0.0, 0.0), (1.0, 0.5), (3.0, 0.9)])
def test_the_share_of_few_images_is_that_of_many(between, share):
    draw, labels = torch.Generator().manual_seed(0), torch.arange(2).repeat_interleave(5)
    found = []
    for _ in range(400):
        statistics = ClassStatistics(2, 8)
        values = torch.randn(10, 8, generator=draw) + between * (2.0 * labels[:, None] - 1)
        statistics.add(values, labels)
        found.append(statistics.summary()["share"])
    assert sum(found) / len(found) == pytest.approx(share, abs=0.04)  # the plain ratio gives 0.2 of nothing


def test_classes_alone_decide_or_nothing_varies():
    for values, share in ((torch.arange(2.0).repeat_interleave(5), 1.0), (torch.ones(10), 0.0)):
        statistics = ClassStatistics(2, 1)
        statistics.add(values[:, None], torch.arange(2).repeat_interleave(5))
        assert statistics.summary()["share"] == share


def test_peak_is_what_is_alive_at_once():
    def both():
        return torch.empty(1_000_000), torch.empty(1_000_000)

    def one_after_the_other():
        torch.empty(1_000_000).add_(1)
        torch.empty(1_000_000).add_(1)

    cpu = torch.device("cpu")
    assert peak(both, cpu) == 8_000_000
    assert peak(one_after_the_other, cpu) == pytest.approx(4_000_000, abs=100)


def test_memory_of_a_training_step_is_weights_optimizer_gradients_and_activations(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 4000), nn.ReLU(), nn.Linear(4000, 10))
    x, y = torch.randn(50, 1, 10, 10), torch.zeros(50, dtype=torch.long)
    config = CompareConfig(optimizer="sgd", out=tmp_path)
    weights = sum(p.numel() for p in model.parameters()) * 4
    activations = 50 * 4000 * 4  # of the linear layer; those of its ReLU come on top
    found = memory(model, x, y, config)
    assert 3 * weights < found < 5 * weights + 2 * activations  # Nesterov's step wants room too
    assert memory(model, x.repeat(20, 1, 1, 1), y.repeat(20), config) > 3 * weights + 40 * activations


@pytest.mark.parametrize("threads", [1, 2])
def test_times_are_those_of_the_process_where_one_thread_does_all(tmp_path, monkeypatch, threads):
    clocks, before = [], torch.get_num_threads()
    monkeypatch.setattr(measure, "interleave", lambda ours, base, seconds, clock, *_: clocks.append(clock))
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(1, 1, 2, 2)
    torch.set_num_threads(threads)
    try:
        wanted = fitting_clock(x.device)
        measure.latency(net, net, x, 0.1)
        measure.training_step(net, net, x, torch.zeros(1, dtype=torch.long), CompareConfig(out=tmp_path), 0.1)
    finally:
        torch.set_num_threads(before)
    assert clocks == [wanted, wanted]
