# SPDX-License-Identifier: Apache-2.0
"""Diagnostics against hand-made cases."""

import pytest
import torch

from convary.train.diagnose import ClassStatistics, filter_bands


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
