# SPDX-License-Identifier: Apache-2.0
"""Diagnostics against hand-made cases."""

import pytest
import torch
from torch import nn

from convary.bench.peak import peak
from convary.train import CompareConfig
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
