# SPDX-License-Identifier: Apache-2.0
"""What the table, which is always there, and trackers hold is the curve, also of a run that was interrupted."""

import csv
import importlib.util

import pytest

from convary import cli
from convary.errors import ConfigError
from convary.train import compare
from convary.train.fit import fit
from convary.train.log import values
from tests.train.line import LineConfig, StopAt


def rows(path):
    return list(csv.DictReader((path / "log.csv").read_text().splitlines()))


def test_the_table_is_the_curve_also_after_an_interruption(tmp_path):
    config = LineConfig(out=tmp_path, evaluate_every=4, cpu=True)
    with pytest.raises(KeyboardInterrupt):
        fit(config, StopAt(6))
    assert [row["step"] for row in rows(tmp_path)] == ["4"]
    curve = fit(config)["curve"]
    for row, point in zip(rows(tmp_path), curve, strict=True):
        assert row["training"] == "Line" and int(row["step"]) == point["step"]
        assert float(row["train/square"]) == point["losses"]["square"]
        assert float(row["score/slope"]) == point["scores"]["slope"] and "temperature" not in row


def test_a_comparison_has_a_line_for_each_point_of_each_training(tmp_path, make_for):
    config = make_for(tmp_path, methods=("static", "dyconv"), seeds=2)
    results = compare(config)
    found = rows(tmp_path)
    assert len(found) == 2 * 2 * 2
    for method in results["methods"]:
        for seed in method["seeds"]:
            mine = [row for row in found if (row["training"], row["seed"]) == (method["title"], str(seed["seed"]))]
            assert [float(row["score/top1"]) for row in mine] == [point["test_top1"] for point in seed["curve"]]
    assert {row["temperature"] for row in found if row["training"] == "static"} == {""}
    (tmp_path / "log.csv").unlink()
    more = make_for(tmp_path, methods=("static", "dyconv"), seeds=3)
    compare(more)  # finds four trainings finished
    assert [row for row in rows(tmp_path) if row["seed"] != "2"] == found and len(rows(tmp_path)) == 3 * 2 * 2
    assert config.identity() == make_for(tmp_path, methods=("static", "dyconv"), log=("wandb",), seeds=2).identity()


def test_tensorboard_has_the_curve_of_each_training(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = LineConfig(out=tmp_path, evaluate_every=4, cpu=True, log=("tensorboard",))
    with pytest.raises(KeyboardInterrupt):
        fit(config, StopAt(6))
    curve = fit(config)["curve"]
    events = reader.EventAccumulator(str(tmp_path / "tensorboard" / "Line-seed-0"))
    events.Reload()
    for name, value in values(curve[-1]).items():
        found = events.Scalars(name)
        assert [event.step for event in found] == [point["step"] for point in curve]
        assert found[-1].value == pytest.approx(value, rel=1e-6)
    assert len(rows(tmp_path)) == len(curve)


@pytest.mark.slow
def test_wandb_is_told(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    told = []

    def hear(run, row, step=None, **more):
        told.append((run.name, step, row))

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", hear)
    curve = fit(LineConfig(out=tmp_path, evaluate_every=4, cpu=True, log=("wandb",)))["curve"]
    assert told == [("Line, seed 0", point["step"], values(point)) for point in curve]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else there(name))
    with pytest.raises(ConfigError, match="log=wandb needs wandb, which is not installed; run pip install wandb; log"):
        fit(LineConfig(out=tmp_path, cpu=True, log=("wandb",)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="one tracker twice: wandb wandb"):
        fit(LineConfig(out=tmp_path, cpu=True, log=("wandb", "wandb")))


def test_a_kind_that_there_is_not_is_refused(tmp_path, capsys):
    assert cli.main(["compare", "--log", "tensorbord", "--out", str(tmp_path)]) == 2
    assert "tensorboard" in capsys.readouterr().err
