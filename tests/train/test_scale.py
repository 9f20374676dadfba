# SPDX-License-Identifier: Apache-2.0
"""What published trainings have beyond small ones: streamed crops, mixed images, averaged weights, broken files."""

import json
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import convary as cv
from convary.errors import ConfigError, DataError
from convary.models import build
from convary.train import CompareConfig, Progress, compare, evaluate, load_model, processes, read_checkpoint
from convary.train.arms import checkpoint_path
from convary.train.average import Average
from convary.train.classification import Classification
from convary.train.dropout import drop_branches
from tests.data.photos import truncate, write_photos

EVERYTHING = {
    "crops": True, "mixup": 0.8, "cutmix": 1.0, "mixup_epochs": 1, "erasing": 0.5, "label_smoothing": 0.1, "ema": 0.8,
    "accumulate": 2, "rand_augment": "rand-m9-mstd0.5-inc1", "channels_last": True, "interpolation": "bicubic",
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), 3, 8, 4)


@pytest.fixture
def scaled(make_for, photos, tmp_path):
    """A config for these photos: two epochs of six steps."""
    usual = {"data": f"folder:{photos}", "model": "convnet_nano", "batch_size": 4, "where": "all & ~first"}

    def make(name="run", **options):
        return make_for(tmp_path / name, **usual | options)

    return make


class StopAt(Progress):
    def __init__(self, step):
        self.at = step

    def on_step(self, run, step):
        if step.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def ends(config):
    """Curve and weights of the first arm."""
    results = compare(config)
    curve = results["methods"][0]["seeds"][0]["curve"]
    for point in curve:
        point["seconds"] = point["cpu_seconds"] = 0
    return curve, read_checkpoint(checkpoint_path(config.out, config.methods[0], 0))


def assert_same(one, other):
    assert one[0] == other[0]
    for part in ("model", "trained"):
        if part in one[1]:
            assert all(torch.equal(value, other[1][part][name]) for name, value in one[1][part].items())


@pytest.mark.parametrize("options", [pytest.param({"crops": True}, marks=pytest.mark.slow), EVERYTHING])
def test_interrupted_and_resumed_with_other_workers_it_ends_the_same(scaled, options):
    whole = ends(scaled("whole", methods=("dyconv",), **options))
    cut = scaled("cut", methods=("dyconv",), workers=2, **options)
    with pytest.raises(KeyboardInterrupt):
        compare(cut, StopAt(5))
    assert_same(whole, ends(scaled("cut", methods=("dyconv",), workers=1, **options)))
    assert whole[0] != ends(scaled("other", methods=("dyconv",)))[0]


def test_a_truncated_image_ends_the_training_saved_and_skipped_it_goes_on(make_for, tmp_path):
    folder = write_photos(tmp_path / "photos", 3, 24, 4)
    truncate(folder / "train" / "n0000" / "0005.jpg")  # none of those that are looked at before the training
    usual = {"data": f"folder:{folder}", "model": "convnet_nano", "batch_size": 4, "crops": True, "epochs": 1}
    config = make_for(tmp_path / "run", **usual)
    with pytest.raises(DataError, match=r"0005.jpg is not a readable image.*--skip-broken; step \d+ of 18 is saved: "):
        compare(config)
    assert 0 < read_checkpoint(checkpoint_path(config.out, "static", 0))["step"] < 18
    with pytest.warns(UserWarning, match="left out"):
        results = compare(make_for(tmp_path / "run", **usual, skip_broken=True))
    assert results["data"]["left_out"]["images"] == 1 and "0005.jpg" in results["data"]["left_out"]["first"]
    assert "0005.jpg" in (config.out / "skipped.txt").read_text()


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="Windows tells of no process that ends")
def test_where_a_reading_process_dies_in_the_middle_of_a_step_that_step_is_saved_all_the_same(scaled, monkeypatch):
    whole, cut = ends(scaled("whole", crops=True)), scaled("cut", crops=True, workers=1)
    usual, steps = Classification.after_step, []

    def kill(system):
        usual(system)
        steps.append(len(steps) + 1)
        if len(steps) == 3:
            [reader] = multiprocessing.active_children()
            os.kill(reader.pid, signal.SIGKILL)
            os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(Classification, "after_step", kill)
    with pytest.raises(DataError, match=r"was killed.*fewer --workers; step 3 of 12 is saved: the same"):
        compare(cut)
    assert read_checkpoint(checkpoint_path(cut.out, "static", 0))["step"] == 3
    assert_same(whole, ends(cut))
    assert steps == [*range(1, 13)]


