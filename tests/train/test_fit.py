"""``fit`` trains any system; killed at any moment it goes on where it was, to the same result bit for bit."""

import dataclasses
import json

import pytest
import torch

from convary.data import epoch_order
from convary.errors import CheckpointError, ConfigError, DataError
from convary.train import read_checkpoint
from convary.train.checkpoint import SYSTEM
from convary.train.fit import fit, restore
from tests.train.line import Line, LineConfig, StopAt, weights


def test_writes_scores_curve_pictures_and_a_checkpoint(tmp_path):
    config = LineConfig(out=tmp_path, steps=40, evaluate_every=15, cpu=True)
    results = fit(config)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert [point["step"] for point in results["curve"]] == [15, 30, 40]
    assert results["curve"][-1]["losses"]["square"] < results["curve"][0]["losses"]["square"]
    assert results["scores"]["slope"] == restore(config)[1].weight.item()
    assert (tmp_path / results["pictures"][0]).exists()
    assert fit(config) == results, "a finished run is read"


@pytest.mark.parametrize("stop", [1, 7])
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path, stop):
    whole, broken = (LineConfig(out=tmp_path / name, cpu=True) for name in ("whole", "broken"))
    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, StopAt(stop))
    assert not (broken.out / "results.json").exists()
    results = fit(broken)
    assert results["scores"] == json.loads((whole.out / "results.json").read_text())["scores"]
    for one, other in zip(weights(whole).values(), weights(broken).values(), strict=True):
        assert torch.equal(one, other)


def test_workers_load_the_same_items(tmp_path):
    one, two = (LineConfig(out=tmp_path / str(n), workers=n, cpu=True, threads=1) for n in (0, 2))
    assert fit(one)["scores"] == fit(two)["scores"]


class Torn(Line):
    def item(self, index, rng):
        if index == 4:
            raise DataError("4.jpg is torn; repair it")
        return super().item(index, rng)


class TornConfig(LineConfig):
    def load(self):
        return Torn(self)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_item_is_told_in_its_own_words_and_what_was_trained_is_saved(tmp_path, workers):
    config = TornConfig(out=tmp_path, workers=workers, batch_size=1, cpu=True, threads=1)
    with pytest.raises(DataError) as told:
        fit(config)
    step = read_checkpoint(tmp_path / "checkpoint.pt", format=SYSTEM)["step"]
    assert str(told.value) == f"4.jpg is torn; repair it; step {step} of 12 is saved: the same command resumes"
    assert step == epoch_order(10, config.seed, 0).tolist().index(4) > 0


def test_refuses_the_folder_and_the_checkpoint_of_another_run(tmp_path):
    config = LineConfig(out=tmp_path, cpu=True)
    fit(config)
    other = dataclasses.replace(config, lr=0.2)
    with pytest.raises(ConfigError, match=r"lr 0.1 there and 0.2 here"):
        fit(other)
    with pytest.raises(CheckpointError, match="another run"):
        restore(other)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="truncated"):
        restore(config)


def test_a_diverged_training_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"diverged .* smaller --lr"):
        fit(LineConfig(out=tmp_path, lr=1e25, cpu=True))


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"workers": -1}]
)
def test_impossible_values_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LineConfig(out=tmp_path, **options)


def test_the_command_gives_the_config_again(tmp_path):
    config = LineConfig(out=tmp_path, steps=3, precision="bf16", cpu=True)
    assert config.command() == f"convary train line --out {tmp_path} --steps 3 --precision bf16 --cpu"


def test_one_precision_per_process(tmp_path):
    fit(LineConfig(out=tmp_path / "one", cpu=True))
    with pytest.raises(ConfigError, match="another precision .*'bf16'.*new process"):
        fit(LineConfig(out=tmp_path / "other", precision="bf16", cpu=True))


def test_every_process_has_the_same_share(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(ConfigError, match="batch_size=4 is not the same share for 3 processes"):
        fit(LineConfig(out=tmp_path, cpu=True))
