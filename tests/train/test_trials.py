# SPDX-License-Identifier: Apache-2.0
"""Every network gets the learning rate that is best for it on held-out training images."""

import dataclasses

import pytest
import torch

from convary.data import load
from convary.errors import ConfigError, DataError
from convary.train import CompareConfig, Progress, compare
from convary.train.trials import Choice, choose


def test_held_out_images_are_balanced_and_of_one_side_only():
    data = load("fashion-mnist-mini")
    part = data.held_out(0.1)
    assert torch.equal(part.test.labels.bincount(), torch.full((10,), 80))
    assert torch.equal(part.train.labels.bincount(), torch.full((10,), 720))
    both = torch.cat([part.train.batch(torch.arange(7200)), part.test.batch(torch.arange(800))]).flatten(1)
    assert torch.equal(both.long().sum(0), data.train.batch(torch.arange(8000)).flatten(1).long().sum(0))
    with pytest.raises(DataError, match="too few to hold out"):
        data.held_out(0.9999)


def test_the_best_rate_of_each_network_is_chosen_and_an_edge_is_told():
    config = CompareConfig(methods=("static", "odconv"), lr=(0.3, 0.1, 0.2), lr_seeds=2)
    tops = {("static", 0.1): 50, ("static", 0.2): 60, ("static", 0.3): 40, ("odconv", 0.3): 70}
    asked = []

    def train(runs):
        asked.extend(runs)
        return [[{"test_top1": tops[run.arm.name, run.lr]}] if (run.arm.name, run.lr) in tops else [] for run in runs]

    found = choose(config, train)
    assert len(asked) == 2 * 3 * 2 and all(run.trial for run in asked)
    assert found["static"] == Choice(0.2, {0.1: 50, 0.2: 60, 0.3: 40}) and not found["static"].at_edge
    assert found["odconv"] == Choice(0.3, {0.1: None, 0.2: None, 0.3: 70}) and found["odconv"].at_edge
    with pytest.raises(ConfigError, match="static diverges with every lr"):
        choose(config, lambda runs: [[] for _ in runs])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": (0.1, 0.1)}, "one learning rate or several different"),
        ({"lr": (0.1, -1.0)}, "lr must be above 0"),
        ({"held_out": 1.0}, "held_out must be a part"),
        ({"lr_seeds": 0}, "lr_seeds must be at least 1"),
    ],
)
def test_a_choice_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        CompareConfig(**options)


def test_compare_tries_rates_without_the_test_images_and_goes_on_where_it_was(make):
    config = make(lr=(1e-6, 0.1, 1e30), held_out=0.2)
    titles = []

    class Heard(Progress):
        def on_start(self, run):
            titles.append(run.title)

    results = compare(config, Heard())
    assert titles == ["static, lr 1e-06", "static, lr 0.1", "static, lr 1e+30", "static"]
    told = results["methods"][0]["lr"]
    assert told["chosen"] in (1e-6, 0.1) and [entry["lr"] for entry in told["grid"]] == [1e-6, 0.1, 1e30]
    assert told["grid"][2]["held_out_top1"] is None
    (config.out / "results.json").unlink()
    assert compare(dataclasses.replace(config))["methods"][0]["lr"] == told