def test_broken_test_images_are_counted(make_for, tmp_path):
    folder = write_photos(tmp_path / "photos", 3, 4, 4)
    truncate(folder / "val" / "n0000" / "0001.jpg")
    usual = {"data": f"folder:{folder}", "model": "convnet_nano", "batch_size": 4, "crops": True, "epochs": 1}
    with pytest.raises(DataError, match=r"val.n0000.0001.jpg is not"):
        compare(make_for(tmp_path / "run", **usual))
    with pytest.warns(UserWarning, match="left out.*0001.jpg"):
        data = compare(make_for(tmp_path / "run", **usual, skip_broken=True))["data"]
    assert data["left_out"]["images"] == 1 and data["test"] == 11
    [told] = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert "0001.jpg" in told


def test_an_average_follows_weights_and_statistics_and_copies_the_rest():
    net = cv.convert(build("convnet_nano", 3), cv.DyConv(), cv.where.all() & ~cv.where.first(), upcycle=False)
    average = Average(net, 0.75)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    cv.set_temperature(net, 2.0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    average.update()
    own = average.model.state_dict()
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
    for name, _ in net.named_parameters():
        torch.testing.assert_close(own[name], before[name] + 0.25)
    for name, value in net.named_buffers():
        if "running" in name:
            torch.testing.assert_close(own[name], before[name].lerp(value, 0.25))
        else:
            assert torch.equal(own[name], value), name


def test_what_is_scored_is_the_average_and_eval_scores_the_same(scaled):
    config = scaled(ema=0.9, crops=True, image_size=16, test_size=24)
    curve, content = ends(config)
    path = checkpoint_path(config.out, "static", 0)
    assert any(not torch.equal(content["model"][name], value) for name, value in content["trained"].items())
    found = evaluate(path)
    assert found.top1 == curve[-1]["test_top1"] and found.loss == pytest.approx(curve[-1]["test_loss"], rel=1e-5)
    larger = evaluate(path, test_size=32, workers=1)
    assert larger.images == found.images and larger.loss != found.loss
    assert load_model(path)(torch.zeros(1, 3, 24, 24)).shape == (1, 3)


def test_parts_of_a_step_add_up_to_the_whole(make_for, tmp_path, monkeypatch):
    monkeypatch.setattr("convary.models.architecture.build", lambda *args: _no_norm())
    one, parts = (
        read_checkpoint(checkpoint_path(config.out, "static", 0))["model"]
        for accumulate in (1, 3)
        for config in [make_for(tmp_path / str(accumulate), accumulate=accumulate, epochs=1, lr=0.01)]
        if compare(config)
    )
    for name, value in one.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def _no_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "torchvision:resnet50", "torchvision:convnext_tiny", "timm:efficientnet_b0"]
)
def test_branches_are_left_out_more_and_more_often_with_depth(name):
    model = build(name, 4)
    if name.endswith("18"):
        model = cv.convert(model, cv.ODConv(experts=1), upcycle=False)
    drop_branches(model, 0.9)
    x = torch.randn(3, 3, 32, 32)
    model.eval()
    assert torch.equal(model(x), model(x))
    for module in model.modules():  # nothing but the branches trains
        module.training = "depth" in type(module).__name__.lower() or bool(module._forward_hooks)
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))


def test_a_network_without_branches_is_refused():
    with pytest.raises(ConfigError, match="no residual branch"):
        drop_branches(build("convnet_nano", 3), 0.1)
    drop_branches(build("convnet_nano", 3), 0.0)  # turns a recipe's off


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"erasing": 0.5}, "erasing is a part of --crops"),
        ({"crops": True, "erasing": 2}, "a probability"),
        ({"crops": True, "rand_augment": "randy"}, "rand-m9-mstd0.5-inc1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"ema": 1.0}, "ema must be"),
        ({"mixup_epochs": 3}, "a part of --mixup"),
        ({"crops": True, "test_size": 0}, "test_size must be"),
        ({"precision": "fp8"}, "precision must be one of"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**options)


def test_half_precision_wants_a_gpu(monkeypatch):
    found = SimpleNamespace(device=torch.device("cpu"), scaler=None)
    monkeypatch.setattr(processes, "Accelerator", lambda **options: found)
    assert processes.start(cpu=True, precision="bf16") is found
    with pytest.raises(ConfigError, match="fp16 wants a GPU.*got cpu"):
        processes.start(cpu=True, precision="fp16")


def test_options_of_scale_reach_the_command_line(scaled):
    command = scaled(workers=2, crops=True, ema=0.9, precision="bf16").command()
    assert (
        "--workers 2" in command and "--crops" in command and "--ema 0.9" in command and "--precision bf16" in command
    )
    assert not {"workers", "skip_broken"} & set(scaled(workers=3, skip_broken=True).identity())
    assert json.dumps(scaled().to_dict())
