# SPDX-License-Identifier: Apache-2.0
"""The config of a comparison: what it refuses and what it derives."""

import json

import pytest

import convary as cv
from convary.errors import ConfigError
from convary.train import CompareConfig
from convary.train.arms import read_arm


def test_defaults_are_the_static_network_and_every_method():
    config = CompareConfig()
    assert config.methods == ("static", *(method.name for method in cv.METHODS))
    assert [arm.method for arm in config.arms().values()] == [None, *(method() for method in cv.METHODS)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("static", "odcnov")}, "unknown method 'odcnov'; did you mean 'odconv'"),
        ({"methods": ()}, "at least one method"),
        ({"methods": ("static", "static")}, "none twice"),
        ({"methods": ("static", "static@macs:odconv")}, "static@macs:odconv needs odconv among the methods"),
        ({"methods": ("static@flops:odconv",)}, "static@macs:odconv, with macs, params, latency or latency16; got"),
        ({"methods": ("static@0",)}, "the width of 'static@0' is no number above 0"),
        ({"where": "all & ~frist"}, "no selector 'frist'; did you mean 'first'"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be from 1 to"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1"),
        ({"anneal_epochs": 4.0}, "anneal_epochs must be between 0 and epochs=3; got 4.0"),
        ({"methods": ("odconv:expertz=2",)}, "ODConv has no option 'expertz'.*did you mean 'experts'"),
        ({"methods": ("odconv:experts",)}, "METHOD:OPTION=VALUE"),
        ({"methods": ("odconv:",)}, "METHOD:OPTION=VALUE"),
        ({"methods": ("static:experts=2",)}, "which has no options, is static, static@1.25"),
        ({"methods": ("odconv:experts=none",)}, "experts must be an int"),
        ({"methods": ("odconv:init=netural",)}, "init of 'odconv:init=netural' must be one of paper, neutral, upcycle"),
        ({"methods": ("odconv:experts=2", "static@macs:odconv")}, "needs odconv among the methods"),
        ({"methods": ("odconv:init=neutral",), "anneal_epochs": 1}, "anneals nothing"),
        ({"methods": ("odconv",), "start": "runs/a"}, "wants init=upcycle: add --init upcycle; odconv has init=paper"),
        ({"methods": ("static@2",), "start": "runs/a", "init": "upcycle"}, "static@2 cannot start from"),
    ],
)
def test_values_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**options)


def test_options_reach_the_methods():
    names = (
        "dyconv:activation=sigmoid",
        "odconv",
        "odconv:experts=2,init=neutral",
        "static@macs:odconv:experts=2,init=neutral",
    )
    arms = CompareConfig(methods=names).arms()
    assert [arm.method for arm in arms.values()] == [
        cv.DyConv(activation="sigmoid"), cv.ODConv(), cv.ODConv(experts=2), None,
    ]  # fmt: skip
    assert read_arm("odconv:attentions=kernel+tap,norm=layer").method == cv.ODConv(
        attentions=("kernel", "tap"), norm="layer"
    )
    assert [arm.init for arm in arms.values()] == [None, None, "neutral", None]
    assert [arm.title for arm in arms.values()] == [
        "DyConv (activation=sigmoid)", "ODConv", "ODConv (experts=2, init=neutral)",
        "static, MACs of ODConv (experts=2, init=neutral)",
    ]  # fmt: skip


def test_annealing_is_as_published_but_at_most_a_third():
    published = cv.ODConv.annealing.epochs
    odconv, warehouse = read_arm("odconv"), read_arm("kernelwarehouse")
    assert CompareConfig(epochs=3).annealing_epochs(odconv) == 1
    assert CompareConfig(epochs=300).annealing_epochs(odconv) == published
    assert CompareConfig(epochs=3, anneal_epochs=2).annealing_epochs(odconv) == 2
    assert CompareConfig().annealing_epochs(read_arm("condconv")) is None
    assert CompareConfig().annealing_epochs(read_arm("static")) is None
    assert CompareConfig(init="neutral").annealing_epochs(odconv) is None  # at its end from the start
    assert CompareConfig().annealing_epochs(read_arm("odconv:init=neutral")) is None
    assert CompareConfig(init="neutral").annealing_epochs(warehouse) == 1


def test_identity_leaves_out_where_things_lie():
    one, other = CompareConfig(out="a", root="b", save_every=1.0, jobs=2), CompareConfig(out="c")
    assert one.identity() == other.identity() != CompareConfig(lr=(0.2,)).identity()
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()


def test_command_gives_the_same_config():
    assert CompareConfig(methods=("static", "odconv"), lr=(0.2,), cpu=True, out="a b").command() == (
        "convary compare --data fashion-mnist-mini --model mobilenet_v2_tiny --methods static odconv --epochs 3 "
        "--seeds 1 --lr 0.2 --out 'a b' --cpu"
    )
