# SPDX-License-Identifier: Apache-2.0
"""Killed or interrupted at any moment, a run goes on where it was, to the same result bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from convary.data import DataSet
from convary.errors import CheckpointError, ConfigError
from convary.train import CompareConfig, Progress, compare, read_checkpoint
from convary.train.arms import checkpoint_path

METHODS = ("static", "dyconv")  # dyconv has an annealed temperature besides
RUN = {"methods": METHODS, "model": "convnet_nano", "where": "all & ~first", "batch_size": 16}  # five steps per epoch

CHILD = """
import json, os, signal, sys, torch
from convary.train import CompareConfig, Progress, compare
options = json.loads(sys.argv[1])
method, step = sys.argv[2], int(sys.argv[3])
class Kill(Progress):
    def on_step(self, run, info):
        if (run.name, info.step) == (method, step):
            os.kill(os.getpid(), signal.SIGKILL)
options["methods"] = tuple(options["methods"])
compare(CompareConfig(**options), Kill())
"""


class StopAt(Progress):
    """Presses Ctrl-C at a step of a method."""

    def __init__(self, method, step):
        self.place = (method, step)

    def on_step(self, run, step):
        if (run.name, step.step) == self.place:
            os.kill(os.getpid(), signal.SIGINT)


class Steps(Progress):
    """Counts the steps that are really taken."""

    def __init__(self):
        self.taken = []

    def on_step(self, run, step):
        self.taken.append((run.name, step.step))


@pytest.fixture(scope="module")
def finished(make_for, tmp_path_factory):
    """An uninterrupted run, which nobody changes."""
    config = make_for(tmp_path_factory.mktemp("finished") / "run", augment=True, **RUN)
    compare(config)
    return config


@pytest.fixture
def whole(finished, tmp_path):
    """A copy of an uninterrupted run."""
    config = dataclasses.replace(finished, out=tmp_path / "whole")
    shutil.copytree(finished.out, config.out)
    return config, compare(config)


def assert_same(one, other):
    """Equal curves and accuracies (but for the seconds), equal weights and optimizer states, bit for bit."""
    (config, results), (other_config, other_results) = one, other
    for method, other_method in zip(results["methods"], other_results["methods"], strict=True):
        for seed in method["seeds"] + other_method["seeds"]:
            for point in seed["curve"]:
                point["seconds"] = point["cpu_seconds"] = 0
        assert method["seeds"] == other_method["seeds"]
        assert method["routing"] == other_method["routing"]
        assert method["correlation"] == other_method["correlation"]
        state, other_state = (
            read_checkpoint(checkpoint_path(c.out, method["name"], 0)) for c in (config, other_config)
        )
        for part in ("model", "optimizer"):
            tensors, other_tensors = (list(_tensors(s[part])) for s in (state, other_state))
            assert tensors
            assert all(torch.equal(a, b) for a, b in zip(tensors, other_tensors, strict=True))


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(make, whole, tmp_path):
    config = make(**RUN, out=tmp_path / "killed", augment=True, save_every=0.0)
    for method, step in (("static", 7), ("dyconv", 2)):
        arguments = [json.dumps(config.to_dict()), method, str(step)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run([sys.executable, "-c", CHILD, *arguments], env=environment, check=False)
        assert child.returncode == -signal.SIGKILL
        assert read_checkpoint(checkpoint_path(config.out, method, 0))["step"] == step - 1
    steps = Steps()
    results = compare(config, steps)
    assert steps.taken[0] == ("dyconv", 2)
    assert_same((config, results), whole)


@pytest.mark.parametrize("place", [("static", 1), ("static", 5), ("dyconv", 8)])
def test_ctrl_c_saves_and_resumes(make, whole, tmp_path, place):
    config = make(**RUN, out=tmp_path / "stopped", augment=True)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt(*place))
    assert signal.getsignal(signal.SIGINT) is before
    steps = Steps()
    results = compare(config, steps)
    after = (METHODS.index(place[0]), place[1])
    assert all((METHODS.index(method), step) > after for method, step in steps.taken)
    assert_same((config, results), whole)


def test_a_finished_run_is_only_read(whole):
    config, results = whole
    steps = Steps()
    assert compare(config, steps) == results
    assert steps.taken == []
    (config.out / "results.json").unlink()  # as if killed while measuring
    again = compare(config, steps)
    assert steps.taken == []
    assert_same((config, again), (config, results))


def test_another_config_is_refused_before_any_image_is_read(whole, monkeypatch):
    config, _ = whole
    monkeypatch.setattr(CompareConfig, "load_images", lambda self: pytest.fail("read images first"))
    with pytest.raises(ConfigError, match=r"another run: epochs 2 there and 3 here, lr 0.1 there and 0.05 here"):
        compare(dataclasses.replace(config, epochs=3, lr=0.05))


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "pickle"])
def test_bad_checkpoints_are_named(make, damage):
    config = make()
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt("static", 3))
    path = checkpoint_path(config.out, "static", 0)
    content = path.read_bytes()
    if damage == "foreign":
        torch.save({"state_dict": {}}, path)
    elif damage == "pickle":
        torch.save(Progress(), path)  # an object whose class would have to be run
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError, match="checkpoint") as caught:
        compare(config)
    assert str(path) in str(caught.value)


def test_another_number_of_threads_goes_on(make):
    config = make(**RUN, threads=1)
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt("dyconv", 3))
    heard, before = Steps(), torch.get_num_threads()
    try:
        results = compare(dataclasses.replace(config, threads=2), heard)
    finally:
        torch.set_num_threads(before)
    assert results["machine"]["threads"] == 2 and len(results["methods"]) == 2
    assert heard.taken == [("dyconv", step) for step in range(4, 11)]  # what was left of two epochs of five steps


def test_a_checkpoint_of_another_run_is_refused(make, tmp_path):
    one, other = make(), make(out=tmp_path / "other", lr=0.05)
    for config in (one, other):
        with pytest.raises(KeyboardInterrupt):
            compare(config, StopAt("static", 3))
    checkpoint_path(other.out, "static", 0).replace(checkpoint_path(one.out, "static", 0))
    with pytest.raises(CheckpointError, match="is of another run; delete it"):
        compare(one)


def test_other_code_or_other_images_are_refused_until_the_run_is_finished(make, monkeypatch):
    config = make()
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt("static", 3))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["convary.train.comparison"], "code", lambda: "other")
        with pytest.raises(ConfigError, match=r"begun with other code of convary \(\w{16} there, other here\)"):
            compare(config)
    with monkeypatch.context() as patch:
        patch.setattr(DataSet, "digest", lambda self: "other")
        with pytest.raises(ConfigError, match="begun with other images"):
            compare(config)
    results = compare(config)
    monkeypatch.setattr(sys.modules["convary.train.comparison"], "code", lambda: "other")
    assert compare(config) == results
