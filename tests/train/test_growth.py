# SPDX-License-Identifier: Apache-2.0
"""More seeds or methods in a finished folder: what is missing is trained, and the results are those of all at once."""

import dataclasses
import json
import re
import sys

import pytest

from convary.errors import ConfigError
from convary.train import Progress, compare
from convary.train.arms import checkpoint_path
from tests.train.test_resume import StopAt, assert_same

ALL = {"methods": ("static", "dyconv"), "seeds": 2, "batch_size": 16, "measure_seconds": 0.0}


class Trained(Progress):
    """Which trainings take steps, and what was said of the work."""

    def __init__(self):
        self.runs, self.kept = [], None

    def on_work(self, work):
        self.kept = work.kept

    def on_step(self, run, step):
        if (run.title, run.seed) not in self.runs:
            self.runs.append((run.title, run.seed))


@pytest.fixture(scope="module")
def whole(make_for, tmp_path_factory):
    """Everything at once."""
    config = make_for(tmp_path_factory.mktemp("whole") / "run", **ALL)
    return config, compare(config)


@pytest.mark.parametrize(
    ("first", "missing"),
    [
        ({"seeds": 1}, [("static", 1), ("DyConv", 1)]),
        ({"methods": ("static",)}, [("DyConv", 0), ("DyConv", 1)]),
        ({"methods": ("dyconv", "static"), "seeds": 2}, []),
    ],
    ids=["seeds", "methods", "order"],
)
def test_what_is_missing_is_trained(make, whole, first, missing):
    begun = make(**ALL | first)
    compare(begun)
    config = dataclasses.replace(begun, methods=ALL["methods"], seeds=ALL["seeds"])
    heard = Trained()
    results = compare(config, heard)
    assert heard.runs == missing and heard.kept == 4 - len(missing)
    assert results["run"]["seeds"] == [0, 1] and results["run"]["methods"] == ["static", "dyconv"]
    assert_same((config, results), (whole[0], json.loads(json.dumps(whole[1]))))
    assert results["methods"][1]["paired"] == whole[1]["methods"][1]["paired"]
    again = Trained()
    assert compare(config, again) == json.loads((config.out / "results.json").read_text()) and again.kept is None


def test_fewer_are_left_out_of_the_results_and_stay_in_the_folder(make):
    config = make(**ALL)
    compare(config)
    fewer, heard = dataclasses.replace(config, methods=("static",), seeds=1), Trained()
    results = compare(fewer, heard)
    assert heard.runs == [] and [len(m["seeds"]) for m in results["methods"]] == [1]
    assert checkpoint_path(config.out, "dyconv", 1).exists()
    assert len(compare(config, heard)["methods"]) == 2 and heard.runs == []


def test_a_grown_comparison_that_is_interrupted_keeps_its_results_until_it_is_done(make, whole):
    begun = make(**ALL | {"seeds": 1})
    before = compare(begun)
    config = dataclasses.replace(begun, seeds=2)
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt("dyconv", 3))  # of seed 1: seed 0 takes no step any more
    assert json.loads((config.out / "results.json").read_text()) == before
    assert_same((config, compare(config)), (whole[0], json.loads(json.dumps(whole[1]))))


def test_a_method_more_tries_its_own_learning_rates(make):
    begun = make(methods=("static",), lr=(0.05, 0.1), batch_size=16)
    compare(begun)
    heard = Trained()
    results = compare(dataclasses.replace(begun, methods=("static", "dyconv")), heard)
    assert [name for name, _ in heard.runs] == ["DyConv, lr 0.05", "DyConv, lr 0.1", "DyConv"] and heard.kept == 3
    assert [len(method["lr"]["grid"]) for method in results["methods"]] == [2, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lr": (0.05, 0.1)}, "lr 0.1 there and 0.05 0.1 here"),
        ({"lr_seeds": 2}, "lr_seeds 1 there and 2 here"),
        ({"batch_size": 8}, "batch_size 16 there and 8 here"),
        ({"image_size": 12}, "image_size 16 there and 12 here"),
    ],
)
def test_other_settings_are_refused_with_more_seeds_too(make, change, told):
    config = make(methods=("static",), batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt("static", 1))
    wanted = f"another run: {re.escape(told)}; give the settings that it was begun with, choose another folder"
    with pytest.raises(ConfigError, match=wanted):
        compare(dataclasses.replace(config, seeds=3, **change))


def test_other_code_trains_nothing_more(make, monkeypatch):
    config = make(methods=("static",), batch_size=16)
    compare(config)
    monkeypatch.setattr(sys.modules["convary.train.comparison"], "code", lambda: "other")
    with pytest.raises(ConfigError, match="begun with other code of convary"):
        compare(dataclasses.replace(config, seeds=2))


@pytest.mark.parametrize("content", ["[]", "{", '{"run": {"system": "hdfnet"}}'])
def test_results_of_something_else_are_no_results(make, content):
    config = make(methods=("static",))
    config.out.mkdir()
    (config.out / "results.json").write_text(content)
    with pytest.raises(ConfigError, match="is not empty .* and not the folder of a run"):
        compare(config)


def test_a_folder_of_an_older_convary_is_shown(make):
    """Its record has the methods and seeds among what must not change."""
    config = make(methods=("static",), batch_size=16)
    results = compare(config)
    record = config.out / "run.json"
    content = json.loads(record.read_text())
    content["config"] |= {"methods": ["static"], "seeds": 1}
    record.write_text(json.dumps(content))
    assert compare(config) == results
