# SPDX-License-Identifier: Apache-2.0
"""The config of a comparison: what it refuses and what it derives."""

import json

import pytest

import convary as cv
from convary.errors import ConfigError
from convary.train import CompareConfig


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
        ({"methods": ("static@flops:odconv",)}, "written static@macs:odconv or static@params:odconv"),
        ({"methods": ("static@0",)}, "the width of 'static@0' is no number above 0"),
        ({"where": "all & ~frist"}, "no selector 'frist'; did you mean 'first'"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1"),
        ({"anneal_epochs": 4.0}, "anneal_epochs must be between 0 and epochs=3; got 4.0"),
        ({"options": ("odconv.expertz=2",)}, "ODConv has no option 'expertz'.*did you mean 'experts'"),
        ({"options": ("odconv.experts",)}, "METHOD.OPTION=VALUE"),
        ({"options": ("static.experts=2",)}, "which is not one of the methods"),
        ({"options": ("odconv.experts=none",)}, "experts must be an int"),
    ],
)
def test_values_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**options)


def test_options_reach_the_methods():
    config = CompareConfig(methods=("dyconv", "odconv"), options=("odconv.experts=2", "dyconv.activation=sigmoid"))
    found = {name: arm.method for name, arm in config.arms().items()}
    assert found == {"dyconv": cv.DyConv(activation="sigmoid"), "odconv": cv.ODConv(experts=2)}


def test_annealing_is_as_published_but_at_most_a_third():
    published = cv.ODConv.annealing.epochs
    assert CompareConfig(epochs=3).annealing_epochs(cv.ODConv()) == 1
    assert CompareConfig(epochs=300).annealing_epochs(cv.ODConv()) == published
    assert CompareConfig(epochs=3, anneal_epochs=2).annealing_epochs(cv.ODConv()) == 2
    assert CompareConfig().annealing_epochs(cv.CondConv()) is None
    assert CompareConfig().annealing_epochs(None) is None
    assert CompareConfig(init="neutral").annealing_epochs(cv.ODConv()) is None  # at its end from the start
    assert CompareConfig(init="neutral").annealing_epochs(cv.KernelWarehouse()) == 1


def test_identity_leaves_out_where_things_lie():
    one, other = CompareConfig(out="a", root="b", save_every=1.0, jobs=2), CompareConfig(out="c")
    assert one.identity() == other.identity() != CompareConfig(lr=(0.2,)).identity()
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()


def test_command_gives_the_same_config():
    assert CompareConfig(methods=("static", "odconv"), lr=(0.2,), cpu=True, out="a b").command() == (
        "convary compare --data fashion-mnist-mini --model mobilenet_v2_tiny --methods static odconv --epochs 3 "
        "--seeds 1 --out 'a b' --lr 0.2 --cpu"
    )
