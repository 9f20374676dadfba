"""HDFNet's training: data to batches, schedule, scores, picture; and that it learns its photograph (slow)."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from convary.cli import main
from convary.data import generator
from convary.data.rgbd import load_rgbd
from convary.errors import ConfigError, DataError
from convary.systems import hdfnet as system
from convary.systems.hdfnet import HDFNetConfig, HDFNetPublishedConfig, augmented, resized
from convary.train.fit import fit
from tests.data.written import write_rgbd
from tests.models.nets import tiny_hdfnet


@pytest.fixture
def small(monkeypatch):
    """The network with encoders that cost nothing."""
    monkeypatch.setattr(system, "hdfnet", lambda backbone, *, pretrained, recompute: tiny_hdfnet(recompute=recompute))


def test_trains_on_a_folder_and_scores_others(tmp_path, small):
    train, njud = write_rgbd(tmp_path / "train"), write_rgbd(tmp_path / "NJUD", folders=("Image", "Depth", "Mask"))
    nlpr = write_rgbd(tmp_path / "NLPR", size=(24, 10))
    config = HDFNetConfig(
        out=tmp_path / "out", data=train, test=(njud, nlpr), steps=3, batch_size=2, size=32, augment=True, cpu=True
    )
    results = fit(config)
    names = ("max_f", "mean_f", "weighted_f", "mae", "s_measure", "e_measure")
    assert list(results["scores"]) == [f"{folder} {name}" for folder in ("NJUD", "NLPR") for name in names]
    assert all(0 <= value <= 1.01 for value in results["scores"].values())
    assert list(results["curve"][-1]["losses"]) == ["bce", "edge", "region"]
    with Image.open(tmp_path / "out" / "saliency.png") as picture:
        assert picture.width == 1100


def test_trains_on_the_photograph_from_the_command_line(tmp_path, small, capsys):
    pytest.importorskip("tyro")
    command = ["train", "hdfnet", "--out", str(tmp_path), "--steps", "2", "--size", "32", "--recompute", "--cpu"]
    assert main(command) == 0
    assert "max_f" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["run"]["recompute"]
    assert main(["train", "hdfnet-published"]) == 2
    assert "wants --data, a folder that holds RGB, depth and GT" in capsys.readouterr().err


def test_the_loss_falls(tmp_path, small):
    config = HDFNetConfig(out=tmp_path, steps=15, size=32, lr=0.05, cpu=True)
    curve = fit(config)["curve"]
    first = HDFNetConfig(out=tmp_path / "one", steps=1, size=32, lr=0.05, cpu=True)
    assert sum(curve[-1]["losses"].values()) < 0.8 * sum(fit(first)["curve"][-1]["losses"].values())


def test_the_loss_is_taken_in_float32(tmp_path, small):
    loaded = HDFNetConfig(out=tmp_path, size=32).load()
    model, batch = loaded.model().train(), loaded.collate([loaded.item(0, generator(0))])
    with torch.autocast("cpu", torch.bfloat16):
        parts = loaded.losses(model, batch)
    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts.values())


def test_items_are_normalised_squares(tmp_path):
    loaded = HDFNetConfig(out=tmp_path, data=write_rgbd(tmp_path / "data"), size=64).load()
    item = loaded.item(0, generator(0))
    assert item["image"].shape == (3, 64, 64) and item["depth"].shape == item["mask"].shape == (1, 64, 64)
    assert set(item["mask"].unique().tolist()) == {0.0, 1.0}
    black = (0 - torch.tensor(system.MEAN)) / torch.tensor(system.STD)
    torch.testing.assert_close(item["image"].mean((1, 2))[0], black[0], rtol=0, atol=0.05)
    batch = loaded.collate([item, loaded.item(1, generator(1))])
    assert batch["image"].shape == (2, 3, 64, 64)


def test_augmentation_moves_all_three_alike(tmp_path):
    photo = load_rgbd(write_rgbd(tmp_path, size=(64, 64)))[0]
    image, depth, mask = resized(photo, 64)
    seen = set()
    for seed in range(20):
        turned = augmented(mask.expand(3, -1, -1), mask, mask, generator(seed))
        assert torch.equal(turned[2], turned[2].round())
        assert (turned[0][0] - turned[2]).abs().mean() < 0.15 and (turned[1] - turned[2]).abs().mean() < 0.01
        seen.add(turned[2].argmax().item())
        again = augmented(image, depth, mask, generator(seed))
        assert all(map(torch.equal, again, augmented(image, depth, mask, generator(seed))))
    assert len(seen) > 10


def test_the_schedules(tmp_path):
    """METHODS: the released code's rate at epochs 10, 15 and 20 of 30, and what the paper means."""
    for schedule, wanted in (("poly", (3.5e-3, 2.7e-3, 1.9e-3)), ("cumulative", (7.6e-4, 5.8e-5, 9.1e-7))):
        config = HDFNetConfig(out=tmp_path, steps=3000, lr=5e-3, schedule=schedule)
        loaded = config.load()
        rates = [5e-3 * loaded.rate(step) for step in range(3000)]
        assert [rates[100 * epoch] for epoch in (10, 15, 20)] == pytest.approx(wanted, rel=0.03)
        assert rates[0] == 5e-3 and len(set(rates)) == 30 and rates == sorted(rates, reverse=True)


def test_norms_and_biases_do_not_decay(tmp_path, small):
    loaded = HDFNetConfig(out=tmp_path).load()
    model = loaded.model()
    decayed, spared = loaded.optimizer(model).param_groups
    assert decayed["weight_decay"] == 5e-4 and spared["weight_decay"] == 0
    assert all(p.ndim == 4 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 16}, "size must be at least 32"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"test": (Path("x"),)}, "--names and --test go with --data"),
    ],
)
def test_impossible_values_are_refused(tmp_path, options, match):
    with pytest.raises(ConfigError, match=match):
        HDFNetConfig(out=tmp_path, **options)


def test_the_published_setting_wants_data(tmp_path):
    with pytest.raises(ConfigError, match="wants --data"):
        HDFNetPublishedConfig()
    config = HDFNetPublishedConfig(data=tmp_path)
    assert (config.steps, config.batch_size, config.lr, config.size) == (16_380, 4, 0.005, 320)
    with pytest.raises(DataError, match="no folder called rgb"):
        config.load()


@pytest.mark.slow
@pytest.mark.long
def test_begins_to_learn_its_photograph(tmp_path):
    """A seventh of the steps, half of the area; to call everything salient has a mean absolute error above a half."""
    scores = fit(HDFNetConfig(out=tmp_path, cpu=True, steps=15, size=96))["scores"]
    assert scores["max_f"] > 0.8 and scores["mae"] < 0.25


@pytest.mark.slow
@pytest.mark.sweep
def test_learns_its_photograph(tmp_path):
    """The default run: what ``make hdfnet`` does."""
    scores = fit(HDFNetConfig(out=tmp_path, cpu=True))["scores"]
    assert scores["max_f"] > 0.95 and scores["mean_f"] > 0.95
    assert scores["mae"] < 0.05
